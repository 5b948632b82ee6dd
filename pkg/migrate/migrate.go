package migrate

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nftfw/nftfw/policy"
)

// File is one file to read: the output of iptables-save, ip6tables-save,
// iptables -S, ipset save or ufw status.
type File struct {
	Name string // for messages
	Text string
}

// Result is a policy file and what it does not say.
type Result struct {
	Policy []byte // passes policy.Parse
	Notes  []Note // also in Policy, as comments
}

// Import makes a policy of what the files say together. An empty file beside
// others says nothing. An error is about a file that cannot be read as any of
// these, whose family is not known, or that does not go with another one.
func Import(files []File) (Result, error) { return importWithin(maxSteps, files) }

func importWithin(steps int, files []File) (Result, error) {
	s := &source{sets: map[string]*namedSet{}, origins: map[chainID]origin{}, steps: steps}
	readers := map[format]func(name, text string) error{
		formatIPSet: s.readIPSet, formatIPTables: s.readIPTables, formatUFW: s.readUFW,
	}
	seen := map[format][]string{}
	given := withText(files)
	for _, f := range given {
		kind, err := formatOf(f)
		if err != nil {
			return Result{}, err
		}
		seen[kind] = append(seen[kind], f.Name)
	}
	if len(seen[formatUFW]) > 0 && len(seen[formatIPTables]) > 0 || len(seen[formatUFW]) > 1 {
		return Result{}, errors.New("give either what ufw status prints or what iptables-save and ip6tables-save print: the second has all of ufw's rules as well")
	}
	if len(files) == 0 {
		return Result{}, errors.New("no file to import")
	}
	// Sets first: rules name them.
	for _, kind := range []format{formatIPSet, formatIPTables, formatUFW} {
		for _, f := range given {
			if k, err := formatOf(f); err != nil || k != kind {
				continue
			}
			if err := readers[kind](f.Name, f.Text); err != nil {
				return Result{}, err
			}
		}
	}
	d, err := s.decide()
	if err != nil {
		return Result{}, err
	}
	w := newWriter(d)
	text := w.policy(files)
	if _, _, err := policy.Parse("imported", text); err != nil {
		return Result{}, fmt.Errorf("check the imported policy: %w", err)
	}
	return Result{Policy: text, Notes: s.notes}, nil
}

// withText gives the files that are not empty, or all if all are: where nothing
// is loaded iptables-save and ipset save print nothing.
func withText(files []File) []File {
	given := slices.DeleteFunc(slices.Clone(files), func(f File) bool { return strings.TrimSpace(f.Text) == "" })
	if len(given) == 0 {
		return files
	}
	return given
}

type format int

const (
	formatIPTables format = iota
	formatIPSet
	formatUFW
)

// formatOf tells from its lines what a file is.
func formatOf(f File) (format, error) {
	for line := range strings.Lines(f.Text) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case word == "create" || word == "add":
			return formatIPSet, nil
		case strings.HasPrefix(line, "Status:"):
			return formatUFW, nil
		case unprintable().MatchString(line) || strings.HasPrefix(word, "*") || strings.HasPrefix(word, ":") || slices.Contains([]string{"-P", "-N", "-A"}, word):
			return formatIPTables, nil
		}
	}
	return 0, fmt.Errorf("%s: this is not what iptables-save, ip6tables-save, ipset save or ufw status print", f.Name)
}
