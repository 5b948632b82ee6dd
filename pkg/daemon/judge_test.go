package daemon

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nftfw/nftfw/nft"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/links"
	"github.com/nftfw/nftfw/pkg/ruleset"
	"github.com/nftfw/nftfw/policy"
)

func flow(proto uint8, client, asked, server string) nft.Flow {
	end := netip.MustParseAddrPort
	return nft.Flow{Proto: proto, Src: end(client), Dst: end(asked), ReplySrc: end(server), ReplyDst: end(client)}
}

// judged gives a judge for the trio's host under revokePolicy, with one friend.
func judged(t testing.TB, table func(*ruleset.Table) *ruleset.Table) *judge {
	t.Helper()
	enterHost(t)
	run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
	run(t, "ip", "link", "set", "peer0", "up")
	run(t, "ip", "link", "add", "docker0", "type", "bridge")
	address(t, "eth0", host4+"/24", host6+"/64")
	address(t, "docker0", "172.17.0.1/16", "fd00:2::1/64")
	p, err := parsePolicy("policy.yaml", []byte(revokePolicy))
	if err != nil {
		t.Fatal(err)
	}
	c := newCore(Config{Table: "nftfw"}, nil, nil)
	c.setPolicy(p)
	c.links = []inventory.Link{{Index: 1, Name: "lo"}, {Index: 2, Name: "eth0", Kind: "veth"}, {Index: 3, Name: "docker0", Kind: "bridge"}}
	c.engine = trioEngine()
	routes, err := links.ReadRoutes()
	if err != nil {
		t.Fatal(err)
	}
	friends := friendsOf(t, client4, client6, "fe80::7")
	with := policy.WithSet(c.compile(), "friends", friends)
	return newJudge(table(with), nil, routes, c.links, time.Now())
}

func TestJudge(t *testing.T) {
	j := judged(t, func(t *ruleset.Table) *ruleset.Table { return t })
	ping := flow(1, other4+":0", host4+":0", host4+":0")
	ping.ICMPType = 8
	timestamp := ping
	timestamp.ICMPType = 13
	for _, tt := range []struct {
		name string
		flow nft.Flow
		want bool
	}{
		{"friend, DNAT", flow(6, client4+":4000", host4+":8080", container4+":80"), false},
		{"stranger, DNAT", flow(6, other4+":4000", host4+":8080", container4+":80"), true},
		{"stranger, DNAT, v6", flow(17, "["+other6+"]:4000", "["+host6+"]:8080", "["+container6+"]:80"), true},
		{"friend, straight to the container", flow(6, client4+":4000", container4+":80", container4+":80"), true},
		{"friend, to the host", flow(17, client4+":4000", host4+":9000", host4+":9000"), false},
		{"stranger, to the host", flow(17, other4+":4000", host4+":9000", host4+":9000"), true},
		{"friend at the other family's address", flow(6, "["+client6+"]:4000", "["+host6+"]:9000", "["+host6+"]:9000"), false},
		{"friend with a link-local address", flow(6, "[fe80::7]:4000", "["+host6+"]:9000", "["+host6+"]:9000"), false},
		{"stranger's echo", ping, false},
		{"stranger's other ICMP", timestamp, true},
		{"the host's own", flow(6, host4+":4000", other4+":443", other4+":443"), false},
		{"the host to its container", flow(6, "172.17.0.1:4000", container4+":80", container4+":80"), false},
		{"loopback", flow(6, "127.0.0.1:4000", "127.0.0.1:9000", "127.0.0.1:9000"), false},
		{"asked for loopback", flow(6, client4+":4000", "127.0.0.1:8080", container4+":80"), true},
		{"container to outside", flow(6, container4+":4000", other4+":443", other4+":443"), false},
		{"container to the host", flow(6, container4+":4000", host4+":22", host4+":22"), false},
		{"broadcast of a link", flow(17, other4+":137", "198.18.0.255:137", "198.18.0.255:137"), false},
		{"broadcast", flow(17, "0.0.0.0:68", "255.255.255.255:67", "255.255.255.255:67"), false},
		{"multicast", flow(17, other4+":5353", "224.0.0.251:5353", "224.0.0.251:5353"), false},
	} {
		if got := j.refuses(tt.flow); got != tt.want {
			t.Errorf("%s: refused %v, want %v", tt.name, got, tt.want)
		}
	}
}

// What docker-proxy seems to have begun was begun by its client.
func TestJudgeTurnsLateAnswers(t *testing.T) {
	j := judged(t, func(t *ruleset.Table) *ruleset.Table { return t })
	for _, tt := range []struct {
		name    string
		flow    nft.Flow
		turned  bool
		refused bool
	}{
		{"to a stranger", flow(17, host4+":8080", other4+":4000", other4+":4000"), true, true},
		{"to a stranger, v6", flow(17, "["+host6+"]:8080", "["+other6+"]:4000", "["+other6+"]:4000"), true, true},
		{"to a friend", flow(17, host4+":8080", client4+":4000", client4+":4000"), true, false},
		{"over TCP", flow(6, host4+":8080", other4+":4000", other4+":4000"), false, false},
		{"from a port of the host's own", flow(17, host4+":9000", other4+":4000", other4+":4000"), false, false},
		{"begun by the client", flow(17, other4+":4000", host4+":8080", host4+":8080"), false, false},
	} {
		got := j.answers([]nft.Flow{tt.flow})
		if (len(got) == 1) != tt.turned {
			t.Errorf("%s: turned %v", tt.name, got)
		}
		if len(got) == 1 && j.refuses(got[0]) != tt.refused {
			t.Errorf("%s: refused %v", tt.name, !tt.refused)
		}
	}
}

func TestJudgeOfDifferences(t *testing.T) {
	j := judged(t, func(t *ruleset.Table) *ruleset.Table { return t })
	stranger := flow(6, other4+":4000", host4+":8080", container4+":80")
	j.before = j.table
	if j.refuses(stranger) {
		t.Error("refused, though it was refused before")
	}
	j.before = policy.WithSet(j.table, "friends", friendsOf(t, other4))
	if !j.refuses(stranger) {
		t.Error("not refused, though it was let in before")
	}
}

// BenchmarkJudge is a look at as many connections as the daemon is made for.
func BenchmarkJudge(b *testing.B) {
	const n = 200_000
	j := judged(b, policy.WithCuts)
	flows := make([]nft.Flow, n)
	for i := range flows {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 4000)
		flows[i] = flow(6, client.String(), host4+":8080", container4+":80")
	}
	for b.Loop() {
		listed := make(chan []nft.Flow, n)
		for some := range slices.Chunk(flows, 2048) {
			listed <- some
		}
		close(listed)
		var got atomic.Int64
		j.refused(listed, func(some []nft.Flow) { got.Add(int64(len(some))) })
		if got.Load() != n {
			b.Fatal(fmt.Errorf("%d refused, want %d", got.Load(), n))
		}
	}
}
