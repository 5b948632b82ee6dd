package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nftfw/nftfw/pkg/api"
)

const testPolicy = `version: 1
sets:
  trusted: [192.0.2.10]
  office: {comment: head office, entries: [198.51.100.0/24]}
`

// with runs a test without a daemon and with one, the table being in force.
func with(t *testing.T, f func(h *host)) {
	for _, daemon := range []bool{false, true} {
		name := "alone"
		if daemon {
			name = "daemon"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.writePolicy(testPolicy)
			if daemon {
				h.daemon()
			} else {
				h.ok("apply")
			}
			f(h)
		})
	}
}

func TestSets(t *testing.T) {
	with(t, func(h *host) {
		h.expect("sets list", 0, "head office", "")
		h.expect("sets add trusted 203.0.113.77/24 2001:db8::/32 203.0.113.5-203.0.113.9 ::ffff:192.0.2.77", 0, "", "")
		for set, addrs := range map[string][]string{
			"trusted4": {"192.0.2.10", "203.0.113.255", "192.0.2.77"},
			"trusted6": {"2001:db8:5::1"},
		} {
			for _, addr := range addrs {
				if !h.inKernel(set, addr) {
					h.Errorf("%s is not in the kernel's %s", addr, set)
				}
			}
		}
		got := h.entries("trusted")
		for entry, source := range map[string]string{
			"192.0.2.10": "policy", "203.0.113.0/24": "runtime", "2001:db8::/32": "runtime",
			"203.0.113.5-203.0.113.9": "runtime", "192.0.2.77": "runtime",
		} {
			if got[entry].Source != source {
				h.Errorf("entry %s from %q, want %q: %v", entry, got[entry].Source, source, got)
			}
		}

		// All of a call or nothing.
		h.expect("sets add trusted 192.0.2.101 192.0.2.300", exitUsage, "", `"192.0.2.300" is not an address`)
		h.expect("sets del trusted 192.0.2.77 192.0.2.102", exitFailed, "", "192.0.2.102 is not in set trusted (--exist")
		if got := h.entries("trusted"); len(got) != 5 || h.inKernel("trusted4", "192.0.2.101") || !h.inKernel("trusted4", "192.0.2.77") {
			h.Errorf("a refused call changed the set: %v", got)
		}
		h.expect("sets del trusted 192.0.2.77 192.0.2.102 --exist", 0, "", "")
		h.expect("sets del trusted 192.0.2.10", exitFailed, "", "192.0.2.10 in set trusted is written at "+h.policy+":3")
		h.expect("sets add offce 192.0.2.1", exitUsage, "", `no set "offce" in the policy in force (it declares blocked, office, swarm_nodes, trusted)`)
		for _, args := range []string{"sets show x", "sets test x 192.0.2.1", "sets flush x", "sets del x 192.0.2.1"} {
			r := h.expect(args, exitUsage, "", `no set "x"`)
			r.oneLine(h.T, args)
		}

		// A narrower entry goes, what covers it stays.
		h.expect("sets del trusted 203.0.113.5-203.0.113.9", 0, "", "")
		h.expect("sets test trusted 203.0.113.7", 0, "203.0.113.7 is in trusted", "")
		h.expect("sets test trusted 203.0.113.0/24", 0, "", "")
		h.expect("sets test trusted 203.0.112.0/23", exitNo, "203.0.112.0/23 is not in trusted", "")
		h.expect("sets test trusted 203.0.114.1", exitNo, "203.0.114.1 is not in trusted", "")
		h.expect("sets test trusted 203.0.114", exitUsage, "", "is not an address")
		if m := jsonOf[api.Membership](h, "sets", "test", "trusted", "203.0.114.1"); m.In || m.Name != "trusted" || m.Address != "203.0.114.1" {
			h.Errorf("test --json = %+v", m)
		}

		h.expect("sets flush trusted", 0, "", "1 entries of set trusted stay: they are written in")
		if got := h.entries("trusted"); len(got) != 1 || h.inKernel("trusted4", "203.0.113.7") || !h.inKernel("trusted4", "192.0.2.10") {
			h.Errorf("after a flush: %v", got)
		}
	})
}

