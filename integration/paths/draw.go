package main

import (
	"fmt"
	"html"
	"strings"
)

// step is one line of a box: what is decided there, and the chain, map or set
// that does it.
type step struct {
	what string
	by   string // "" for a rule of the chain itself
}

// The steps of nftfw's base chains, in the order in which a packet meets them.
var (
	preroutingSteps = []step{{"source is blocked: drop", "blocked4"}}
	forwardSteps    = []step{
		{"established: accept", ""},
		{"meant for 127.0.0.0/8 or ::1: drop", "refuse_loopback"},
		{"arrives on a trusted interface: accept", ""},
		{"a container sends it: the next four, accept", "outbound"},
		{"– to a published port", "to_published"},
		{"– to another container", "peers"},
		{"– within one bridge: accept", "bridges"},
		{"– to the outside: its egress", "leaving"},
		{"published, by host address: FROM", "published_at4"},
		{"published: FROM", "published4"},
		{"routed to the container: FROM", "routed4"},
		{"between other links: forward", "through_host"},
		{"anything else: drop", "refuse"},
	}
	inputSteps = []step{
		{"established, or from lo: accept", ""},
		{"to 127.0.0.0/8 or ::1: drop", "refuse_loopback"},
		{"what no host can do without: accept", "essential"},
		{"arrives on a trusted interface: accept", ""},
		{"container to docker-proxy: its egress", "proxied"},
		{"container to the host", "to_host"},
		{"docker-proxy's port, one address: FROM", "host_ports4"},
		{"docker-proxy's port, any address: FROM", "host_any4"},
		{"a port of the host: host.allow", "host_allow"},
		{"source is trusted: accept", "trusted4"},
		{"anything else: host.default", "refuse_host"},
	}
)

// Measures in pixels.
const (
	width, height = 960, 736
	lineHeight    = 21
	headHeight    = 30
)

// Colours: what is nftfw's, what is others', what is neither, and what ends a
// packet.
const (
	ours, oursLine     = "#e3f4e6", "#2f7d43"
	theirs, theirsLine = "#eef0f3", "#8b95a3"
	plain, plainLine   = "#ffffff", "#5b6675"
	dropColour         = "#c0392b"
	ink, faint         = "#1d2530", "#5b6675"
)

// canvas collects the elements of a picture.
type canvas struct{ strings.Builder }

