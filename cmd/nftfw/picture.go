package main

import (
	"cmp"
	"context"
	"fmt"
	"html"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/nftfw/nftfw/pkg/api"
)

// drawPorts writes a picture of the ports into a file.
func (a *app) drawPorts(ctx context.Context, ports api.Ports, path string) error {
	sets, err := do(ctx, a, func(c control) (api.Sets, error) { return c.Sets(ctx) })
	if err != nil {
		return err
	}
	entries := map[string]int{}
	for _, s := range sets.Sets {
		entries[s.Name] = s.Entries
	}
	if err := os.WriteFile(path, []byte(portsPicture(ports, entries)), 0o644); err != nil {
		return fmt.Errorf("write picture: %w", err)
	}
	return nil
}

// Measures of the picture in pixels.
const (
	pictureLeft, pictureTop = 20, 84
	rowHeight, rowGap       = 24, 8 // the gap is between containers
	sourceWidth, sourceRow  = 180, 40
	lane                    = 14 // between the lines that lead down from two sources
	portWidth               = 330
	portGap                 = 84 // from ports to containers
	containerWidth          = 270
)

// Colours of the picture. Lines have one of several greens, so that the eye can
// follow one among others.
var openLines = [...]string{"#2f8f4e", "#0f7c7c", "#6a9a1f", "#14603a", "#3aa58c", "#88a83a"}

const (
	openLine, openFill     = "#2f8f4e", "#e4f5e8"
	closedLine, closedFill = "#a3abb6", "#f1f3f5"
	inkColour, faintColour = "#1d2530", "#5b6675"
	warnColour             = "#b35c00"
)

// pictureRow is one port of the host, with both families where they are alike.
type pictureRow struct {
	container, compose, host, port string
	from                           []string
	open                           bool
	y                              int // of its middle
}

// picture is what is drawn, and where its columns begin.
type picture struct {
	strings.Builder
	rows                       []pictureRow
	sources                    []pictureSource
	lanes, ports, boxes, width int
	height                     int
}

