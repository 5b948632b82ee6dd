package ruleset

import (
	"bufio"
	"fmt"
	"strings"
	"time"
)

// writeDynamic writes what a dynamic set has besides its type.
func (s *Set) writeDynamic(b *bufio.Writer) {
	fmt.Fprintf(b, "\t\tsize %d\n\t\tflags dynamic,timeout\n", s.Size)
	if s.Counter {
		b.WriteString("\t\tcounter\n")
	}
	if s.Timeout > 0 {
		fmt.Fprintf(b, "\t\ttimeout %s\n", appendTimeout(nil, s.Timeout))
	}
}

func (u *Update) write(b *strings.Builder, proto l4Context) {
	fmt.Fprintf(b, "update @%s { ", u.Set)
	writeFields(b, u.Key, proto)
	if u.Timeout > 0 {
		fmt.Fprintf(b, " timeout %s", appendTimeout(nil, u.Timeout))
	}
	b.WriteString(" }")
}

// dynamic checks a dynamic set. Its key may hold a field twice, a source and a
// destination for one: no Key of ours has to.
func (v *validator) dynamic(s *Set) {
	if s.HoldsRanges() || s.Verdicts {
		v.failf("a dynamic set is neither an interval set nor a map")
	}
	if s.Ranges.Len() > 0 || len(s.Elements) > 0 {
		v.failf("what a dynamic set holds is no part of the table")
	}
	if s.Size == 0 {
		// The kernel would let 65535 in, and nft would list that (nft_dynset_init).
		v.failf("a dynamic set has a size")
	}
	for _, f := range s.Key {
		if keyMember(f) == "" {
			v.failf("%q cannot be part of a key", f)
		}
	}
	v.timeout(s.Timeout)
}

// timeout refuses times that the text cannot tell.
func (v *validator) timeout(d time.Duration) {
	if d < 0 || d%time.Second != 0 {
		v.failf("a timeout has whole seconds, not %s", d)
	}
}

func (v *validator) update(r *Rule) {
	if r.VMap != nil {
		v.failf("both an update and a verdict map")
	}
	v.timeout(r.Update.Timeout)
	v.lookup(r.Update.Set, r.Update.Key, false)
	if s := v.table.Set(r.Update.Set); s != nil && !s.Dynamic {
		v.failf("@%s is no dynamic set", s.Name)
	}
}
