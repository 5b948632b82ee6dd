package policy

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/inventory"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// compareValues lets cmp look at addresses, which have no exported fields.
var compareValues = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func mustRange(t *testing.T, s string) addrset.Range {
	t.Helper()
	r, err := addrset.ParseRange(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustPort(t *testing.T, s string) PortSpec {
	t.Helper()
	spec, err := ParsePort(s)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func ports(t *testing.T, list ...string) []PortSpec {
	t.Helper()
	out := make([]PortSpec, len(list))
	for i, s := range list {
		out[i] = mustPort(t, s)
	}
	return out
}

func mustParse(t testing.TB, src string) (*Policy, []Diagnostic) {
	t.Helper()
	p, warnings, err := Parse("policy.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return p, warnings
}

func TestParseEveryKey(t *testing.T) {
	const name = "testdata/good/full.yaml"
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, warnings, err := Parse("full.yaml", src)
	if err != nil {
		t.Fatal(err)
	}
	pos := func(line, column int) Pos { return Pos{"full.yaml", line, column} }
	entry := func(s string, line string) addrset.Entry {
		return addrset.Entry{Range: mustRange(t, s), Source: addrset.Policy, Origin: "full.yaml:" + line}
	}
	tcp53, p443, udp53, p8000 := mustPort(t, "53/tcp"), mustPort(t, "443/tcp"), mustPort(t, "53/udp"), mustPort(t, "8000-8010/tcp")
	want := &Policy{
		Name:              "full.yaml",
		Mode:              Observe,
		TrustedInterfaces: []string{"wg0", "tailscale*"},
		Sets: map[string]NamedSet{
			"trusted": {Pos: pos(8, 3), Entries: []addrset.Entry{
				entry("192.0.2.10", "8"), entry("203.0.113.0/24", "8"), entry("198.51.100.5-198.51.100.9", "8"),
				entry("2001:db8:1::/48", "8"), entry("192.0.2.77", "8"),
			}},
			"office":      {Pos: pos(9, 3), Comment: "head office", Entries: []addrset.Entry{entry("198.51.100.0/24", "9")}},
			"blocked":     {Pos: pos(10, 3)},
			"partners":    {Pos: pos(11, 3), Entries: []addrset.Entry{entry("192.0.2.128/25", "12")}},
			"swarm_nodes": {},
		},
		Host: Host{
			DefaultAccept: true,
			Allow: []HostAllow{
				{Ports: ports(t, "22/tcp"), From: From{Any: true}, Pos: pos(16, 7)},
				{
					Ports: ports(t, "9100/tcp", "60000-61000/udp"), Pos: pos(17, 7),
					From: From{Sets: []string{"office"}, Ranges: []addrset.Range{mustRange(t, "10.0.0.0/8")}},
				},
				{In: "virbr0", Ports: ports(t, "53/udp", "67/udp"), From: From{Any: true}, Pos: pos(18, 7)},
				{Ports: ports(t, "esp", "112/proto", "gre"), From: From{Sets: []string{"office"}}, Pos: pos(19, 7)},
			},
		},
		Containers: Containers{
			Default:      From{None: true},
			Labels:       From{Sets: []string{"office"}, Ranges: []addrset.Range{mustRange(t, "10.0.0.0/8")}},
			LabelTrusted: true,
			ImageLabels:  true,
			Rules: []Rule{
				{
					Pos: pos(26, 7),
					Match: Match{
						Name: "shop-*", Project: "shop", Service: "web", Image: "nginx*",
						Label: map[string]string{"tier": "web"},
					},
					Expose: []PortGrant{
						{Ports: p443, From: From{Any: true}, Pos: pos(27, 16)},
						{Ports: mustPort(t, "8000-8010/udp"), From: From{None: true}, Pos: pos(27, 30)},
						{Ports: mustPort(t, "80/tcp"), From: From{Sets: []string{"partners"}}, Pos: pos(27, 51)},
						{Ports: PortSpec{All: true}, From: From{Sets: []string{"office"}}, Pos: pos(27, 76)},
					},
				},
				{
					Pos:    pos(28, 7),
					Match:  Match{HostIP: netip.MustParseAddr("198.51.100.2")},
					Expose: []PortGrant{{Ports: p443, From: From{Any: true}, Pos: pos(28, 49)}},
				},
				{Pos: pos(29, 7), Match: Match{Name: "db"}, Egress: &Egress{}},
			},
			ToContainers: ToContainersSameProject,
			ToHost:       ToHost{Ports: []PortSpec{udp53, tcp53}},
			Egress: Egress{Items: []EgressItem{
				{Ports: &udp53},
				{Range: mustRange(t, "192.0.2.1")},
				{Range: mustRange(t, "192.0.2.1"), Ports: &p443},
				{Range: mustRange(t, "2001:db8::/32"), Ports: &p8000},
				{Set: "office"},
			}},
		},
		Ingress: []PortGrant{{Ports: mustPort(t, "8080/tcp"), From: From{Any: true}, Pos: pos(33, 19)}},
		Forward: Forward{
			DefaultDrop: true,
			Allow:       []ForwardAllow{{In: "lan0", Out: "wan0", From: From{Any: true}, Pos: pos(36, 11)}},
		},
		Log:      Log{Rate: 3, Unit: "minute"},
		OnRevoke: Keep,
		Metrics:  Metrics{Listen: "127.0.0.1:9469"},
	}
	if diff := cmp.Diff(want, got, compareValues); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
	if len(warnings) > 0 {
		t.Errorf("warnings: %v", warnings)
	}
}

// The example of SPEC.md, word for word: it is what people begin with.
func TestParseExample(t *testing.T) {
	src, err := os.ReadFile("testdata/good/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, _ := mustParse(t, string(src))
	if got := len(p.Containers.Rules); got != 3 {
		t.Errorf("%d rules, want 3", got)
	}
	// Apart from its lists the example shows the defaults.
	blanked := *p
	blanked.TrustedInterfaces, blanked.Sets, blanked.Host.Allow = nil, nil, nil
	blanked.Containers.Rules, blanked.Ingress, blanked.Forward.Allow = nil, nil, nil
	blanked.Metrics = Metrics{}
	want := blank("policy.yaml")
	want.Sets = nil
	if diff := cmp.Diff(want, &blanked, compareValues); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestCheckSetName(t *testing.T) {
	for _, name := range []string{"trusted", "blocked", "swarm_nodes", "office", "a", "a-b_c9", "ip4", "x4", strings.Repeat("a", 32)} {
		if err := CheckSetName(name); err != nil {
			t.Errorf("CheckSetName(%q) = %v", name, err)
		}
	}
	for _, name := range append([]string{"", "A", "9a", "_a", "-a", "a.b", "a b", "ä", "a/b", strings.Repeat("a", 33)}, reservedSets...) {
		if err := CheckSetName(name); err == nil {
			t.Errorf("CheckSetName(%q) = nil, want an error", name)
		}
	}
}

// The policy of a file with nothing but its version.
func TestParseDefaults(t *testing.T) {
	got, warnings := mustParse(t, "version: 1\n")
	want := &Policy{
		Name: "policy.yaml",
		Mode: Enforce,
		Sets: map[string]NamedSet{"trusted": {}, "blocked": {}, "swarm_nodes": {}},
		Host: Host{Ping: true},
		Containers: Containers{
			Labels: From{Any: true}, ToContainers: ToContainersDocker,
			ToHost: ToHost{Any: true}, Egress: Egress{Any: true},
		},
		Log:      Log{Drops: true, Rate: 10, Unit: "second"},
		OnRevoke: Cut,
	}
	if diff := cmp.Diff(want, got, compareValues); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
	if len(warnings) > 0 {
		t.Errorf("warnings: %v", warnings)
	}
}

func TestDefault(t *testing.T) {
	for _, test := range []struct {
		name string
		ssh  []uint16
		want []PortSpec
	}{
		{"unknown", nil, ports(t, "22/tcp")},
		{"only zero", []uint16{0}, ports(t, "22/tcp")},
		{"several", []uint16{2222, 22, 2222}, ports(t, "22/tcp", "2222/tcp")},
	} {
		t.Run(test.name, func(t *testing.T) {
			want, _ := mustParse(t, "version: 1\n")
			want.Name = "default"
			want.Host.Allow = []HostAllow{{Ports: test.want, From: From{Any: true}, Pos: Pos{File: "default"}}}
			if diff := cmp.Diff(want, Default(test.ssh), compareValues); diff != "" {
				t.Errorf("policy (-want +got):\n%s", diff)
			}
		})
	}
}

// Each file of testdata/bad holds one mistake, or a few of a kind; the .txt
// beside it holds what is said about it.
func TestParseMistakes(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p, _, err := Parse(filepath.Base(file), src)
			if p != nil || err == nil {
				t.Fatalf("Parse = %v, %v; want no policy and an error", p, err)
			}
			checkPlaces(t, src, err)
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

// checkPlaces checks that every error lies inside the file, in order, each
// said once, and that its snippet is that line.
func checkPlaces(t *testing.T, src []byte, err error) {
	t.Helper()
	var all Errors
	var first *Error
	if !errors.As(err, &all) || len(all) == 0 || !errors.As(err, &first) || first != all[0] {
		t.Fatalf("error %v is not made of *Error", err)
	}
	lines := strings.Split(string(src), "\n")
	for i, e := range all {
		if e.Line < 1 || e.Line > len(lines) {
			t.Fatalf("%v: line of %d", e, len(lines))
		}
		line := strings.TrimSuffix(lines[e.Line-1], "\r")
		if e.Column < 1 || e.Column > len(line)+1 {
			t.Errorf("%v: column outside of %q", e, line)
		}
		if e.Snippet != line && e.Snippet != "" {
			t.Errorf("%v: snippet %q of line %q", e, e.Snippet, line)
		}
		if e.Message == "" {
			t.Errorf("%v: no message", e)
		}
		if i > 0 && (all[i-1].Line > e.Line || *all[i-1] == *e) {
			t.Errorf("%v after %v", e, all[i-1])
		}
	}
}

func TestParseWarnings(t *testing.T) {
	for _, test := range []struct {
		name, src string
		want      []string
	}{
		{"values that hold anyway", "version: 1\ncontainers: {egress: any, to_containers: docker}\non_revoke: keep\nlog: {drops: false}\n", nil},
		{"on_revoke cut", "version: 1\non_revoke: cut\n", nil},
		{"sources without encryption", "version: 1\nsets:\n  a: {sources: [{url: \"http://u:secret@example.net/list\"}, {url: \"http://127.0.0.1/list\"}]}\n", []string{
			"f:3:23: http://u:xxxxx@example.net/list is not encrypted: whoever is on the way can change the list; use https",
		}},
		{"host bits", "version: 1\nsets:\n  a: [192.0.2.1/24]\nhost:\n  allow: [{ports: [22], from: 192.0.2.9/31}]\n", []string{
			"f:3:7: 192.0.2.1/24 means 192.0.2.0/24, all of it: write it so, or leave out the / for the one address",
			"f:5:31: 192.0.2.9/31 means 192.0.2.8/31, all of it: write it so, or leave out the / for the one address",
		}},
		{
			"entry twice", "version: 1\nsets:\n  a: &a [192.0.2.1,\n    192.0.2.1/32]\n  b: *a\n",
			[]string{`f:4:5: "192.0.2.1/32" is in the set twice`},
		},
		{
			"entries twice", "version: 1\nsets:\n  a: [10.0.0.1, 10.0.0.1, 10.0.0.2, 10.0.0.1]\n",
			[]string{`f:3:17: "10.0.0.1" is in the set twice, and so are 1 more entries`},
		},
		{"interfaces", "version: 1\ninterfaces: {trusted: [lo, wg0, wg0]}\n", []string{
			"f:2:24: lo is always accepted: leave it out",
			`f:2:33: "wg0" is in the list twice`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, warnings, err := Parse("f", []byte(test.src))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range warnings {
				got = append(got, w.String())
				if w.Severity != SeverityWarning {
					t.Errorf("%v: severity %q", w, w.Severity)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

// What YAML offers besides the plain form.
func TestParseForms(t *testing.T) {
	for _, test := range []struct {
		name, src string
		check     func(*Policy) string
		want      string
	}{
		{
			"anchor and alias", "version: 1\nsets: {a: &a [192.0.2.1], b: *a}\n",
			func(p *Policy) string { return p.Sets["b"].Entries[0].Range.String() }, "192.0.2.1",
		},
		{
			"merge key, own keys first", "version: 1\nhost: {allow: [&x {ports: [22], from: any}, {<<: *x, from: none}]}\n",
			func(p *Policy) string {
				return p.Host.Allow[1].Ports[0].String() + " " + p.Host.Allow[1].From.String()
			}, "22/tcp none",
		},
		{
			"FROM as text with commas", "version: 1\nsets: {a: []}\ncontainers: {default: \"10.0.0.0/8, a\"}\n",
			func(p *Policy) string { return p.Containers.Default.String() }, "a,10.0.0.0/8",
		},
		{
			"sets after their use", "version: 1\ncontainers: {default: a}\nsets: {a: []}\n",
			func(p *Policy) string { return p.Containers.Default.String() }, "a",
		},
		{
			"document marks, byte order mark and CRLF", "\ufeff---\r\nversion: 1\r\nmode: observe\r\n...\r\n",
			func(p *Policy) string { return string(p.Mode) }, "observe",
		},
		{
			"port as a number", "version: 1\nhost: {allow: [{ports: [22], from: any}]}\n",
			func(p *Policy) string { return p.Host.Allow[0].Ports[0].String() }, "22/tcp",
		},
		{
			"the same port twice in a list", "version: 1\nhost: {allow: [{ports: [22, 22/tcp, 22/udp], from: any}]}\n",
			func(p *Policy) string { return cmp.Diff(ports(t, "22/tcp", "22/udp"), p.Host.Allow[0].Ports) }, "",
		},
		{
			"host_ip written as mapped", "version: 1\ncontainers: {rules: [{match: {host_ip: \"::ffff:192.0.2.1\"}, expose: {80: any}}]}\n",
			func(p *Policy) string { return p.Containers.Rules[0].Match.HostIP.String() }, "192.0.2.1",
		},
		{
			"to_host none", "version: 1\ncontainers: {to_host: none}\n",
			func(p *Policy) string { return cmp.Diff(ToHost{}, p.Containers.ToHost) }, "",
		},
		{
			"labels none", "version: 1\ncontainers: {labels: none}\n",
			func(p *Policy) string { return p.Containers.Labels.String() }, "none",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := mustParse(t, test.src)
			if got := test.check(p); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// Where the entries of a set come from, and what is taken where nothing is said.
func TestParseSources(t *testing.T) {
	p, _ := mustParse(t, `version: 1
sets:
  blocked:
    entries: [192.0.2.1]
    sources:
      - {url: "https://example.net/drop.txt"}
      - {url: "https://u:p@example.net/ranges?v=1", every: 7d, json: prefixes.ip_prefix, shrink: allow}
      - {url: "https://example.net/table", csv: 2, shrink: refuse}
      - {url: "https://example.net/named", csv: address}
      - {file: /etc/nftfw/blocked.d/}
      - {dns: Home.Example.NET.}
      - {dns: _a.example.net, min_ttl: 5s, max_ttl: 1m, grace: 0s}
      - etcd:
          endpoints: ["https://192.0.2.5:2379/"]
          prefix: /nftfw/sets/blocked/
          user: nftfw
          password_file: /etc/nftfw/etcd.password
          tls: {ca: /etc/nftfw/ca.pem, cert: /etc/nftfw/cert.pem, key: /etc/nftfw/key.pem}
      - {crowdsec: {url: "http://127.0.0.1:8080/", key_file: /etc/nftfw/crowdsec.key}}
`)
	var got []spec.Source
	var names []string
	for _, s := range p.Sets["blocked"].Sources {
		got, names = append(got, s.Source), append(names, s.Name())
	}
	want := []spec.Source{
		{URL: &spec.URL{URL: "https://example.net/drop.txt", Every: time.Hour}},
		{URL: &spec.URL{URL: "https://u:p@example.net/ranges?v=1", Every: 7 * 24 * time.Hour, JSON: []string{"prefixes.ip_prefix"}, Shrink: true}},
		{URL: &spec.URL{URL: "https://example.net/table", Every: time.Hour, Column: "2"}},
		{URL: &spec.URL{URL: "https://example.net/named", Every: time.Hour, Column: "address"}},
		{File: &spec.File{Path: "/etc/nftfw/blocked.d"}},
		{DNS: &spec.DNS{Name: "home.example.net", MinTTL: 30 * time.Second, MaxTTL: time.Hour, Grace: 10 * time.Minute}},
		{DNS: &spec.DNS{Name: "_a.example.net", MinTTL: 5 * time.Second, MaxTTL: time.Minute}},
		{Etcd: &spec.Etcd{
			Endpoints: []string{"https://192.0.2.5:2379"}, Prefix: "/nftfw/sets/blocked/",
			User: "nftfw", PasswordFile: "/etc/nftfw/etcd.password",
			TLS: spec.TLS{CA: "/etc/nftfw/ca.pem", Cert: "/etc/nftfw/cert.pem", Key: "/etc/nftfw/key.pem"},
		}},
		{CrowdSec: &spec.CrowdSec{URL: "http://127.0.0.1:8080", KeyFile: "/etc/nftfw/crowdsec.key", Every: 10 * time.Second}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
	wantNames := []string{
		"url:https://example.net/drop.txt", "url:https://u:xxxxx@example.net/ranges?v=1", "url:https://example.net/table",
		"url:https://example.net/named", "file:/etc/nftfw/blocked.d", "dns:home.example.net", "dns:_a.example.net",
		"etcd:/nftfw/sets/blocked/", "crowdsec:http://127.0.0.1:8080",
	}
	if diff := cmp.Diff(wantNames, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

// Every mistake of a file is reported, in the order of the file.
func TestParseReportsAll(t *testing.T) {
	_, _, err := Parse("f", []byte(`version: 1
containers:
  default: ofice
  rules:
    - {match: {}, expose: {0: any}}
host: {default: maybe}
sets: {office: [192.0.2.300]}
`))
	want := strings.TrimPrefix(`
f:3:12: no set named "ofice" is declared (declared: blocked, office, swarm_nodes, trusted), did you mean office?
f:5:15: match is empty: say which containers the rule is for, as in {name: web}, or {name: "*"} for all
f:5:28: port "0": "0" is out of range: ports go from 1 to 65535
f:6:17: expected drop or accept, got "maybe"
f:7:17: "192.0.2.300" is not an address, CIDR or range: IPv4 field has value >255`, "\n")
	if err == nil || err.Error() != want {
		t.Errorf("errors (-want +got):\n%s", cmp.Diff(want, err.Error()))
	}
}

func TestParseBounds(t *testing.T) {
	t.Run("size", func(t *testing.T) {
		src := []byte("version: 1\n#" + strings.Repeat("x", MaxFile))
		_, _, err := Parse("f", src)
		if err == nil || !strings.Contains(err.Error(), "are the most") {
			t.Errorf("Parse of %d bytes: %v", len(src), err)
		}
	})
	t.Run("aliases", func(t *testing.T) {
		var b strings.Builder
		b.WriteString("version: 1\nsets:\n  s: &s [" + strings.Repeat("10.0.0.1,", 2000) + "]\n")
		for i := range 100 {
			b.WriteString("  s" + strings.Repeat("x", i%20) + string(rune('a'+i/20%26)) + string(rune('a'+i/520)) + ": *s\n")
		}
		_, _, err := Parse("f", []byte(b.String()))
		if err == nil || !strings.Contains(err.Error(), "aliases repeat more than") {
			t.Errorf("Parse of an alias bomb: %.200v", err)
		}
	})
	t.Run("merge into itself", func(t *testing.T) {
		_, _, err := Parse("f", []byte("version: 1\nhost: &h {<<: *h, ping: true}\n"))
		if err == nil || !strings.Contains(err.Error(), "merge keys lead into one another") {
			t.Errorf("Parse of a mapping merged into itself: %v", err)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, glob := range []string{"testdata/bad/*.yaml", "testdata/good/*.yaml"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			src, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(src)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		p, warnings, err := Parse("f", src)
		if (p == nil) == (err == nil) {
			t.Fatalf("Parse = %v, %v", p, err)
		}
		lines := strings.Count(string(src), "\n") + 1
		for _, w := range warnings {
			if w.Pos.Line < 1 || w.Pos.Line > lines {
				t.Errorf("%v: line of %d", w, lines)
			}
		}
		if err != nil {
			checkPlaces(t, src, err)
			return
		}
		// What is accepted compiles, whatever runs.
		inv := fuzzedInventory(map[string]string{"nftfw.expose": "trusted", "nftfw.egress": "any"})
		checkCompiled(t, p, inv)
	})
}

// fuzzedInventory is a host with one container of each kind.
func fuzzedInventory(labels map[string]string) inventory.Snapshot {
	box := func(id, mode string, ports ...inventory.Port) inventory.Container {
		return inventory.Container{ID: strings.Repeat(id, 64), Name: id, Image: "web:1", NetworkMode: mode, Labels: labels, Ports: ports}
	}
	port := func(host string, proto uint8) inventory.Port {
		return inventory.Port{HostIP: netip.MustParseAddr(host), HostPort: 8080, ContainerPort: 80, Proto: proto}
	}
	a := box("a", "bridge", port("0.0.0.0", 6), port("::", 6), port("198.18.0.1", 17))
	a.Endpoints = []inventory.Endpoint{{NetworkID: "n", Addr4: netip.MustParseAddr("172.17.0.2"), Addr6: netip.MustParseAddr("fd00::2")}}
	return inventory.Snapshot{
		Engine:     inventory.EngineListed,
		Containers: []inventory.Container{a, box("b", "host"), box("c", "container:a")},
		Networks: []inventory.Network{{
			ID: "n", Name: "bridge", Driver: "bridge", Bridge: "docker0",
			Subnets: []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("fd00::/64")},
		}},
		Links: []inventory.Link{{Index: 1, Name: "lo"}, {Index: 2, Name: "eth0"}, {Index: 3, Name: "docker0", Kind: "bridge"}},
	}
}

// checkCompiled demands a table that the kernel could take.
func checkCompiled(t *testing.T, p *Policy, inv inventory.Snapshot) {
	t.Helper()
	table, _ := Compile(p, setsOf(p), inv)
	if err := table.Validate(); err != nil {
		t.Errorf("Compile made an invalid table: %v", err)
	}
	if unseen, settings := Unseen(p, setsOf(p), inv, Bridged{}); len(unseen) > 0 != (len(settings) > 0) {
		t.Errorf("Unseen = %v, %v", unseen, settings)
	}
}

func TestParseDocumentedExample(t *testing.T) {
	const path = "../docs/policy.example.yaml"
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, warnings, err := Parse(path, src)
	if err != nil {
		t.Errorf("Parse: %v", err)
	}
	for _, w := range warnings {
		t.Errorf("warning: %s", w)
	}
}
