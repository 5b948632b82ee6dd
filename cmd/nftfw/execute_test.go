package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// result is how a command ended.
type result struct {
	status         int
	stdout, stderr string
}

// inProcess runs the program without a kernel: only for commands that need
// none.
func inProcess(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := execute(t.Context(), args, strings.NewReader(stdin), &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

// expect checks an exit status and what the two streams must contain.
func (r result) expect(t *testing.T, what string, status int, stdout, stderr string) {
	t.Helper()
	if r.status != status || !strings.Contains(r.stdout, stdout) || !strings.Contains(r.stderr, stderr) {
		t.Errorf("%s: status %d, want %d\nstdout (want %q): %s\nstderr (want %q): %s", what, r.status, status, stdout, r.stdout, stderr, r.stderr)
	}
}

// oneLine checks that nothing but one line of diagnostics came out.
func (r result) oneLine(t *testing.T, what string) {
	t.Helper()
	if strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "nftfw: ") || r.stdout != "" {
		t.Errorf("%s: want one line on stderr, got\nstdout: %s\nstderr: %s", what, r.stdout, r.stderr)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWrongUsage(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("NFTFW_STATE_DIR", filepath.Join(dir, "state"))
	t.Setenv("NFTFW_SOCKET", filepath.Join(dir, "sock"))
	tests := []struct {
		args   string
		stderr string
	}{
		{"frobnicate", `unknown command "frobnicate" for "nftfw"`},
		{"sets frobnicate", `unknown command "frobnicate" for "nftfw sets"`},
		{"completion csh", `unknown command "csh"`},
		{"completion bash extra", "see nftfw completion bash --help"},
		{"--frobnicate", "unknown flag: --frobnicate (see nftfw --help)"},
		{"sets add --frobnicate", "unknown flag: --frobnicate (see nftfw sets add --help)"},
		{"apply now", "see nftfw apply --help"},
		{"status now", "see nftfw status --help"},
		{"confirm it", "see nftfw confirm --help"},
		{"check a b", "see nftfw check --help"},
		{"sets show", "see nftfw sets show --help"},
		{"sets test trusted", "see nftfw sets test --help"},
		{"sets add", "see nftfw sets add --help"},
		{"sets add trusted", "no address given"},
		{"sets del trusted", "no address given"},
		{"sets add trusted 192.0.2.1 --timeout soon", `--timeout "soon": no duration; write it as 30s, 15m, 1h or 7d`},
		{"sets add trusted 192.0.2.1 --timeout 0s", "longer than nothing"},
		{"sets add trusted 192.0.2.1 --timeout 1000w", "longer than ten years"},
		{"sets add trusted --file /does/not/exist", "/does/not/exist"},
		{"apply --confirm 1ms", "give yourself a second at least"},
		{"apply --confirm soon", `--confirm "soon": no duration; write it as 30s, 15m, 1h or 7d`},
		{"apply --confirm 60", `--confirm "60": a number without a unit; write it as 30s, 15m, 1h or 7d`},
		{"apply --confirm 0s", "longer than nothing"},
		{"apply --confirm=", "give yourself a second at least"},
		{"sets add trusted 192.0.2.1 --timeout 60", "a number without a unit"},
		{"sets add trusted 192.0.2.1 --timeout 1d12", "a number without a unit"},
		{"ports --open-to 192.0.2.1 --picture x.svg", "--open-to and --picture do not go together"},
		{"version --docker-host foo", `--docker-host "foo": want unix:///PATH or tcp://HOST:PORT`},
		{"version --docker-host ssh://host", `--docker-host "ssh://host": want unix:///PATH or tcp://HOST:PORT`},
		{"version --docker-host unix://", "want unix:///PATH"},
		{"version --json=yes", `--json "yes": want true or false (see nftfw version --help)`},
		{"sets --version", "unknown flag: --version"},
		{"apply --dry-run --confirm 5s", "nothing to --confirm"},
		{"explain", "--from and --to are needed"},
		{"explain --from 192.0.2.1 --to 192.0.2.2 --expect maybe", "want accept or drop"},
		{"explain --from 192.0.2.1 --to 192.0.2.2/tcp", "one that has them needs one, as in 192.0.2.2:80/tcp"},
		{"explain --from 192.0.2.1 --to 192.0.2.2/quic", "no protocol without ports"},
		{"explain --from 192.0.2.1 --to 192.0.2.2:0", "want ADDR, ADDR:PORT, ADDR:PORT/PROTO or ADDR/PROTO"},
		{"explain --from 192.0.2.1 --to 192.0.2.2:80/quic", "quic"},
		{"down", "say --yes"},
		{"--table 9x version", "--table"},
		{"--table a;b version", "--table"},
		{"--log-level loud version", "want debug, info, warn or error"},
		{"--log-format xml version", "want text or json"},
	}
	for _, tt := range tests {
		inProcess(t, "", strings.Fields(tt.args)...).expect(t, tt.args, exitUsage, "", tt.stderr)
	}
}

func TestEnvironment(t *testing.T) {
	tests := []struct {
		name, value string
		args        []string
		status      int
		stdout      string
		stderr      string
	}{
		{"NFTFW_JSON", "true", []string{"version"}, 0, `"version": "`, ""},
		{"NFTFW_JSON", "true", []string{"version", "--json=false"}, 0, "nftfw ", ""}, // the flag wins
		{"NFTFW_JSON", "", []string{"version"}, 0, "nftfw ", ""},
		{"NFTFW_JSON", "perhaps", []string{"version"}, exitUsage, "", `NFTFW_JSON "perhaps": want true or false`},
		{"NFTFW_JSON", "yes", []string{"version"}, exitUsage, "", `NFTFW_JSON "yes": want true or false`},
		{"NFTFW_TABLE", "9x", []string{"version"}, exitUsage, "", `NFTFW_TABLE "9x"`},
		{"NFTFW_TABLE", "9x", []string{"version", "--table", "8x"}, exitUsage, "", `--table "8x"`},
		{"NFTFW_DOCKER_HOST", "foo", []string{"version"}, exitUsage, "", `NFTFW_DOCKER_HOST "foo": want`},
		{"DOCKER_HOST", "ssh://host", []string{"version"}, 0, "nftfw ", ""}, // whoever asks Docker says so
		{"NFTFW_TABLE", "accept", []string{"version"}, exitUsage, "", "no keyword of nft"},
		{"NFTFW_LOG_LEVEL", "loud", []string{"version"}, exitUsage, "", `NFTFW_LOG_LEVEL "loud": want debug, info, warn or error`},
		{"NFTFW_LOG_FORMAT", "xml", []string{"version"}, exitUsage, "", `NFTFW_LOG_FORMAT "xml": want text or json`},
		{"NFTFW_POLICY", "/does/not/exist.yaml", []string{"check"}, exitUsage, "", "/does/not/exist.yaml does not exist"},
		{"NFTFW_SOCKET", "/does/not/exist.sock", []string{"reload"}, exitDaemon, "", "no daemon listens on /does/not/exist.sock"},
	}
	for _, tt := range tests {
		t.Run(tt.name+"="+tt.value, func(t *testing.T) {
			t.Setenv(tt.name, tt.value)
			inProcess(t, "", tt.args...).expect(t, strings.Join(tt.args, " "), tt.status, tt.stdout, tt.stderr)
		})
	}
}

func TestDockerHost(t *testing.T) {
	for _, tt := range []struct{ nftfw, docker, want string }{
		{"", "", "unix:///var/run/docker.sock"},
		{"", "tcp://192.0.2.1:2375", "tcp://192.0.2.1:2375"},
		{"unix:///mine", "tcp://192.0.2.1:2375", "unix:///mine"},
	} {
		t.Setenv("NFTFW_DOCKER_HOST", tt.nftfw)
		t.Setenv("DOCKER_HOST", tt.docker)
		a := &app{}
		if err := a.globals(newRoot(a)); err != nil || a.dockerHost != tt.want {
			t.Errorf("NFTFW_DOCKER_HOST=%q DOCKER_HOST=%q: %q, %v, want %q", tt.nftfw, tt.docker, a.dockerHost, err, tt.want)
		}
	}
}

func TestEveryCommandHasAnExample(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		r := inProcess(t, "", args...)
		name := cmd.CommandPath()
		r.expect(t, name+" --help", 0, "Usage:", "")
		if cmd.HasParent() && !strings.Contains(r.stdout, "Examples:\n  ") {
			t.Errorf("%s --help has no example:\n%s", name, r.stdout)
		}
		if cmd.Short == "" {
			t.Errorf("%s has no summary", name)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(&app{}))
}

func TestVersionAndCompletion(t *testing.T) {
	inProcess(t, "", "version").expect(t, "version", 0, "nftfw "+version+"\n", "")
	for _, args := range []string{"version", "version --json"} {
		word := inProcess(t, "", strings.Fields(args)...)
		if flag := inProcess(t, "", strings.Fields("--"+args)...); flag != word {
			t.Errorf("--%s: %+v, want %+v as of the command", args, flag, word)
		}
	}
	var v map[string]string
	if err := json.Unmarshal([]byte(inProcess(t, "", "version", "--json").stdout), &v); err != nil || v["version"] != version {
		t.Errorf("version --json = %v, %v", v, err)
	}
	for shell, mark := range map[string]string{"bash": "complete -o", "zsh": "#compdef nftfw", "fish": "complete -c nftfw"} {
		inProcess(t, "", "completion", shell).expect(t, "completion "+shell, 0, mark, "")
	}
	inProcess(t, "").expect(t, "nothing", 0, "Usage:", "")
	inProcess(t, "", "help", "sets", "add").expect(t, "help sets add", 0, "--timeout", "")
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	writeFile(t, good, "version: 1\nsets: {office: [198.51.100.0/24]}\n")
	writeFile(t, bad, "version: 1\nmode: sleep\nsets:\n  trusted: [192.0.2.300]\nhost: {allow: [{ports: [0/tcp], from: offce}]}\n")

	inProcess(t, "", "check", good).expect(t, "good", 0, good+": ok\n", "")
	inProcess(t, "", "check", "--policy", good).expect(t, "good by flag", 0, good+": ok\n", "")
	inProcess(t, "", "check", good+"x").expect(t, "missing", exitUsage, "", good+"x does not exist")
	inProcess(t, "", "check", dir).expect(t, "a folder", exitUsage, "", dir)
	inProcess(t, "version: 1\n", "check", "-").expect(t, "good from stdin", 0, "<stdin>: ok\n", "")
	inProcess(t, "version: 1\nmode: sleep\n", "check", "-").expect(t, "bad from stdin", exitUsage, "", "<stdin>:2:7: expected enforce or observe")
	inProcess(t, "", "check", "/dev/zero").expect(t, "a file without end", exitUsage, "", "more than 16 MB")

	r := inProcess(t, "", "check", bad)
	r.expect(t, "bad", exitUsage, "", "")
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	var places []string
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "  ") }) // excerpts
	for _, line := range lines {
		var n, column int
		if _, err := fmt.Sscanf(strings.TrimPrefix(line, bad+":"), "%d:%d: ", &n, &column); err != nil {
			t.Errorf("no FILE:LINE:COL in %q", line)
		}
		places = append(places, fmt.Sprintf("%d:%d", n, column))
	}
	want := []string{"2:7", "4:13"}
	if excerpt := bad + `:2:7: expected enforce or observe, got "sleep"` + "\n  2 | mode: sleep\n    |       ^\n"; !strings.HasPrefix(r.stderr, excerpt) {
		t.Errorf("stderr does not begin with:\n%s\n%s", excerpt, r.stderr)
	}
	if len(places) < 4 || !cmp.Equal(want, places[:2]) {
		t.Errorf("mistakes at %v, want %v and two in line 5\n%s", places, want, r.stderr)
	}

	var answer checkResult
	r = inProcess(t, "", "check", bad, "--json")
	if err := json.Unmarshal([]byte(r.stdout), &answer); err != nil || r.status != exitUsage {
		t.Fatalf("check --json: status %d, %v\n%s", r.status, err, r.stdout)
	}
	if answer.OK || answer.File != bad || len(answer.Errors) != len(lines) || answer.Errors[0].Line != 2 || answer.Errors[0].Column != 7 {
		t.Errorf("check --json = %+v", answer)
	}
	for _, missing := range []string{good + "x", dir} {
		r = inProcess(t, "", "check", missing, "--json")
		r.expect(t, "check --json "+missing, exitUsage, `"ok": false`, missing)
		answer = checkResult{}
		if err := json.Unmarshal([]byte(r.stdout), &answer); err != nil || answer.File != missing || len(answer.Errors) != 1 || !strings.Contains(answer.Errors[0].Message, missing) {
			t.Errorf("check --json %s: %v\n%s", missing, err, r.stdout)
		}
	}
	r = inProcess(t, "", "check", good, "--json")
	want2 := checkResult{File: good, OK: true, Errors: []checkMessage{}, Warnings: []checkMessage{}}
	answer = checkResult{}
	if err := json.Unmarshal([]byte(r.stdout), &answer); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want2, answer); diff != "" || !strings.Contains(r.stdout, `"errors": []`) {
		t.Errorf("check --json of a good file (-want +got):\n%s", diff)
	}
}

