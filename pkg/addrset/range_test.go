package addrset

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func mustRange(t testing.TB, s string) Range {
	t.Helper()
	r, err := ParseRange(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParseRange(t *testing.T) {
	tests := []struct{ name, in, from, to, text string }{
		{"address", "192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.1"},
		{"last address", "255.255.255.255", "255.255.255.255", "255.255.255.255", "255.255.255.255"},
		{"cidr", "203.0.113.0/24", "203.0.113.0", "203.0.113.255", "203.0.113.0/24"},
		{"cidr with host bits", "203.0.113.77/24", "203.0.113.0", "203.0.113.255", "203.0.113.0/24"},
		{"cidr of one address", "203.0.113.77/32", "203.0.113.77", "203.0.113.77", "203.0.113.77"},
		{"all of IPv4", "0.0.0.0/0", "0.0.0.0", "255.255.255.255", "0.0.0.0/0"},
		{"upper half", "128.0.0.0/1", "128.0.0.0", "255.255.255.255", "128.0.0.0/1"},
		{"range", "198.51.100.5-198.51.100.9", "198.51.100.5", "198.51.100.9", "198.51.100.5-198.51.100.9"},
		{"range that is a cidr", "198.51.100.4-198.51.100.7", "198.51.100.4", "198.51.100.7", "198.51.100.4/30"},
		{"range as wide as a cidr, out of step", "198.51.100.2-198.51.100.5", "198.51.100.2", "198.51.100.5", "198.51.100.2-198.51.100.5"},
		{"range of one address", "198.51.100.4-198.51.100.4", "198.51.100.4", "198.51.100.4", "198.51.100.4"},
		{"range that is all", "0.0.0.0-255.255.255.255", "0.0.0.0", "255.255.255.255", "0.0.0.0/0"},
		{"IPv6", "2001:db8::1", "2001:db8::1", "2001:db8::1", "2001:db8::1"},
		{"IPv6 in long form", "2001:0DB8:0:0:0:0:0:1", "2001:db8::1", "2001:db8::1", "2001:db8::1"},
		{"IPv6 cidr", "2001:db8:1::/48", "2001:db8:1::", "2001:db8:1:ffff:ffff:ffff:ffff:ffff", "2001:db8:1::/48"},
		{"IPv6 cidr of 64", "2001:db8::/64", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"},
		{"IPv6 cidr of 65", "2001:db8::/65", "2001:db8::", "2001:db8::7fff:ffff:ffff:ffff", "2001:db8::/65"},
		{"all of IPv6", "::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0"},
		{"IPv6 range", "fd00::1-fd00::5", "fd00::1", "fd00::5", "fd00::1-fd00::5"},
		{"IPv6 range across the middle", "fd00::ffff:ffff:ffff:ffff-fd00:0:0:1::", "fd00::ffff:ffff:ffff:ffff", "fd00:0:0:1::", "fd00::ffff:ffff:ffff:ffff-fd00:0:0:1::"},
		{"mapped address", "::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.1"},
		{"mapped address in hexadecimal", "::ffff:c000:201", "192.0.2.1", "192.0.2.1", "192.0.2.1"},
		{"mapped cidr", "::ffff:192.0.2.9/120", "192.0.2.0", "192.0.2.255", "192.0.2.0/24"},
		{"mapped cidr that is all", "::ffff:0:0/96", "0.0.0.0", "255.255.255.255", "0.0.0.0/0"},
		{"mapped range", "::ffff:192.0.2.1-::ffff:192.0.2.3", "192.0.2.1", "192.0.2.3", "192.0.2.1-192.0.2.3"},
		{"half mapped range", "192.0.2.1-::ffff:192.0.2.3", "192.0.2.1", "192.0.2.3", "192.0.2.1-192.0.2.3"},
		{"IPv6 cidr around the mapped ones", "::fffe:0:0/95", "::fffe:0:0", "::ffff:ffff:ffff", "::fffe:0:0/95"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseRange(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			want := Range{netip.MustParseAddr(tt.from), netip.MustParseAddr(tt.to)}
			if got != want || !got.IsValid() {
				t.Errorf("ParseRange(%q) = %v-%v, want %v-%v", tt.in, got.From, got.To, want.From, want.To)
			}
			if got.String() != tt.text {
				t.Errorf("String() = %q, want %q", got.String(), tt.text)
			}
		})
	}
}

func TestParseRangeErrors(t *testing.T) {
	tests := []struct{ name, in, reason string }{
		{"nothing", "", "unable to parse IP"},
		{"a name", "example.org", "unexpected character"},
		{"a name without dots", "office", "unable to parse IP"},
		{"a space before", " 192.0.2.1", "unexpected character"},
		{"a line end", "192.0.2.1\n", "unexpected character"},
		{"three octets", "192.0.2", "too short"},
		{"octet too large", "192.0.2.256", ">255"},
		{"leading zero", "192.0.2.01", "leading zero"},
		{"leading zero in a cidr", "010.0.0.0/8", "leading zero"},
		{"leading zero in a length", "10.0.0.0/08", "bad bits after slash"},
		{"length too large", "10.0.0.0/33", "out of range"},
		{"length too large, IPv6", "2001:db8::/129", "out of range"},
		{"negative length", "10.0.0.0/-1", "unexpected character"},
		{"no length", "10.0.0.0/", "bad bits after slash"},
		{"a mask", "10.0.0.0/255.0.0.0", "bad bits after slash"},
		{"inverted", "192.0.2.9-192.0.2.1", "ends before it begins"},
		{"inverted, IPv6", "fd00::2-fd00::1", "ends before it begins"},
		{"mixed", "192.0.2.1-fd00::1", "one end is IPv4"},
		{"mixed, mapped", "::1-::ffff:192.0.2.1", "one end is IPv4"},
		{"no end", "192.0.2.1-", "unable to parse IP"},
		{"no beginning", "-192.0.2.1", "unable to parse IP"},
		{"three ends", "192.0.2.1-192.0.2.2-192.0.2.3", "unexpected character"},
		{"cidr in a range", "192.0.2.0/24-192.0.3.0", "unexpected character"},
		{"zone", "fe80::1%eth0", "zone"},
		{"zone in a cidr", "fe80::1%eth0/64", "zone"},
		{"zone in a range", "fe80::1%eth0-fe80::2%eth0", "zone"},
		{"mapped with a length below 96", "::ffff:192.0.2.1/90", "/96"},
		{"brackets", "[2001:db8::1]", "colon-separated field"},
		{"a port", "192.0.2.1:80", "unexpected character"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ParseRange(tt.in)
			var pe *ParseError
			if !errors.As(err, &pe) {
				t.Fatalf("ParseRange(%q) = %v, %v, want a *ParseError", tt.in, r, err)
			}
			if r != (Range{}) {
				t.Errorf("range %v together with an error", r)
			}
			if pe.Text != tt.in {
				t.Errorf("Text = %q, want %q", pe.Text, tt.in)
			}
			if !strings.Contains(pe.Reason, tt.reason) || strings.Contains(pe.Reason, "Parse") {
				t.Errorf("Reason = %q, want it to speak of %q and of no function", pe.Reason, tt.reason)
			}
		})
	}
}

func TestRangeOf(t *testing.T) {
	tests := []struct {
		name, want string
		in         netip.Prefix
	}{
		{"host bits", "10.0.0.0/8", netip.MustParsePrefix("10.1.2.3/8")},
		{"mapped", "10.0.0.0/8", netip.MustParsePrefix("::ffff:10.1.2.3/104")},
		{"wider than mapped", "::ff00:0:0/88", netip.MustParsePrefix("::ffff:10.1.2.3/88")},
		{"zero", "invalid Range", netip.Prefix{}},
		{"length out of range", "invalid Range", netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 33)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := RangeOf(tt.in).String(); got != tt.want {
				t.Errorf("RangeOf(%v) = %s, want %s", tt.in, got, tt.want)
			}
		})
	}
}

