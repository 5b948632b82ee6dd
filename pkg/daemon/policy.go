package daemon

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nftfw/nftfw/pkg/api"
	"github.com/nftfw/nftfw/pkg/store"
	"github.com/nftfw/nftfw/policy"
)

// Where a policy in force came from, as `status` says it.
const (
	SourceFile     = "file"
	SourceLastGood = "last-good"
	SourceDefault  = "default"
)

// loadedPolicy is a policy with its provenance.
type loadedPolicy struct {
	*policy.Policy
	path     string // of the file that was asked for
	source   string // SourceFile, SourceLastGood or SourceDefault
	text     []byte // nil for the default
	warnings []policy.Diagnostic
	err      error // why the file is not the source; nil when it is

	// observing is set when the policy only observes, though its file says
	// otherwise. Such a one is never kept as the last good one.
	observing bool
}

// observe gives the policy that refuses nothing in place of l, because of why.
func (l loadedPolicy) observe(why error) loadedPolicy {
	p := *l.Policy
	p.Mode = policy.Observe
	l.Policy, l.observing, l.err = &p, true, why
	return l
}

func (l loadedPolicy) hash() string {
	if l.text == nil {
		return ""
	}
	sum := sha256.Sum256(l.text)
	return hex.EncodeToString(sum[:])
}

// identity tells policies apart, the embedded default included.
func (l loadedPolicy) identity() string { return cmp.Or(l.hash(), SourceDefault) }

// parsePolicy makes a policy of a file's text; nil text, no file, is the
// embedded default.
func parsePolicy(path string, text []byte) (loadedPolicy, error) {
	if text == nil {
		return loadedPolicy{Policy: policy.Default(thisHost.sshdPorts()), path: path, source: SourceDefault}, nil
	}
	p, warnings, err := policy.Parse(path, text)
	if err != nil {
		return loadedPolicy{}, err
	}
	return loadedPolicy{Policy: p, path: path, source: SourceFile, text: text, warnings: warnings}, nil
}

// ReadPolicyFile reads the policy file at path. It gives nil text when there
// is none. Its error is an *api.Error of KindInvalid.
func ReadPolicyFile(path string) ([]byte, error) {
	f, err := os.Open(filepath.Clean(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, api.Invalidf("read policy: %v", err)
	}
	defer f.Close()
	return ReadPolicy(f, path)
}

// ReadPolicy reads a policy of some name to its end. Its error is that of
// ReadPolicyFile.
func ReadPolicy(r io.Reader, name string) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, policy.MaxFile+1)) // never nil: an empty file is a file
	switch {
	case err != nil:
		return nil, api.Invalidf("read policy: %v", err)
	case len(text) > policy.MaxFile:
		return nil, api.Invalidf("read policy: %s has more than %d MB: keep long lists in files that the sources of a set name", name, policy.MaxFile>>20)
	}
	return text, nil
}

// startPolicy finds the policy to begin with: the file, else the last good
// one, else the embedded default.
func startPolicy(path string, st *store.Store) loadedPolicy {
	text, err := ReadPolicyFile(path)
	if err == nil {
		var l loadedPolicy
		if l, err = parsePolicy(path, text); err == nil {
			return l
		}
	}
	return fallbackPolicy(path, st, err)
}

// savedPolicy gives the policy that was last put in force, without looking at
// the policy file unless there is none.
func savedPolicy(path string, st *store.Store) loadedPolicy {
	l, err := lastGood(st, path)
	if err != nil {
		return startPolicy(path, st)
	}
	return l
}

// lastGood reads the policy that was last put in force; the embedded default
// is kept as an empty text.
func lastGood(st *store.Store, path string) (loadedPolicy, error) {
	text, name, err := st.LoadPolicy()
	switch {
	case err != nil:
		return loadedPolicy{}, err
	case len(text) == 0:
		return parsePolicy(path, nil)
	}
	return parsePolicy(name, text)
}

// fallbackPolicy gives the last good policy, or the default, in place of a
// file that cannot be used because of cause.
func fallbackPolicy(path string, st *store.Store, cause error) loadedPolicy {
	if l, err := lastGood(st, path); err == nil && l.text != nil {
		l.path, l.source, l.err = path, SourceLastGood, cause
		return l
	}
	l, _ := parsePolicy(path, nil) // the default cannot fail
	l.err = cause
	return l
}