// A shell is told the sets' names, with the daemon or without.
func TestCompletion(t *testing.T) {
	with(t, func(h *host) {
		h.ok("sets", "add", "trusted", "2001:db8::1", "203.0.113.0/24")
		for args, want := range map[string]string{
			"sets add ": "blocked\noffice\nswarm_nodes\ntrusted\n:4\n", "sets add trusted ": ":4\n", "sets list ": ":4\n",
			"sets del ": "blocked\noffice\nswarm_nodes\ntrusted\n:4\n", "sets del trusted ": "203.0.113.0/24\n2001:db8::1\n:4\n",
			"sets del trusted 203.0.113.0/24 ": "2001:db8::1\n:4\n", "sets del office ": ":4\n", "sets del nosuch ": ":4\n",
			"explain --expect ": "accept\ndrop\n:4\n", "status --log-level ": "debug\ninfo\nwarn\nerror\n:4\n",
			"explain --in ": "lo\n:4\n", "explain --from ": ":4\n", "explain --to ": ":4\n", "ports --open-to ": ":4\n",
			"apply --confirm ": ":4\n", "sets add trusted --timeout ": ":4\n", "status --table ": ":4\n",
			"down ": ":4\n", "run ": ":4\n", "version ": ":4\n", "confirm ": ":4\n", "reload ": ":4\n", "status ": ":4\n",
			"doctor ": ":4\n", "watch ": ":4\n", "apply ": ":4\n",
			"check ": ":0\n", "render ": ":0\n", "import ": ":0\n", "status --policy ": ":0\n", "status --state-dir ": ":16\n",
			"sets add trusted --file ": ":0\n", "sets del trusted --file ": ":0\n", "ports --picture ": ":0\n",
		} {
			if got := h.ok(append(append([]string{"__complete"}, strings.Fields(args)...), "")...); got != want {
				h.Errorf("%s: %q, want %q", args, got, want)
			}
		}
	})
}

func TestSetsFromAFile(t *testing.T) {
	with(t, func(h *host) {
		list := filepath.Join(h.dir, "list")
		writeFile(h.T, list, "# drop\n192.0.2.1 # one\n\n2001:db8::1\n")
		h.ok("sets", "add", "blocked", "--file", list, "192.0.2.9")
		if got := h.entries("blocked"); len(got) != 3 {
			h.Errorf("entries of the file and the argument: %v", got)
		}
		h.feed("192.0.2.1\n#\n2001:db8::1\n", "sets", "del", "blocked", "--file", "-").expect(h.T, "del --file -", 0, "", "")
		h.feed("192.0.2.2\n# x\n192.0.2.3-192.0.2.1\n", "sets", "add", "blocked", "--file", "-").
			expect(h.T, "add --file -", exitUsage, "", "standard input:3: ")
		h.feed("\ufeff192.0.2.9\r\n", "sets", "add", "blocked", "--file", "-").expect(h.T, "a list of an editor's on Windows", 0, "", "")
		h.feed("192.0.2.2\n"+strings.Repeat("x", bufio.MaxScanTokenSize)+"\n", "sets", "add", "blocked", "--file", "-").
			expect(h.T, "a line without end", exitUsage, "", "standard input:2: ")
		writeFile(h.T, list, "192.0.2.4\n192.0.2.5 192.0.2.6\n")
		h.expect("sets add blocked --file "+list, exitUsage, "", list+":2: ")
		if got := h.entries("blocked"); len(got) != 1 || got["192.0.2.9"].Source != "runtime" {
			h.Errorf("entries after refused files: %v", got)
		}
	})
}

func TestSetsTimeout(t *testing.T) {
	with(t, func(h *host) {
		h.ok("sets", "add", "trusted", "192.0.2.20", "--timeout", "1h", "--comment", "on call")
		first := h.entries("trusted")["192.0.2.20"]
		if first.ExpiresAt == nil || first.Comment != "on call" {
			h.Fatalf("entry %+v", first)
		}
		if left := time.Until(*first.ExpiresAt); left < 59*time.Minute || left > time.Hour {
			h.Errorf("expires in %s", left)
		}
		if got := h.nft("list", "set", "inet", "nftfw", "trusted4"); !strings.Contains(got, "192.0.2.20 timeout 1h") && !strings.Contains(got, "192.0.2.20 timeout 59m") {
			h.Errorf("the kernel has no timeout of an hour: %s", got)
		}
		h.ok("sets", "add", "trusted", "192.0.2.20", "--timeout", "2d")
		second := h.entries("trusted")["192.0.2.20"]
		if second.ExpiresAt == nil || time.Until(*second.ExpiresAt) < 47*time.Hour || second.Comment != "" {
			h.Errorf("renewed entry %+v", second)
		}
		h.ok("sets", "add", "trusted", "192.0.2.20")
		if e := h.entries("trusted")["192.0.2.20"]; e.ExpiresAt != nil {
			h.Errorf("entry without a timeout %+v", e)
		}
		h.ok("sets", "add", "trusted", "192.0.2.21", "--timeout", "300ms")
		h.await("the entry to end", func() bool { return !h.inKernel("trusted4", "192.0.2.21") })
		h.expect("sets test trusted 192.0.2.21", exitNo, "", "")
	})
}

