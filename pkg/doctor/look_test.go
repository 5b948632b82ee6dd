package doctor

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/policy"
)

// sameAddrs lets addresses be compared, of which the facts hold some.
var sameAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestReadProc(t *testing.T) {
	proc := t.TempDir()
	for name, text := range map[string]string{
		"thread-self/net/ip_tables_names":         "nat\nfilter\nraw\n",
		"thread-self/net/ip6_tables_names":        "filter\nmangle\n",
		"thread-self/net/ip_vs":                   "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port\nTCP  C6120001:0050 rr\n  -> 0A000002:0050      Masq    1      0          0\nFWM  00000001 rr\n",
		"sys/net/bridge/bridge-nf-call-iptables":  "1\n",
		"sys/net/bridge/bridge-nf-call-ip6tables": "0\n",
		"sys/net/ipv4/conf/eth0/route_localnet":   "1\n",
		"sys/net/ipv4/conf/lo/route_localnet":     "0\n",
	} {
		path := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got Facts
	got.readProc(proc)
	got.readLegacy(proc, func(table string, v6 bool) (bool, error) {
		if table == "mangle" {
			return false, unix.EPERM
		}
		return table == "nat" || v6, nil
	})
	want := Facts{
		LegacyTables: []string{"filter", "nat"}, LegacyUnread: []string{"mangle"}, BridgeNF4: true, RouteLocalnet: []string{"eth0"},
		IPVS: []string{"TCP C6120001:0050 rr", "FWM 00000001 rr"},
	}
	if diff := cmp.Diff(want, got, sameAddrs); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	var none Facts
	none.readProc(filepath.Join(proc, "nowhere"))
	if diff := cmp.Diff(Facts{}, none, sameAddrs); diff != "" {
		t.Errorf("facts of a kernel without any (-want +got):\n%s", diff)
	}
}

// What a mere look with iptables-legacy makes is nothing; a rule is, and a chain,
// and a policy that drops.
func TestLegacyHolds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	for v6, command := range map[bool]string{false: "iptables-legacy", true: "ip6tables-legacy"} {
		if _, err := exec.LookPath(command); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip("needs iptables-legacy: integration/install-deps.sh installs it")
		}
		for _, tt := range []struct {
			name, line string
			want       bool
		}{
			{"nothing", "-L", false},
			{"a rule", "-A INPUT -s ::/0 -j DROP", true},
			{"a chain", "-N mine", true},
			{"a policy", "-P FORWARD DROP", true},
			{"a policy that accepts", "-P FORWARD ACCEPT", false},
		} {
			t.Run(command+" "+tt.name, func(t *testing.T) {
				runtime.LockOSThread() // never unlocked: the thread dies with the test
				if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
					t.Fatal(err)
				}
				line := tt.line
				if !v6 {
					line = strings.ReplaceAll(line, "::/0", "0.0.0.0/0")
				}
				if out, err := exec.Command(command, strings.Fields(line)...).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", line, err, out)
				}
				got, err := legacyHolds("filter", v6)
				if err != nil || got != tt.want {
					t.Errorf("after %s: %v, %v, want %v", line, got, err, tt.want)
				}
			})
		}
	}
}

func TestReadPolicyFileThatIsOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	path := filepath.Join(dir, "policy.yaml")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("version: 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name         string
		folder, file os.FileMode
		want         []string
	}{
		{"neither", 0o775, 0o664, nil},
		{"the file", 0o755, 0o666, []string{path}},
		{"the folder", 0o777, 0o644, []string{dir}},
		{"a folder like /tmp", 0o777 | os.ModeSticky, 0o644, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.Chmod(dir, tt.folder); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, tt.file); err != nil {
				t.Fatal(err)
			}
			f := Facts{Options: Options{PolicyPath: path, StateDir: filepath.Join(dir, "none")}}
			f.readPolicy()
			if diff := cmp.Diff(tt.want, f.File.Open); diff != "" {
				t.Errorf("open (-want +got):\n%s", diff)
			}
		})
	}
}

// The table that policy compiles is known by what doctor looks for, and looking
// changes nothing.
func TestLookInNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread dies with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	k, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	ctx := context.Background()
	own, _ := policy.Compile(policy.Default(nil), nil, inventory.Snapshot{})
	other := *own
	other.Name = "other"
	if err := k.Commit(ctx, nft.Diff(nft.StateOf(nil), own, time.Now())); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	o := Options{
		PolicyPath: filepath.Join(dir, "policy.yaml"), StateDir: filepath.Join(dir, "state"),
		Socket: filepath.Join(dir, "sock"), NoDocker: true, Table: policy.TableName,
	}
	ids := func() []string {
		f := Look(ctx, o)
		if err := f.Blind(); err != nil {
			t.Error(err)
		}
		var ids []string
		for _, finding := range Examine(f) {
			ids = append(ids, finding.ID)
		}
		slices.Sort(ids)
		return ids
	}
	before := list(t)
	if diff := cmp.Diff([]string{"daemon-not-running"}, ids()); diff != "" {
		t.Errorf("own table (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(o.StateDir); err == nil {
		t.Error("Look made the state directory")
	}
	if diff := cmp.Diff(before, list(t)); diff != "" {
		t.Errorf("Look changed the ruleset (-before +after):\n%s", diff)
	}
	if err := k.Commit(ctx, nft.Diff(nft.StateOf(nil), &other, time.Now())); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"daemon-not-running", "second-nftfw"}, ids()); diff != "" {
		t.Errorf("a second one (-want +got):\n%s", diff)
	}
}

func list(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "table inet nftfw") {
		t.Fatalf("list ruleset: %v\n%s", err, out)
	}
	return string(out)
}
