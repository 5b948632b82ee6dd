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
		"thread-self/net/ip_tables_names":         "nat\nfilter\n",
		"thread-self/net/ip6_tables_names":        "filter\n",
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
	want := Facts{
		LegacyTables: []string{"filter", "nat"}, BridgeNF4: true, RouteLocalnet: []string{"eth0"},
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