// A mistake in the policy comes out as compilers print it, from every command
// that reads the file.
func TestBadPolicyEverywhere(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	writeFile(t, bad, "version: 1\nmode: sleep\n")
	t.Setenv("NFTFW_STATE_DIR", filepath.Join(dir, "state"))
	t.Setenv("NFTFW_SOCKET", filepath.Join(dir, "sock"))
	t.Setenv("NFTFW_DOCKER_HOST", "unix://"+filepath.Join(dir, "docker"))
	for _, args := range [][]string{{"check", bad}, {"check", "--policy", bad}, {"render", bad}, {"render", "--policy", bad}, {"ports", "--policy", bad}} {
		r := inProcess(t, "", args...)
		if r.status != exitUsage || !strings.HasPrefix(r.stderr, bad+":2:7: ") {
			t.Errorf("%s: status %d, stderr %s", strings.Join(args, " "), r.status, r.stderr)
		}
	}
}

func TestNeedsADaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "sock")
	for _, args := range [][]string{{"reload"}, {"confirm"}} {
		r := inProcess(t, "", append(args, "--socket", socket)...)
		r.expect(t, args[0], exitDaemon, "", socket)
		r.oneLine(t, args[0])
	}
	writeFile(t, socket, "") // what is no socket listens as little
	inProcess(t, "", "reload", "--socket", socket).expect(t, "reload on a file", exitDaemon, "", socket)
}