func TestManyAtOnce(t *testing.T) {
	with(t, func(h *host) {
		const n = 30
		var gone []string
		for i := range n {
			gone = append(gone, fmt.Sprintf("10.1.0.%d", i))
		}
		h.ok(append([]string{"sets", "add", "trusted"}, gone...)...)
		var all sync.WaitGroup
		for i := range n {
			for _, args := range [][]string{{"add", fmt.Sprintf("10.2.0.%d", i)}, {"del", gone[i]}} {
				all.Go(func() {
					if r := h.run("sets", args[0], "trusted", args[1]); r.status != 0 {
						h.Errorf("sets %s %s: status %d, %s", args[0], args[1], r.status, r.stderr)
					}
				})
			}
		}
		all.Wait()
		got := h.entries("trusted")
		if len(got) != n+1 {
			h.Errorf("%d entries, want %d", len(got), n+1)
		}
		for i := range n {
			if _, ok := got[fmt.Sprintf("10.2.0.%d", i)]; !ok {
				h.Errorf("10.2.0.%d was lost", i)
			}
		}
		list := h.nft("list", "set", "inet", "nftfw", "trusted4")
		if !strings.Contains(list, fmt.Sprintf("10.2.0.0-10.2.0.%d", n-1)) || strings.Contains(list, "10.1.0.") {
			h.Errorf("the kernel has %s", list)
		}
	})
}

func TestKilledDaemonForgetsNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	d := h.daemon()
	done := make(chan []string)
	go func() {
		var kept []string
		for i := range 40 {
			entry := fmt.Sprintf("10.3.%d.1", i)
			if h.run("sets", "add", "trusted", entry).status == 0 {
				kept = append(kept, entry)
			}
		}
		done <- kept
	}()
	h.await("a few entries", func() bool { return h.inKernel("trusted4", "10.3.5.1") })
	d.stop(syscall.SIGKILL)
	// A commit of the commands between the two questions that nft asks about one
	// address makes it say no: what is there is found by asking again.
	h.await("the rules that the daemon left", func() bool { return h.inKernel("trusted4", "192.0.2.10") })
	kept := <-done
	h.daemon()
	got := h.entries("trusted")
	for _, entry := range kept {
		if _, ok := got[entry]; !ok || !h.inKernel("trusted4", strings.TrimSpace(entry)) {
			t.Errorf("%s was added with status 0 and is lost", entry)
		}
	}
	if len(kept) < 20 {
		t.Errorf("only %d of 40 additions went through beside a daemon that was killed once", len(kept))
	}
}

