package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nftfw/nftfw/pkg/addrset"
)

func knownSets(names ...string) func(string) bool {
	return func(set string) bool {
		for _, n := range names {
			if n == set {
				return true
			}
		}
		return false
	}
}

func TestParseFrom(t *testing.T) {
	known := knownSets("office", "vpn", "blocked")
	for _, test := range []struct {
		name, in string
		want     From
		str      string // canonical form
		err      string
	}{
		{name: "any", in: "any", want: From{Any: true}, str: "any"},
		{name: "none", in: " none ", want: From{None: true}, str: "none"},
		{name: "trusted", in: "trusted", want: From{}, str: "trusted"},
		{name: "set", in: "office", want: From{Sets: []string{"office"}}, str: "office"},
		{name: "sets sorted, each once, trusted left out", in: "vpn,trusted,office,vpn", want: From{Sets: []string{"office", "vpn"}}, str: "office,vpn"},
		{
			name: "addresses merged and sorted", in: "10.0.0.128/25, 2001:db8::1,10.0.0.0/25,10.0.0.7, ::ffff:192.0.2.1",
			want: From{Ranges: []addrset.Range{mustRange(t, "10.0.0.0/24"), mustRange(t, "192.0.2.1"), mustRange(t, "2001:db8::1")}},
			str:  "10.0.0.0/24,192.0.2.1,2001:db8::1",
		},
		{name: "range", in: "10.0.0.1-10.0.0.5", want: From{Ranges: []addrset.Range{mustRange(t, "10.0.0.1-10.0.0.5")}}, str: "10.0.0.1-10.0.0.5"},
		{name: "every IPv4 address is not any", in: "0.0.0.0/0", want: From{Ranges: []addrset.Range{mustRange(t, "0.0.0.0/0")}}, str: "0.0.0.0/0"},
		{name: "mixed", in: "10.0.0.0/8,office", want: From{Sets: []string{"office"}, Ranges: []addrset.Range{mustRange(t, "10.0.0.0/8")}}, str: "office,10.0.0.0/8"},
		{name: "any and more", in: "any,office", want: From{Any: true}, str: "any"},
		{name: "none and more", in: "trusted,none", err: "none stands alone: it lets nobody in, so leave the rest out, or leave none out"},
		{name: "any twice", in: "any,any", want: From{Any: true}, str: "any"},
		{name: "any and nobody", in: "any,none", err: "none stands alone: it lets nobody in, so leave the rest out, or leave none out"},
		{name: "unknown set", in: "office,warehouse", err: `no set named "warehouse" is declared`},
		{name: "words are lower case", in: "ANY", err: `no set named "ANY" is declared`},
		{name: "empty", in: "", err: "an item of FROM is empty: " + fromForms},
		{name: "empty item", in: "office,", err: "an item of FROM is empty: " + fromForms},
		{name: "not an address", in: "10.0.0.256", err: `"10.0.0.256" is not an address, CIDR or range: IPv4 field has value >255`},
		{name: "half an address", in: "10", err: `"10" is not an address, CIDR or range: unable to parse IP`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseFrom(test.in, known)
			if msg := errText(err); msg != test.err {
				t.Fatalf("error %q, want %q", msg, test.err)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(test.want, got, compareValues); diff != "" {
				t.Errorf("From (-want +got):\n%s", diff)
			}
			if got.String() != test.str {
				t.Errorf("String() = %q, want %q", got, test.str)
			}
			again, err := ParseFrom(got.String(), known)
			if diff := cmp.Diff(got, again, compareValues); err != nil || diff != "" {
				t.Errorf("ParseFrom(String()): %v (-first +second):\n%s", err, diff)
			}
		})
	}
	if _, err := ParseFrom("office", nil); err == nil {
		t.Error("ParseFrom with a nil known knows a set")
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestGrants(t *testing.T) {
	const sets = "version: 1\nsets: {office: [10.0.0.0/8], vpn: []}\ncontainers: "
	for _, test := range []struct {
		containers string
		grants     []string
		refuses    []string
	}{
		{"{labels: any}", []string{"any", "none", "trusted", "office", "192.0.2.1"}, nil},
		{"{labels: any, default: none}", []string{"any", "trusted"}, nil},
		{"{labels: none}", []string{"none", "trusted"}, []string{"any", "office", "192.0.2.1", "trusted,office"}},
		{"{labels: none, default: none}", []string{"none"}, []string{"any", "trusted", "office"}},
		{"{labels: trusted, default: none}", []string{"none", "trusted"}, []string{"any", "office"}},
		{"{labels: [office], default: none}", []string{"none", "office"}, []string{"trusted", "vpn", "any"}},
		{
			// That 10.1.2.3 lies in the set office does not count.
			"{labels: [office, 192.0.2.0/25, 192.0.2.128/25]}",
			[]string{"office", "192.0.2.1", "192.0.2.0/24", "office,192.0.2.7-192.0.2.200", "trusted"},
			[]string{"10.1.2.3", "vpn", "office,vpn", "192.0.2.0/23", "192.0.2.1,192.0.3.1", "any", "0.0.0.0/0", "2001:db8::1"},
		},
		{"{labels: [0.0.0.0/0, \"::/0\"]}", []string{"0.0.0.0/0", "::/0", "192.0.2.1"}, []string{"any", "office"}},
	} {
		t.Run(test.containers, func(t *testing.T) {
			p, _ := mustParse(t, sets+test.containers+"\n")
			check := func(list []string, want bool) {
				for _, s := range list {
					f, err := ParseFrom(s, p.declared)
					if err != nil {
						t.Fatal(err)
					}
					if got := p.Containers.Grants(f); got != want {
						t.Errorf("Grants(%s) = %v, want %v", s, got, want)
					}
				}
			}
			check(test.grants, true)
			check(test.refuses, false)
		})
	}
}

func TestParsePort(t *testing.T) {
	for _, test := range []struct {
		in   string
		want PortSpec
		str  string
	}{
		{"80", PortSpec{Proto: 6, Low: 80, High: 80}, "80/tcp"},
		{"80/tcp", PortSpec{Proto: 6, Low: 80, High: 80}, "80/tcp"},
		{"53/UDP", PortSpec{Proto: 17, Low: 53, High: 53}, "53/udp"},
		{"1-65535/sctp", PortSpec{Proto: 132, Low: 1, High: 65535}, "1-65535/sctp"},
		{"7-7", PortSpec{Proto: 6, Low: 7, High: 7}, "7/tcp"},
		{"9/dccp", PortSpec{Proto: 33, Low: 9, High: 9}, "9/dccp"},
		{"9/udplite", PortSpec{Proto: 136, Low: 9, High: 9}, "9/udplite"},
		{"*", PortSpec{All: true}, "*"},
		{"esp", PortSpec{Proto: 50, Portless: true}, "esp"},
		{"vrrp", PortSpec{Proto: 112, Portless: true}, "vrrp"},
		{"47/proto", PortSpec{Proto: 47, Portless: true}, "gre"},
		{"ipv6-icmp", PortSpec{Proto: 58, Portless: true}, "icmpv6"},
		{"253/proto", PortSpec{Proto: 253, Portless: true}, "253/proto"},
		{"0/proto", PortSpec{Proto: 0, Portless: true}, "0/proto"},
	} {
		t.Run(test.in, func(t *testing.T) {
			got, err := ParsePort(test.in)
			if err != nil || got != test.want || got.String() != test.str {
				t.Fatalf("ParsePort(%q) = %#v (%s), %v; want %#v (%s)", test.in, got, got, err, test.want, test.str)
			}
			if again, err := ParsePort(got.String()); err != nil || again != got {
				t.Errorf("ParsePort(String()) = %#v, %v; want %#v", again, err, got)
			}
		})
	}
	for _, in := range []string{
		"", "0", "0/tcp", "65536", "99999999999999999999", "-1", "1-", "-", "2-1", "1-2-3", "0-5", "080", "+80", " 80", "80 ", "0x50", "8_0",
		"80/", "80/tcpp", "80/6", "80/esp", "80/tcp/udp", "/tcp", "tcp", "udp", "http", "**", "*/tcp", "6/proto", "17/proto", "132/proto",
		"256/proto", "-1/proto", "/proto", "047/proto", "1-2/proto", "esp/tcp", "80/*",
	} {
		if got, err := ParsePort(in); err == nil {
			t.Errorf("ParsePort(%q) = %v, want an error", in, got)
		}
	}
}

// Every word for a protocol without ports is one that String gives or has a
// canonical word that ParsePort reads as the same protocol.
func TestPortlessWords(t *testing.T) {
	for word, proto := range portlessProtocols {
		name, ok := portlessNames[proto]
		if !ok || portlessProtocols[name] != proto {
			t.Errorf("%s is protocol %d, whose canonical word is %q", word, proto, name)
		}
	}
	for proto, name := range portlessNames {
		if portlessProtocols[name] != proto {
			t.Errorf("protocol %d is called %s, which is read as %d", proto, name, portlessProtocols[name])
		}
	}
}

func TestParseEgress(t *testing.T) {
	known := knownSets("office")
	for _, test := range []struct{ name, in, want, err string }{
		{name: "any", in: "any", want: "any"},
		{name: "none", in: "none", want: "none"},
		{name: "set", in: "office", want: "office"},
		{name: "set with port", in: "office:443", want: "office:443/tcp"},
		{name: "trusted is a set", in: "trusted", want: "trusted"},
		{name: "addresses", in: "192.0.2.1,10.0.0.0/8, 2001:db8::/32,192.0.2.1-192.0.2.7", want: "10.0.0.0/8,192.0.2.1,192.0.2.1-192.0.2.7,2001:db8::/32"},
		{name: "address with port", in: "192.0.2.1:443/tcp", want: "192.0.2.1:443/tcp"},
		{name: "CIDR and range with ports", in: "10.0.0.0/8:53/udp,192.0.2.1-192.0.2.7:1-9/udp", want: "10.0.0.0/8:53/udp,192.0.2.1-192.0.2.7:1-9/udp"},
		{name: "IPv6 with port", in: "[2001:db8::1]:443/tcp", want: "[2001:db8::1]:443/tcp"},
		{name: "IPv6 CIDR with ports", in: "[2001:db8::/32]:8000-8010", want: "[2001:db8::/32]:8000-8010/tcp"},
		{name: "IPv6 in brackets without port", in: "[2001:db8::1]", want: "2001:db8::1"},
		{name: "IPv6 that ends like a port", in: "2001:db8::1:443", want: "2001:db8::1:443"},
		{name: "port only", in: ":53/udp,:53", want: ":53/tcp,:53/udp"},
		{name: "each once", in: "office,office,:53,:53/tcp", want: ":53/tcp,office"},
		{name: "any and more", in: "any,office", err: "any stands alone: leave the rest out, or leave any out"},
		{name: "none and more", in: "office,none", err: "none stands alone: leave the rest out, or leave none out"},
		{name: "unknown set", in: "shop", err: `no set named "shop" is declared`},
		{name: "unknown set with port", in: "shop:80", err: `no set named "shop" is declared`},
		{name: "empty", in: "", err: "an item of egress is empty: " + egressForms},
		{name: "empty port", in: "192.0.2.1:", err: `egress "192.0.2.1:": the port after the colon is missing, as in 192.0.2.1:443/tcp`},
		{name: "IPv4 in brackets", in: "[192.0.2.1]:80", err: `egress "[192.0.2.1]:80": only IPv6 addresses stand in brackets`},
		{name: "port zero", in: ":0", err: `egress ":0": port "0": "0" is out of range: ports go from 1 to 65535`},
		{name: "protocol", in: "192.0.2.1:esp", err: `egress "192.0.2.1:esp": write a port such as 443/tcp, or leave the colon out for every port`},
		{name: "broken IPv6", in: "2001:db8:::1", err: `"2001:db8:::1" is not an address, CIDR or range: each colon-separated field must have at least one digit (at ":1")`},
		{name: "bracket not closed", in: "[2001:db8::1:80", err: `egress "[2001:db8::1:80": write [address]:port/proto, as in [2001:db8::1]:443/tcp`},
		{name: "text behind bracket", in: "[2001:db8::1]80", err: `egress "[2001:db8::1]80": write [address]:port/proto, as in [2001:db8::1]:443/tcp`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseEgress(test.in, known)
			if msg := errText(err); msg != test.err {
				t.Fatalf("error %q, want %q", msg, test.err)
			}
			if err != nil {
				return
			}
			if got.String() != test.want {
				t.Fatalf("ParseEgress(%q) = %s, want %s", test.in, got, test.want)
			}
			again, err := ParseEgress(got.String(), known)
			if diff := cmp.Diff(got, again, compareValues); err != nil || diff != "" {
				t.Errorf("ParseEgress(String()): %v (-first +second):\n%s", err, diff)
			}
		})
	}
}

func TestEgressItem(t *testing.T) {
	p443 := mustPort(t, "443/tcp")
	got, err := ParseEgress("[2001:db8::1]:443/tcp", nil)
	want := Egress{Items: []EgressItem{{Range: mustRange(t, "2001:db8::1"), Ports: &p443}}}
	if diff := cmp.Diff(want, got, compareValues); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