func TestReadEntries(t *testing.T) {
	got, err := readEntries(strings.NewReader("# a list\n192.0.2.1\n\n  203.0.113.0/24  # office\r\n2001:db8::1-2001:db8::9"), "list")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"192.0.2.1", "203.0.113.0/24", "2001:db8::1-2001:db8::9"}, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	_, err = readEntries(strings.NewReader("192.0.2.1\n\n# x\n192.0.2.300\n"), "list")
	if status, message := classify(err); status != exitUsage || !strings.Contains(message, "list:4: ") {
		t.Errorf("error %d %q, want line 4", status, message)
	}
}

func TestParseTimeout(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "90s": 90 * time.Second, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour, "2w": 336 * time.Hour,
		"1w2d3h": (7*24 + 2*24 + 3) * time.Hour, "1500ms": 1500 * time.Millisecond,
	} {
		if got, err := parseTimeout("timeout", text); err != nil || got != want {
			t.Errorf("parseTimeout(%q) = %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "-1h", "1", "d", "1d2w", "1 h", "99999d", "1h1d", "inf", "1e9s"} {
		if got, err := parseTimeout("timeout", text); err == nil {
			t.Errorf("parseTimeout(%q) = %s", text, got)
		}
	}
}

// fullDisk takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// An answer that nobody gets is none.
func TestOutputThatFails(t *testing.T) {
	for _, command := range []string{"version", "version --json", "help"} {
		var stderr bytes.Buffer
		status := execute(t.Context(), strings.Fields(command), strings.NewReader(""), fullDisk{}, &stderr)
		if want := "nftfw: write output: no space left on device\n"; status != exitFailed || stderr.String() != want {
			t.Errorf("%s: status %d, stderr %q, want %q", command, status, stderr.String(), want)
		}
	}
}

func TestHelpOfNoCommand(t *testing.T) {
	for _, args := range [][]string{{"help", "bogus"}, {"help", "sets", "bogus"}} {
		r := inProcess(t, "", args...)
		r.expect(t, strings.Join(args, " "), exitUsage, "", "no command")
		r.oneLine(t, strings.Join(args, " "))
	}
	inProcess(t, "", "help", "sets", "add").expect(t, "help sets add", 0, "nftfw sets add", "")
}

func TestPaintOnlyOnATerminal(t *testing.T) {
	var out bytes.Buffer
	a := &app{stdout: &output{Writer: &out}}
	if got := a.paint(red, "text"); got != "text" {
		t.Errorf("painted %q though it is no terminal", got)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	a.stdout.Writer = null
	if got := a.paint(red, "text"); got != "text" {
		t.Errorf("painted %q though it is no terminal", got)
	}
}
