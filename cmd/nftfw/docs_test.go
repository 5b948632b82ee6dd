package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

var (
	updateDocs = flag.Bool("update", false, "write docs/commands.md anew")
	manFolder  = flag.String("man", "", "write the man pages into this `folder`")
)

// documented calls fn for every command that people type.
func documented(cmd *cobra.Command, fn func(*cobra.Command)) {
	if cmd.Hidden || cmd.IsAdditionalHelpTopicCommand() || cmd.Name() == "help" {
		return
	}
	fn(cmd)
	for _, sub := range cmd.Commands() {
		documented(sub, fn)
	}
}

func documentedRoot() *cobra.Command {
	root := newRoot(&app{stdin: strings.NewReader(""), stdout: &output{Writer: &bytes.Buffer{}}, stderr: &bytes.Buffer{}})
	root.DisableAutoGenTag = true
	return root
}

// The man pages are made of the commands themselves. With -man they are kept.
func TestManPages(t *testing.T) {
	folder, date := *manFolder, ""
	if folder == "" {
		folder, date = t.TempDir(), `"May 2026"`
		t.Setenv("SOURCE_DATE_EPOCH", "1778846400")
	}
	root := documentedRoot()
	// Their date is SOURCE_DATE_EPOCH, so that the same tree gives the same pages.
	header := &doc.GenManHeader{Section: "8", Source: "nftfw", Manual: "nftfw"}
	if err := doc.GenManTree(root, header, folder); err != nil {
		t.Fatal(err)
	}
	documented(root, func(cmd *cobra.Command) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".8"
		page, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Error(err)
			return
		}
		for _, section := range []string{date, ".SH NAME", ".SH SYNOPSIS", cmd.Short} {
			if !strings.Contains(strings.ReplaceAll(string(page), `\-`, "-"), section) {
				t.Errorf("%s lacks %q", name, section)
			}
		}
	})
}

// docs/commands.md is made of the commands themselves.
func TestCommandsReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Commands\n\nMade from the commands themselves by `make docs`: `nftfw COMMAND --help` prints the same.\n")
	root := documentedRoot()
	documented(root, func(cmd *cobra.Command) {
		if cmd.Parent() != nil && cmd.Parent().Name() == "completion" {
			return // one shell's page is like another's
		}
		b.WriteString("\n## " + cmd.CommandPath() + "\n\n")
		b.WriteString(firstOf(cmd.Long, cmd.Short) + "\n\n    " + cmd.UseLine() + "\n")
		if cmd.Example != "" {
			b.WriteString("\nExamples:\n\n" + indent(cmd.Example, "  ") + "\n")
		}
		flags := cmd.NonInheritedFlags()
		flags.SortFlags = true
		if usage := flags.FlagUsagesWrapped(90); strings.TrimSpace(usage) != "" {
			b.WriteString("\nFlags:\n\n" + indent(strings.TrimRight(usage, "\n"), "  ") + "\n")
		}
	})
	const file = "../../docs/commands.md"
	if *updateDocs {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("%s is not current, run make docs (-want +got):\n%s", file, diff)
	}
}

func firstOf(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}

func indent(text, by string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = by + line
		}
	}
	return strings.Join(lines, "\n")
}

// typed are lines in documents that tell people to type a command of nftfw.
var typed = regexp.MustCompile("(?m)^ {4,}(?:\\$ |sudo )?(?:[a-z0-9 ]+ \\| )?(nftfw [a-z].*)$|`(nftfw [a-z][^`]*)`")

// Every command that the documents tell people to type exists, with its flags.
func TestDocumentsTypeRealCommands(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../../README.md", "../../docs/*.md", "../../examples/*", "../../packaging/*/*.y*ml"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	commands := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range typed.FindAllStringSubmatch(string(text), -1) {
			line := m[1] + m[2]
			line, _, _ = strings.Cut(line, " #")
			line, _, _ = strings.Cut(line, ";")
			line, _, _ = strings.Cut(line, " > ")
			line, _, _ = strings.Cut(line, " | ")
			words := strings.Fields(line)[1:]
			if strings.ContainsAny(line, "[·…=") {
				continue // a form, or a sentence
			}
			commands++
			root := documentedRoot()
			cmd, rest, err := root.Find(words)
			if err == nil {
				err = cmd.ParseFlags(quotedTogether(rest))
			}
			if err != nil || cmd == root {
				t.Errorf("%s: %q is no command of nftfw: %v", file, line, err)
			}
		}
	}
	if commands < 40 {
		t.Errorf("only %d commands found in the documents", commands)
	}
}

// quotedTogether puts words that are quoted together into one.
func quotedTogether(words []string) []string {
	var out []string
	for i := 0; i < len(words); i++ {
		word := words[i]
		for strings.Count(word, `"`)%2 == 1 && i+1 < len(words) {
			i++
			word += " " + words[i]
		}
		out = append(out, word)
	}
	return out
}
