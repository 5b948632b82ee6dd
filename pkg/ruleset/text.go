package ruleset

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ifNameSize is IFNAMSIZ, include/uapi/linux/if.h.
const ifNameSize = 16

// WriteText writes t as text for `nft -f`. Once loaded, `nft list table inet
// NAME` of nft 1.0.6 prints the same bytes, apart from the numbers of counters
// and the times of elements that expire. Counters are written as zero.
//
// An element that expires is written with the time that it has left at now,
// in whole seconds rounded up, as its timeout; one that has expired by then is
// left out. The text needs a Table that Validate accepts. An error is the
// writer's.
func (t *Table) WriteText(w io.Writer, now time.Time) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "table inet %s {\n", t.Name)
	first := true
	gap := func() {
		if !first {
			b.WriteByte('\n')
		}
		first = false
	}
	for _, s := range t.Sets {
		gap()
		s.write(b, now)
	}
	for _, c := range t.Chains {
		gap()
		c.write(b)
	}
	b.WriteString("}\n")
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write table %q as text: %w", t.Name, err)
	}
	return nil
}

// Text gives what WriteText writes.
func (t *Table) Text(now time.Time) string {
	var b strings.Builder
	_ = t.WriteText(&b, now) // a strings.Builder takes everything
	return b.String()
}

// zeroCounter is a counter of a rule or an element, as nft lists one that has
// counted nothing.
const zeroCounter = "counter packets 0 bytes 0"

func (c *Chain) write(b *bufio.Writer) {
	fmt.Fprintf(b, "\tchain %s {\n", c.Name)
	if c.Hook != "" {
		fmt.Fprintf(b, "\t\ttype filter hook %s priority %s; policy %s;\n",
			c.Hook, priorityText(c.Hook, c.Priority), c.Policy)
	}
	for _, r := range c.Rules {
		b.WriteString("\t\t")
		b.WriteString(r.text(zeroCounter))
		b.WriteByte('\n')
	}
	b.WriteString("\t}\n")
}

// priorityText names a priority the way nft does: relative to a standard one
// that is at most 10 away (prio2str, nftables src/rule.c).
func priorityText(h Hook, priority int) string {
	const reach = 10
	standard := []struct {
		name string
		at   int
		hook Hook // the only hook that has it
	}{
		{"raw", PriorityRaw, ""},
		{"mangle", -150, ""},
		{"dstnat", -100, Prerouting},
		{"filter", PriorityFilter, ""},
		{"security", 50, ""},
		{"srcnat", 100, Postrouting},
	}
	for _, s := range standard {
		off := priority - s.at
		switch {
		case off < -reach || off > reach || s.hook != "" && s.hook != h:
		case off == 0:
			return s.name
		case off < 0:
			return fmt.Sprintf("%s - %d", s.name, -off)
		default:
			return fmt.Sprintf("%s + %d", s.name, off)
		}
	}
	return strconv.Itoa(priority)
}

// TypeText gives what follows "type" in the declaration of the set,
// "ipv4_addr . inet_service : verdict".
func (s *Set) TypeText() string {
	types := make([]string, len(s.Key))
	for i, f := range s.Key {
		types[i] = f.KeyType()
	}
	text := strings.Join(types, " . ")
	if s.Verdicts {
		text += " : verdict"
	}
	return text
}

func (s *Set) write(b *bufio.Writer, now time.Time) {
	kind := "set"
	if s.Verdicts {
		kind = "map"
	}
	fmt.Fprintf(b, "\t%s %s {\n\t\ttype %s\n", kind, s.Name, s.TypeText())
	list := elementList{w: b, perLine: perLine(s.Key)}
	switch {
	case s.Dynamic:
		s.writeDynamic(b)
	case s.HoldsRanges():
		switch {
		case s.Interval:
			b.WriteString("\t\tflags interval,timeout\n")
		case s.Part == Lasting:
			fmt.Fprintf(b, "\t\tsize %d\n", s.Size)
		default:
			b.WriteString("\t\tflags timeout\n")
		}
		s.writeRanges(&list, now)
	default:
		if s.Counter {
			b.WriteString("\t\tcounter\n")
		}
		s.writeElements(&list)
	}
	list.end()
	b.WriteString("\t}\n")
}

func (s *Set) writeRanges(list *elementList, now time.Time) {
	var line []byte
	for seg := range s.Pieces() {
		line = appendRange(line[:0], seg.From, seg.To)
		if !seg.Expires.IsZero() {
			left := seg.Expires.Sub(now)
			if left <= 0 {
				continue
			}
			line = append(line, " timeout "...)
			line = appendTimeout(line, left)
			line = append(line, " expires "...)
			line = appendTimeout(line, left)
		}
		list.add(line)
	}
}

func (s *Set) writeElements(list *elementList) {
	var line []byte
	for _, k := range s.SortedKeys() {
		line = s.appendElement(line[:0], k, s.Elements[k], s.Counter)
		list.add(line)
	}
}

func (s *Set) appendElement(b []byte, k Key, e Element, counter bool) []byte {
	b = k.appendText(b, s.Key)
	if counter {
		b = append(b, " "+zeroCounter...)
	}
	if e.Comment != "" {
		b = append(b, ` comment "`...)
		b = append(b, e.Comment...)
		b = append(b, '"')
	}
	if s.Verdicts {
		b = append(b, " : "...)
		b = append(b, e.Verdict.String()...)
	}
	return b
}

// SortedKeys gives the keys of Elements in the order in which nft lists them.
func (s *Set) SortedKeys() []Key {
	type item struct {
		order string
		key   Key
	}
	items := make([]item, 0, len(s.Elements))
	for k := range s.Elements {
		items = append(items, item{k.sortKey(s.Key), k})
	}
	slices.SortFunc(items, func(a, b item) int { return strings.Compare(a.order, b.order) })
	keys := make([]Key, len(items))
	for i, it := range items {
		keys[i] = it.key
	}
	return keys
}

// perLine is how many elements nft prints on a line for the type of the key
// (calculate_delim, nftables src/expression.c).
func perLine(key []Field) int {
	if len(key) != 1 {
		return 1
	}
	switch key[0].KeyType() {
	case "inet_proto", "inet_service":
		return 5
	case "ipv4_addr":
		return 2
	}
	return 1
}

// elementList writes "elements = { ... }" as its elements come.
type elementList struct {
	w       *bufio.Writer
	perLine int
	n       int
}

func (l *elementList) add(text []byte) {
	switch {
	case l.n == 0:
		l.w.WriteString("\t\telements = { ")
	case l.n%l.perLine == 0:
		l.w.WriteString(",\n\t\t\t     ")
	default:
		l.w.WriteString(", ")
	}
	l.n++
	l.w.Write(text)
}

func (l *elementList) end() {
	if l.n > 0 {
		l.w.WriteString(" }\n")
	}
}

// appendTimeout writes d, rounded up to seconds, as nft does: 1d2h3m4s.
func appendTimeout(b []byte, d time.Duration) []byte {
	seconds := int64((d + time.Second - 1) / time.Second)
	for _, unit := range []struct {
		name byte
		size int64
	}{{'d', 86400}, {'h', 3600}, {'m', 60}, {'s', 1}} {
		if n := seconds / unit.size; n > 0 {
			b = strconv.AppendInt(b, n, 10)
			b = append(b, unit.name)
			seconds %= unit.size
		}
	}
	return b
}