func TestLife(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	// Before anything.
	h.expect("status", exitNo, "enforced:    no", "")
	if s := jsonOf[api.Status](h, "status"); s.Enforced || s.Down || s.Table != "nftfw" || s.Daemon != (api.DaemonStatus{}) || s.Docker.Connected {
		t.Errorf("status = %+v", s)
	}
	h.expect("plan", exitChanges, "+ table inet nftfw", "")
	h.expect("apply --dry-run", 0, "+ table inet nftfw", "")
	h.expect("sets list", 0, "trusted", "")
	if _, err := os.Stat(h.state); err == nil {
		t.Error("a command that only reads made the state directory")
	}
	h.expect("sets add office 203.0.113.9", 0, "", "nothing is enforced")
	if got := h.nft("list", "ruleset"); got != "" {
		t.Fatalf("plan changed the kernel:\n%s", got)
	}
	h.expect("apply --confirm 60s", exitDaemon, "", "--confirm needs it to put the former policy back; start it with `systemctl start nftfw`")
	// A policy.
	h.expect("apply", 0, "policy applied", "")
	h.expect("plan", 0, "", "")
	for _, list := range []string{"lines", "plan", "ports"} {
		h.expect("--json plan", 0, fmt.Sprintf("%q: []", list), "")
	}
	h.expect("status", 0, "enforced:    yes", "")
	if !h.inKernel("office4", "203.0.113.9") {
		t.Error("what was added before the first apply is not in force")
	}
	s := jsonOf[api.Status](h, "status")
	if s.Policy.Path != h.policy || s.Policy.Source != "file" || len(s.Policy.Hash) != 64 || s.Mode != "enforce" || s.Sets["office"].Entries != 2 {
		t.Errorf("status = %+v", s)
	}
	// Another one.
	h.writePolicy(strings.ReplaceAll(testPolicy, "192.0.2.10", "192.0.2.11"))
	// A path that is not there is a slip of the pen, not the wish for the default.
	for _, args := range []string{"apply --policy " + h.dir + "/typo.yaml", "plan --policy " + h.dir + "/typo.yaml", "render " + h.dir + "/typo.yaml"} {
		h.expect(args, exitUsage, "", h.dir+"/typo.yaml")
	}
	if c := jsonOf[api.Change](h, "plan"); !c.Changed || len(c.Lines) == 0 {
		t.Errorf("plan --json = %+v", c)
	}
	h.expect("plan", exitChanges, "192.0.2.11", "")
	h.writePolicy("version: 1\nmode: sleep\n")
	for _, args := range []string{"apply", "plan", "apply --dry-run"} {
		r := h.expect(args, exitUsage, "", "")
		if !strings.Contains("\n"+r.stderr, "\n"+h.policy+":2:7: ") {
			t.Errorf("%s: no line FILE:LINE:COL in %s", args, r.stderr)
		}
	}
	h.expect("status", 0, "", "")
	// The end.
	h.expect("down", exitUsage, "", "say --yes")
	h.expect("down --yes", 0, "table removed", "")
	h.expect("down --yes", 0, "there was no table", "")
	h.expect("status", exitNo, "enforced:    no (removed by `nftfw down`; `nftfw apply` puts it back)", "")
	if s := jsonOf[api.Status](h, "status"); !s.Down {
		t.Errorf("status = %+v", s)
	}
	if got := h.nft("list", "ruleset"); got != "" {
		t.Errorf("after down:\n%s", got)
	}
}

func TestDaemonLife(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	d := h.daemon()
	info, err := os.Stat(h.socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket %v, %v, want mode 0660", info.Mode(), err)
	}
	h.expect("reload", 0, "nothing changed", "")
	h.expect("confirm", exitNo, "", "nothing waits for a confirmation")

	// A reload of a file that is not whole yet.
	h.writePolicy(testPolicy[:len(testPolicy)-3])
	r := h.expect("reload", exitUsage, "", "")
	if !strings.HasPrefix(r.stderr, h.policy+":") {
		t.Errorf("reload: no FILE:LINE:COL in %s", r.stderr)
	}
	h.expect("status", 0, h.policy+":", "")
	h.writePolicy(strings.ReplaceAll(testPolicy, "192.0.2.10", "192.0.2.11"))
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.await("SIGHUP to reload", func() bool { return h.inKernel("trusted4", "192.0.2.11") })

	// Somebody flushes.
	h.nft("flush", "ruleset")
	h.await("the table to come back", func() bool { return jsonOf[api.Status](h, "status").Restores == 1 })
	s := jsonOf[api.Status](h, "status")
	if s.Restored == nil || s.Restored.Process != "nft" || !h.inKernel("trusted4", "192.0.2.11") {
		t.Errorf("restored %+v", s.Restored)
	}
	if !strings.Contains(d.log.String(), "process=nft") {
		t.Errorf("the log does not name the culprit:\n%s", d.log)
	}

	// A trial, and its end.
	h.writePolicy(testPolicy)
	h.expect("apply --confirm 60s", 0, "unless you call `nftfw confirm`", "")
	h.expect("reload", exitFailed, "", "waits for `nftfw confirm`")
	h.expect("confirm", 0, "stays in force", "")
	h.writePolicy(strings.ReplaceAll(testPolicy, "192.0.2.10", "192.0.2.12"))
	h.expect("apply --confirm 1s", 0, "", "")
	h.await("the former policy", func() bool { return h.inKernel("trusted4", "192.0.2.10") && !h.inKernel("trusted4", "192.0.2.12") })
	h.expect("reload", exitFailed, "", "nobody confirmed")
	h.expect("status", 0, "nobody confirmed", "")

	h.expect("status", 0, "docker:      not followed (--no-docker)", "")
	h.expect("down --yes", 0, "table removed", "")
	h.expect("status", exitNo, "(removed by `nftfw down`", "")
	h.expect("ports", 0, "nothing is enforced since `nftfw down`: ", "")
	h.expect("ports --open-to 192.0.2.1", 0, "nothing is enforced since `nftfw down`", "")
	h.writePolicy("mode: observe\n" + testPolicy)
	h.expect("apply", 0, "policy applied", "")
	h.expect("ports", 0, "mode: observe refuses nothing: ", "")
	h.expect("ports --open-to 192.0.2.1", 0, "mode: observe refuses nothing, so ", "")
	h.writePolicy(strings.ReplaceAll(testPolicy, "192.0.2.10", "192.0.2.12"))
	h.expect("apply", 0, "policy applied", "")

	// A second daemon does not get the state; the first stops and the rules stay.
	if status := d.stop(syscall.SIGTERM); status != 0 {
		t.Errorf("status %d after SIGTERM:\n%s", status, d.log)
	}
	if !h.inKernel("trusted4", "192.0.2.12") {
		t.Error("the rules went with the daemon")
	}
	h.expect("status", 0, "not running", "")
	h.expect("reload", exitDaemon, "", "no daemon listens")
}