func TestRangeIsValid(t *testing.T) {
	addr := netip.MustParseAddr
	tests := []struct {
		name string
		r    Range
		want bool
	}{
		{"zero", Range{}, false},
		{"one end only", Range{From: addr("::1")}, false},
		{"other end only", Range{To: addr("::1")}, false},
		{"inverted", Range{addr("10.0.0.2"), addr("10.0.0.1")}, false},
		{"mixed", Range{addr("10.0.0.2"), addr("::1")}, false},
		{"mapped", Range{addr("::ffff:10.0.0.1"), addr("::ffff:10.0.0.2")}, false},
		{"zone", Range{addr("fe80::1%a"), addr("fe80::1%a")}, false},
		{"zone at the end", Range{addr("fe80::1"), addr("fe80::2%a")}, false},
		{"good", Range{addr("fe80::1"), addr("fe80::2")}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.r.IsValid(); got != tt.want {
				t.Errorf("IsValid() = %v, want %v", got, tt.want)
			}
			if !tt.want && tt.r.String() != "invalid Range" {
				t.Errorf("String() = %q", tt.r.String())
			}
			if got := New(Entry{Range: tt.r}).Len() == 1; got != tt.want {
				t.Errorf("New keeps it: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestRangeContains(t *testing.T) {
	tests := []struct {
		r, a string
		want bool
	}{
		{"10.0.0.0/8", "10.0.0.0", true},
		{"10.0.0.0/8", "10.255.255.255", true},
		{"10.0.0.0/8", "9.255.255.255", false},
		{"10.0.0.0/8", "11.0.0.0", false},
		{"10.0.0.0/8", "::ffff:10.0.0.1", true},
		{"10.0.0.0/8", "::a00:1", false},
		{"::/0", "10.0.0.1", false},
		{"::/0", "::ffff:10.0.0.1", false},
		{"0.0.0.0/0", "::1", false},
		{"fe80::/10", "fe80::1%eth0", true},
	}
	for _, tt := range tests {
		if got := mustRange(t, tt.r).Contains(netip.MustParseAddr(tt.a)); got != tt.want {
			t.Errorf("%s contains %s = %v, want %v", tt.r, tt.a, got, tt.want)
		}
	}
	if (Range{}).Contains(netip.Addr{}) {
		t.Error("the zero Range contains the zero Addr")
	}
}

func TestCovers(t *testing.T) {
	tests := []struct {
		name, inner string
		outer       []string
		want        bool
	}{
		{"nothing", "10.0.0.1", nil, false},
		{"itself", "10.0.0.0/8", []string{"10.0.0.0/8"}, true},
		{"wider", "10.0.0.0/8", []string{"0.0.0.0/0"}, true},
		{"one short at the end", "10.0.0.0/30", []string{"10.0.0.0-10.0.0.2"}, false},
		{"one short at the front", "10.0.0.0/30", []string{"10.0.0.1-10.0.0.9"}, false},
		{"two that touch", "10.0.0.0/24", []string{"10.0.0.128/25", "10.0.0.0/25"}, true},
		{"two with a hole", "10.0.0.0/24", []string{"10.0.0.129-10.0.0.255", "10.0.0.0/25"}, false},
		{"overlapping, a short one inside", "10.0.0.0/24", []string{"10.0.0.0-10.0.0.200", "10.0.0.5", "10.0.0.100-10.0.1.0"}, true},
		{"the other family", "10.0.0.0/24", []string{"::/0"}, false},
		{"all of IPv4", "0.0.0.0/0", []string{"128.0.0.0/1", "0.0.0.0/1"}, true},
		{"all of IPv6", "::/0", []string{"8000::/1", "10.0.0.0/8", "::/1"}, true},
		{"all but the last", "0.0.0.0/0", []string{"0.0.0.0-255.255.255.254"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var outer []Range
			for _, s := range tt.outer {
				outer = append(outer, mustRange(t, s))
			}
			if got := Covers(outer, mustRange(t, tt.inner)); got != tt.want {
				t.Errorf("Covers(%v, %s) = %v, want %v", tt.outer, tt.inner, got, tt.want)
			}
		})
	}
	if Covers([]Range{{}, mustRange(t, "0.0.0.0/0")}, Range{}) {
		t.Error("the zero Range is covered")
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{
		"192.0.2.1", "0.0.0.0/0", "::/0", "10.0.0.5-10.0.0.9", "2001:db8::/33", "::ffff:1.2.3.4/97",
		"::fffe:0:0/95", "::1-::ffff:ffff", "fe80::1%a-b", "255.255.255.255-255.255.255.255", "1.2.3.04",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRange(s)
		if err != nil {
			if r != (Range{}) {
				t.Errorf("ParseRange(%q) = %v together with %v", s, r, err)
			}
			return
		}
		if !r.IsValid() {
			t.Fatalf("ParseRange(%q) = %v-%v, not valid", s, r.From, r.To)
		}
		again, err := ParseRange(r.String())
		if err != nil || again != r {
			t.Errorf("%q reads as %v and that as %v, %v", s, r, again, err)
		}
		if !strings.Contains(s, "-") {
			if p, err := netip.ParsePrefix(s); err == nil && !p.Addr().Is4In6() && (!r.Contains(p.Addr()) || !p.Contains(r.From) || !p.Contains(r.To)) {
				t.Errorf("%q reads as %v, netip says %v", s, r, p)
			}
		}
	})
}