func (p *picture) add(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

// portsPicture draws who reaches which port of which container, as SVG: sources
// on the left, ports of the host in the middle, containers on the right.
// entries are the sizes of the sets by name: what is open to an empty set alone
// is closed.
func portsPicture(ports api.Ports, entries map[string]int) string {
	p := &picture{rows: pictureRows(ports.Ports, entries)}
	p.sources = pictureSources(p.rows, entries)
	p.lanes = pictureLeft + sourceWidth + 24
	p.ports = p.lanes + lane*len(p.sources) + 16
	p.boxes = p.ports + portWidth + portGap
	p.width = p.boxes + containerWidth + pictureLeft
	p.height = pictureTop + len(p.sources)*sourceRow + 60
	if n := len(p.rows); n > 0 {
		p.height = max(p.height, p.rows[n-1].y+rowHeight/2+60)
	}
	p.add(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" fill="%s">`,
		p.width, p.height, p.width, p.height, inkColour)
	p.add(`<title>Who reaches which published port</title>`)
	p.add(`<rect width="%d" height="%d" fill="#ffffff"/>`, p.width, p.height)
	for _, head := range []struct {
		x    int
		text string
	}{{pictureLeft, "Sources"}, {p.ports, "Ports of the host"}, {p.boxes, "Containers"}} {
		p.add(`<text x="%d" y="36" font-size="18" font-weight="bold">%s</text>`, head.x, head.text)
	}
	note, colour := "trusted also reaches every port that is not open to none", faintColour
	if !ports.Enforced {
		note, colour = "not enforced: nothing of this is refused", warnColour
	}
	p.add(`<text x="%d" y="58" fill="%s">%s</text>`, pictureLeft, colour, note)
	p.drawLines()
	for _, s := range p.sources {
		p.drawBox(pictureLeft, s.y-15, sourceWidth, 30, s.open, s.name, s.note)
	}
	for _, r := range p.rows {
		p.drawBox(p.ports, r.y-rowHeight/2+2, portWidth, rowHeight-4, r.open, r.host, strings.Join(r.from, ", "))
	}
	p.drawContainers()
	legend := p.height - 22
	for i, l := range []struct{ line, fill, text string }{
		{openLine, openFill, "open to somebody"},
		{closedLine, closedFill, "closed to all but the host"},
	} {
		x := pictureLeft + i*180
		p.add(`<rect x="%d" y="%d" width="22" height="14" rx="3" fill="%s" stroke="%s"/>`, x, legend-12, l.fill, l.line)
		p.add(`<text x="%d" y="%d" fill="%s">%s</text>`, x+30, legend, faintColour, l.text)
	}
	p.add(`</svg>`)
	return p.String()
}

// pictureRows gives the ports in the order of their containers, with the two
// wildcard addresses in one row.
func pictureRows(ports []api.Port, entries map[string]int) []pictureRow {
	var rows []pictureRow
	for _, p := range ports {
		host := cmp.Or(p.HostIP, "*")
		if host == "0.0.0.0" || host == "::" {
			host = "*"
		}
		r := pictureRow{
			container: p.Container, compose: composeName(p), from: p.From,
			host: net.JoinHostPort(host, strconv.Itoa(int(p.HostPort))) + "/" + p.Proto,
			port: fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto),
			open: p.HostIP != "127.0.0.1" && p.HostIP != "::1" && slices.ContainsFunc(p.From, func(from string) bool { return !isEmpty(from, entries) }),
		}
		if !slices.ContainsFunc(rows, func(o pictureRow) bool {
			return o.container == r.container && o.host == r.host && o.port == r.port && slices.Equal(o.from, r.from)
		}) {
			rows = append(rows, r)
		}
	}
	slices.SortStableFunc(rows, func(a, b pictureRow) int {
		return cmp.Or(cmp.Compare(a.compose, b.compose), cmp.Compare(a.container, b.container))
	})
	y := pictureTop
	for i := range rows {
		if i > 0 && rows[i].container != rows[i-1].container {
			y += rowGap
		}
		rows[i].y = y + rowHeight/2
		y += rowHeight
	}
	return rows
}

// isEmpty reports whether nobody is in a FROM.
func isEmpty(from string, entries map[string]int) bool {
	n, isSet := entries[from]
	return from == "none" || isSet && n == 0
}

// pictureSource is one source with where it is drawn.
type pictureSource struct {
	name, note string
	open       bool
	y          int
}

// pictureSources gives the sources that the rows speak of, from any to those
// that reach the fewest ports.
func pictureSources(rows []pictureRow, entries map[string]int) []pictureSource {
	reaches := map[string]int{}
	for _, r := range rows {
		for _, from := range r.from {
			if from != "none" {
				reaches[from]++
			}
		}
	}
	names := slices.SortedFunc(maps.Keys(reaches), func(a, b string) int {
		if (a == "any") != (b == "any") {
			return map[bool]int{true: -1, false: 1}[a == "any"]
		}
		return cmp.Or(cmp.Compare(reaches[b], reaches[a]), cmp.Compare(a, b))
	})
	var out []pictureSource
	for i, name := range names {
		s := pictureSource{name: name, open: !isEmpty(name, entries), y: pictureTop + 15 + i*sourceRow}
		switch n, isSet := entries[name]; {
		case name == "any":
			s.note = "everybody"
		case isSet && n == 1:
			s.note = "1 entry"
		case isSet:
			s.note = fmt.Sprintf("%d entries", n)
		}
		out = append(out, s)
	}
	return out
}