func TestStatusSaysWhichPolicy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy("version: 1\nmode: sleep\n")
	d := h.daemon()
	h.expect("status", 0, "embedded default", "")
	h.writePolicy(testPolicy)
	h.ok("apply")
	h.writePolicy("version: 1\nmode: sleep\n")
	d.stop(syscall.SIGKILL)
	h.daemon()
	s := jsonOf[api.Status](h, "status")
	if !s.Enforced || s.Policy.Source != "last-good" || !strings.HasPrefix(s.Policy.Error, h.policy+":2:7: ") {
		t.Errorf("status = %+v", s.Policy)
	}
	if !h.inKernel("trusted4", "192.0.2.10") {
		t.Error("the last good policy is not in force")
	}
}

// A flag that was given, and at which a daemon does not look, is spoken of.
func TestFlagsOfAnotherDaemon(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	h.daemon()
	other := filepath.Join(h.dir, "other.yaml")
	writeFile(t, other, testPolicy)
	const warning = "nftfw: warning: the daemon that answers does not look at "
	for _, args := range []string{"status", "ports", "sets list", "sets add trusted 192.0.2.30", "explain --from 192.0.2.1 --to 192.0.2.2", "reload"} {
		if r := h.run(strings.Fields(args)...); r.status != 0 || r.stderr != "" {
			t.Errorf("%s: status %d, %s", args, r.status, r.stderr)
		}
		r := h.run(append(strings.Fields(args), "--policy", other)...)
		if want := fmt.Sprintf("%s--policy %s (it has %s)\n", warning, other, h.policy); r.status != 0 || r.stderr != want {
			t.Errorf("%s --policy: status %d, %q, want %q", args, r.status, r.stderr, want)
		}
	}
	r := h.run("ports", "--picture", filepath.Join(h.dir, "x.svg"), "--table", "wall", "--state-dir", h.dir) // it asks twice
	if want := fmt.Sprintf("%s--state-dir %s (it has %s), --table wall (it has nftfw)\n", warning, h.dir, h.state); r.stderr != want {
		t.Errorf("%q, want %q", r.stderr, want)
	}
	for _, args := range []string{"plan", "apply"} { // they hand the policy over
		if r := h.run(args, "--policy", other); strings.Contains(r.stderr, "does not look") {
			t.Errorf("%s: %s", args, r.stderr)
		}
	}
	h.env = append(h.env, "NFTFW_TABLE=wall")
	h.expect("status", 0, "", warning+"NFTFW_TABLE wall (it has nftfw)\n")
}

func TestTableName(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	h.ok("apply", "--table", "wall")
	if got := h.nft("list", "tables"); strings.TrimSpace(got) != "table inet wall" {
		t.Errorf("tables %q", got)
	}
	h.expect("status --table wall", 0, "inet wall", "")
	h.expect("status", exitNo, "", "")
	h.ok("sets", "add", "trusted", "192.0.2.30", "--table", "wall")
	if got := h.nft("list", "set", "inet", "wall", "trusted4"); !strings.Contains(got, "192.0.2.30") {
		t.Errorf("set %s", got)
	}
	h.ok("down", "--yes", "--table", "wall")
}