func (c *canvas) add(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

func (c *canvas) text(x, y int, anchor, style, text string) {
	c.add(`<text x="%d" y="%d" text-anchor="%s" %s>%s</text>`, x, y, anchor, style, html.EscapeString(text))
}

// box draws a box with its heading and one line for each step.
func (c *canvas) box(x, y, w int, fill, line, head, note string, steps []step) (bottom int) {
	h := headHeight + len(steps)*lineHeight
	if len(steps) > 0 {
		h += 6
	}
	c.add(`<rect x="%d" y="%d" width="%d" height="%d" rx="6" fill="%s" stroke="%s" stroke-width="1.5"/>`, x, y, w, h, fill, line)
	c.text(x+12, y+20, "start", `font-weight="bold"`, head)
	c.text(x+w-12, y+20, "end", `fill="`+faint+`"`, note)
	for i, s := range steps {
		at := y + headHeight + i*lineHeight
		c.add(`<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="0.5"/>`, x+8, at+1, x+w-8, at+1, line)
		c.text(x+12, at+16, "start", `font-size="13"`, s.what)
		if s.by != "" {
			c.text(x+w-12, at+16, "end", `font-size="12" font-family="DejaVu Sans Mono, monospace" fill="`+faint+`"`, s.by)
		}
	}
	return y + h
}

// arrow draws a line through points, with a head at its end.
func (c *canvas) arrow(points ...int) {
	var path []string
	for i := 0; i < len(points); i += 2 {
		path = append(path, fmt.Sprintf("%d,%d", points[i], points[i+1]))
	}
	c.add(`<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5" marker-end="url(#head)"/>`, strings.Join(path, " "), plainLine)
}

// drop draws the way out of a box of nftfw's to the right or, with a negative
// length, to the left.
func (c *canvas) drop(x, y, length int) {
	c.add(`<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="1.5" marker-end="url(#dropped)"/>`, x, y, x+length, y, dropColour)
	anchor, at := "start", x+length+7
	if length < 0 {
		anchor, at = "end", x+length-7
	}
	c.text(at, y+5, anchor, `fill="`+dropColour+`" font-size="13"`, "drop")
}

// draw gives the picture of the ways through the host as SVG.
func draw() string {
	c := &canvas{}
	c.add(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="14" fill="%s">`, width, height, width, height, ink)
	c.add(`<title>Where a packet is decided on</title>`)
	c.add(`<defs>`)
	for id, colour := range []string{plainLine, dropColour} {
		c.add(`<marker id="%s" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="%s"/></marker>`, []string{"head", "dropped"}[id], colour)
	}
	c.add(`</defs>`)
	c.add(`<rect width="%d" height="%d" fill="#ffffff"/>`, width, height)

	const left, right, column = 70, 500, 390 // the two columns
	middle := width / 2
	// From where it comes.
	c.box(230, 16, 230, plain, plainLine, "the outside", "eth0, wg0, …", nil)
	c.box(500, 16, 230, plain, plainLine, "a container", "docker0, br-…", nil)
	c.arrow(345, 46, 345, 74)
	c.arrow(615, 46, 615, 74)
	y := c.box(230, 76, 500, ours, oursLine, "nftfw: prerouting", "raw − 10", preroutingSteps)
	c.drop(730, 118, 40)
	c.arrow(middle, y, middle, y+22)
	y = c.box(230, y+24, 500, theirs, theirsLine, "connection tracking, then Docker’s DNAT", "dstnat", nil)
	c.arrow(middle, y, middle, y+22)
	y = c.box(430, y+24, 100, plain, plainLine, "routing", "", nil)

	// The two ways.
	top := y + 40
	c.arrow(430, y-15, left+column/2, y-15, left+column/2, top-2)
	c.text(left+column/2+8, y-22, "start", `fill="`+faint+`" font-size="13"`, "to others")
	c.arrow(530, y-15, right+column/2, y-15, right+column/2, top-2)
	c.text(right+column/2-8, y-22, "end", `fill="`+faint+`" font-size="13"`, "to the host")
	yf := c.box(left, top, column, ours, oursLine, "nftfw: forward", "filter − 10", forwardSteps)
	c.drop(left, yf-14, -20)
	yi := c.box(right, top, column, ours, oursLine, "nftfw: input", "filter − 10", inputSteps)
	c.drop(right+column, yi-14, 20)
	bottom := max(yf, yi) + 24
	c.arrow(left+column/2, yf, left+column/2, bottom-2)
	c.arrow(right+column/2, yi, right+column/2, bottom-2)
	c.box(left, bottom, column, theirs, theirsLine, "Docker’s and others’ chains", "forward, filter", nil)
	y = c.box(right, bottom, column, theirs, theirsLine, "others’ chains", "input, filter", nil)
	c.arrow(left+column/2, y, left+column/2, y+22)
	c.arrow(right+90, y, right+90, y+22)
	c.arrow(right+300, y, right+300, y+22)
	y += 24
	c.box(left+95, y, 200, plain, plainLine, "container, or beyond", "", nil)
	c.box(right, y, 180, plain, plainLine, "service of the host", "", nil)
	end := c.box(right+210, y, 180, plain, plainLine, "docker-proxy", "", nil)
	c.arrow(right+300, end, right+300, end+20, left+column/2, end+20, left+column/2, end+2)
	c.text((left+right+column)/2, end+42, "middle", `fill="`+faint+`" font-size="13"`,
		"What a bridge switches between its own containers meets none of these hooks, unless br_netfilter shows it to forward.")
	c.add(`</svg>`)
	return c.String()
}