// drawLines leads a line from each source along all its ports, with a dot where
// it branches off, and one from each port to its container.
func (p *picture) drawLines() {
	for i := range p.sources {
		s := &p.sources[i]
		x, top, bottom := p.lane(i), s.y, s.y
		for _, r := range p.rows {
			if slices.Contains(r.from, s.name) {
				top, bottom = min(top, r.y), max(bottom, r.y)
			}
		}
		style := p.style(i, s.open)
		p.add(`<line x1="%d" y1="%d" x2="%d" y2="%d" %s/>`, pictureLeft+sourceWidth, s.y, x, s.y, style)
		p.add(`<line x1="%d" y1="%d" x2="%d" y2="%d" %s/>`, x, top, x, bottom, style)
	}
	for _, r := range p.rows {
		for i, s := range p.sources {
			if !slices.Contains(r.from, s.name) {
				continue
			}
			open := s.open && r.open
			p.add(`<line x1="%d" y1="%d" x2="%d" y2="%d" %s/>`, p.lane(i), r.y, p.ports, r.y, p.style(i, open))
			fill := "#ffffff"
			if open {
				fill = openLines[i%len(openLines)]
			}
			p.add(`<circle cx="%d" cy="%d" r="3.5" fill="%s" %s/>`, p.lane(i), r.y, fill, p.style(i, open))
		}
		line := closedLine
		if r.open {
			line = openLine
		}
		right := p.ports + portWidth
		p.add(`<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="1.4"/>`, right, r.y, p.boxes, r.y, line)
		p.add(`<text x="%d" y="%d" text-anchor="middle" font-size="11" fill="%s">%s</text>`, right+portGap/2, r.y-4, faintColour, html.EscapeString(r.port))
	}
}

// lane is where the line of a source leads down. Those of the first sources are
// on the right, so that what branches off to a source's box crosses no other.
func (p *picture) lane(source int) int { return p.lanes + lane*(len(p.sources)-1-source) }

func (p *picture) style(source int, open bool) string {
	if !open {
		return fmt.Sprintf(`stroke="%s" stroke-width="1.2" stroke-dasharray="3 3"`, closedLine)
	}
	return fmt.Sprintf(`stroke="%s" stroke-width="1.6"`, openLines[source%len(openLines)])
}

// drawContainers draws a box beside all ports of each container.
func (p *picture) drawContainers() {
	rows := p.rows
	for i := 0; i < len(rows); {
		n, open := i, false
		for ; n < len(rows) && rows[n].container == rows[i].container && rows[n].compose == rows[i].compose; n++ {
			open = open || rows[n].open
		}
		top := rows[i].y - rowHeight/2 + 2
		p.drawBox(p.boxes, top, containerWidth, rows[n-1].y+rowHeight/2-2-top, open, rows[i].container, rows[i].compose)
		i = n
	}
}

// drawBox draws a box with a name, and a note at its end where there is room.
func (p *picture) drawBox(x, y, w, h int, open bool, name, note string) {
	line, fill := closedLine, closedFill
	if open {
		line, fill = openLine, openFill
	}
	middle := y + h/2 + 5
	p.add(`<g><title>%s</title><rect x="%d" y="%d" width="%d" height="%d" rx="5" fill="%s" stroke="%s" stroke-width="1.4"/>`,
		html.EscapeString(strings.TrimSpace(name+" "+note)), x, y, w, h, fill, line)
	const letter = 8 // the width of one, about
	room := (w - 20) / letter
	p.add(`<text x="%d" y="%d">%s</text>`, x+10, middle, html.EscapeString(shorten(name, room)))
	if left := room - utf8.RuneCountInString(name) - 2; note != "" && left > 3 {
		p.add(`<text x="%d" y="%d" text-anchor="end" font-size="11" fill="%s">%s</text>`, x+w-10, middle, faintColour, html.EscapeString(shorten(note, left+left/4)))
	}
	p.add(`</g>`)
}

// shorten cuts text to at most n letters.
func shorten(text string, n int) string {
	runes := []rune(text)
	if len(runes) <= n {
		return text
	}
	return string(runes[:n-1]) + "…"
}