// Without a daemon the rules of the table are read, and not only that there is one.
func TestAlteredRules(t *testing.T) {
	h := newHost(t)
	h.writePolicy(testPolicy)
	h.ok("apply")
	for name, script := range map[string][]string{
		"a rule more": {"insert", "rule", "inet", "nftfw", "input", "accept"},
		"no rules":    {"flush", "chain", "inet", "nftfw", "input"},
		"a policy":    {"add", "chain", "inet", "nftfw", "forward", "{", "policy", "accept", ";", "}"},
	} {
		h.expect("status", 0, "enforced:    yes", "")
		h.nft(script...)
		h.expect("status", exitNo, "nftfw apply", "")
		if s := h.run("status", "--json"); !strings.Contains(s.stdout, `"enforced": false`) {
			t.Errorf("%s: %s", name, s.stdout)
		}
		h.expect("explain --from 192.0.2.1 --to 192.0.2.2:80", exitFailed, "", "not those that nftfw put there")
		h.expect("sets add trusted 192.0.2.77", exitFailed, "", "not those that nftfw put there")
		h.ok("apply")
		h.expect("sets test trusted 192.0.2.77", exitNo, "", "")
	}
}

// A table that nft made of the rendered text is the same as one of nftfw's.
func TestRenderedTableIsNoChange(t *testing.T) {
	h := newHost(t)
	h.writePolicy(testPolicy)
	text := h.ok("render")
	if r := runCommand(t, h.command("nft", "-f", "-"), text); r.status != 0 {
		t.Fatalf("nft: %s", r.stderr)
	}
	h.expect("plan", 0, "", "")
}

func TestExplainAndRender(t *testing.T) {
	with(t, func(h *host) {
		ask := "explain --in eth0 --from 203.0.113.9 --to "
		h.expect("explain --from 192.0.2.1 --to 192.0.2.2:80 --expect accept", exitNo, "verdict: drop", "")
		h.expect("explain --from 192.0.2.1 --to 192.0.2.2:80 --expect drop", 0, "verdict: drop", "")
		r := h.expect(ask+"127.0.0.1:80", 0, "verdict: ", "")
		if lines := strings.Split(strings.TrimSpace(r.stdout), "\n"); !strings.HasPrefix(lines[len(lines)-1], "verdict: ") {
			h.Errorf("the last line is no verdict:\n%s", r.stdout)
		}
		e := jsonOf[api.Explanation](h, "explain", "--from", "192.0.2.1", "--to", "192.0.2.2:80/udp")
		if e.Verdict != "drop" || len(e.Steps) == 0 || e.DecidedBy == "" {
			h.Errorf("explain --json = %+v", e)
		}
		text := h.ok("render")
		for _, before := range []string{"", "add table inet nftfw; delete table inet nftfw\n"} {
			if r := runCommand(h.T, h.command("nft", "-c", "-f", "-"), before+text); r.status != 0 {
				h.Errorf("nft does not accept what render prints behind %q: %s", before, r.stderr)
			}
		}
		if got := jsonOf[map[string]string](h, "render"); got["table"] != "nftfw" || got["ruleset"] != text {
			h.Errorf("render --json = %v", got)
		}
	})
}

func TestPortsWithoutDocker(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	for _, args := range []string{"ports", "plan", "render"} {
		r := h.run(args)
		if !strings.Contains(r.stderr, "start docker, or name its socket with --docker-host)") {
			t.Errorf("%s: %s", args, r.stderr)
		}
	}
	r := h.expect("ports", exitFailed, "", "ask Docker what runs")
	r.oneLine(t, "ports")
	h.daemon()
	h.expect("ports", 0, "CONTAINER", "")
	picture := filepath.Join(h.dir, "ports.svg")
	if got, want := h.ok("ports", "--json", "--picture", picture), h.ok("ports", "--json"); got != want {
		t.Errorf("ports --picture --json = %s, want %s", got, want)
	}
	if _, err := os.Stat(picture); err != nil {
		t.Error(err)
	}
	if got := h.ok("ports", "--json"); !strings.Contains(got, `"ports": []`) {
		t.Errorf("ports --json = %s", got)
	}
}

