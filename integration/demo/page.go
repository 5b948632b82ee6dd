package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// page prints the show. It counts what was not as it must be.
type page struct {
	w       io.Writer
	colours bool
	steps   int
	checks  int
	wrong   int
}

// SGR codes (ECMA-48).
const (
	bold  = "1"
	dim   = "2"
	red   = "1;31"
	green = "32"
	cyan  = "36"
)

func (p *page) paint(code, text string) string {
	if !p.colours {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

const width = 78

// step begins a part of the show.
func (p *page) step(title string) {
	p.steps++
	head := fmt.Sprintf("── %d. %s ", p.steps, title)
	fmt.Fprintf(p.w, "\n%s\n", p.paint(bold, head+strings.Repeat("─", max(0, width-utf8.RuneCountInString(head)))))
}

// note prints a sentence.
func (p *page) note(format string, args ...any) { fmt.Fprintf(p.w, format+"\n", args...) }

// command shows what is typed.
func (p *page) command(args ...string) {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if strings.ContainsAny(a, " *") {
			words[i] = "'" + a + "'"
		}
	}
	fmt.Fprintf(p.w, "%s %s\n", p.paint(cyan, "$"), p.paint(bold, strings.Join(words, " ")))
}

// block prints a command's output or a file, indented.
func (p *page) block(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Fprintf(p.w, "    %s\n", p.paint(dim, strings.TrimRight(line, "\n")))
	}
}

// measured prints a number with what it is of.
func (p *page) measured(value, what string) {
	fmt.Fprintf(p.w, "  %s  %s\n", p.paint(bold, fmt.Sprintf("%10s", value)), what)
}

// check notes whether something is as it must be, and says so loudly if not.
func (p *page) check(ok bool, format string, args ...any) {
	p.checks++
	if ok {
		return
	}
	p.wrong++
	fmt.Fprintf(p.w, "  %s\n", p.paint(red, "NOT AS IT MUST BE: "+fmt.Sprintf(format, args...)))
}

// grid prints what was measured as a table of clients and ports, and checks
// every cell.
func (p *page) grid(g grid) {
	const first, cell = 16, 8
	head, families := strings.Repeat(" ", first), strings.Repeat(" ", first)
	for _, c := range g.containers {
		head += fmt.Sprintf("%-*s", 2*cell, fmt.Sprintf("%s :%d", c.name, c.port))
		families += fmt.Sprintf("%-*s%-*s", cell, "v4", cell, "v6")
	}
	fmt.Fprintf(p.w, "\n  %s\n  %s\n", p.paint(bold, strings.TrimRight(head, " ")), p.paint(dim, strings.TrimRight(families, " ")))
	var wrong []cellKey
	for _, client := range g.clients {
		line := fmt.Sprintf("%-*s", first, strings.TrimSpace(client.name+" "+client.note))
		for _, container := range g.containers {
			for _, f := range bothFamilies {
				key := cellKey{client.name, container.name, f}
				text := fmt.Sprintf("%-*s", cell, g.found[key])
				switch {
				case g.found[key] != g.must(key):
					wrong = append(wrong, key)
					text = p.paint(red, fmt.Sprintf("%-*s", cell, string(g.found[key])+"!"))
				case g.found[key] == open:
					text = p.paint(green, text)
				default:
					text = p.paint(dim, text)
				}
				line += text
			}
		}
		fmt.Fprintf(p.w, "  %s\n", strings.TrimRight(line, " "))
	}
	p.checks += len(g.found) - len(wrong)
	for _, key := range wrong {
		p.check(false, "%s is %s to %s over IP%s, and must be %s", key.container, g.found[key], key.client, key.family, g.must(key))
	}
	if len(wrong) == 0 {
		fmt.Fprintf(p.w, "  %s\n", p.paint(dim, fmt.Sprintf("%d connections tried, each as it must be", len(g.found))))
	}
}