// Whoever may not gets one clear line and status 5.
func TestNoRights(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	copyFile(t, h.program, filepath.Join(h.dir, "nftfw"))
	h.program = filepath.Join(h.dir, "nftfw")
	if err := os.Chmod(h.policy, 0o644); err != nil {
		t.Fatal(err)
	}
	h.user = &syscall.Credential{Uid: 65534, Gid: 65534}
	h.expect("check", 0, "ok", "")
	r := h.expect("status", exitFailed, "", "run as root")
	r.oneLine(t, "status")
	for range 2 { // with no state directory, and with root's
		for _, args := range []string{"apply", "sets add trusted 192.0.2.1", "down --yes", "run"} {
			r := h.expect(args, exitFailed, "", "permission denied: run as root")
			r.oneLine(t, args)
		}
		h.user = nil
		h.expect("sets add trusted 192.0.2.99", 0, "", "")
		h.user = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	for _, args := range []string{"sets test trusted 192.0.2.99", "sets show trusted", "sets list"} {
		r := h.expect(args, exitFailed, "", "run as root")
		r.oneLine(t, args)
	}
	mine := filepath.Join(h.dir, "mine")
	if err := os.Mkdir(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(mine, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"status", "apply", "plan", "down --yes", "sets add trusted 192.0.2.1"} {
		r := h.expect(args+" --state-dir "+mine, exitFailed, "", "CAP_NET_ADMIN")
		r.oneLine(t, args)
	}
	h.user = nil
	h.daemon()
	h.user = &syscall.Credential{Uid: 65534, Gid: 65534}
	for _, args := range []string{"status", "reload", "sets add trusted 192.0.2.1", "apply"} {
		r := h.expect(args, exitFailed, "", "not allowed to open "+h.socket+": run as root, or join the group nftfw")
		r.oneLine(t, args)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// A refusal by the kernel changes nothing and names what is in the way.
func TestKernelRefuses(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	h.ok("apply")
	// A table that another process owns cannot be written to.
	h.nft("delete", "table", "inet", "nftfw")
	owner := h.command("nft", "-i")
	in, err := owner.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = owner.Wait() }()
	if _, err := in.Write([]byte("add table inet nftfw { flags owner; }\n")); err != nil {
		t.Fatal(err)
	}
	h.await("the owner's table", func() bool { return strings.Contains(h.nft("list", "tables"), "nftfw") })
	for _, args := range []string{"apply", "down --yes"} {
		r := h.expect(args, exitFailed, "", "nftfw: table inet nftfw: ")
		if !strings.Contains(r.stderr, "owns the table") {
			t.Errorf("%s: no word of what is in the way: %s", args, r.stderr)
		}
	}
}

// With damaged sets and an older generation of them a command goes on with what the
// table holds, which is what was acknowledged.
func TestDamagedSetsBesideATable(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	h.ok("apply")
	h.ok("sets", "add", "trusted", "192.0.2.20")
	h.ok("sets", "add", "trusted", "192.0.2.22")
	h.ok("sets", "del", "trusted", "192.0.2.20")
	for _, args := range []string{"sets add trusted 192.0.2.24", "apply"} {
		writeFile(t, filepath.Join(h.state, "sets.json"), "junk")
		h.expect(args, 0, "", "sets.json")
		if h.inKernel("trusted4", "192.0.2.20") || !h.inKernel("trusted4", "192.0.2.22") || !h.inKernel("trusted4", "192.0.2.24") {
			t.Errorf("%s: what was acknowledged is not in force", args)
		}
		h.expect("sets test trusted 192.0.2.22", 0, "", "")
		h.expect("sets test trusted 192.0.2.20", exitNo, "", "")
	}
}

// With damaged state a command changes nothing and names the file; down works.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.writePolicy(testPolicy)
	h.ok("apply")
	h.ok("sets", "add", "trusted", "192.0.2.20")
	file := filepath.Join(h.state, "sets.json")
	for _, text := range []string{"", `{"version":1,"sets":{"trus`} {
		writeFile(t, file, text)
		h.expect("sets add trusted 192.0.2.21", exitFailed, "", file)
		h.expect("apply", exitFailed, "", file)
		h.expect("status", 0, "", file)
		if !h.inKernel("trusted4", "192.0.2.20") || h.inKernel("trusted4", "192.0.2.21") {
			t.Error("the kernel's set changed")
		}
	}
	h.expect("down --yes", 0, "", file)
}
