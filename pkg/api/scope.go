package api

import (
	"net/http"
	"path/filepath"
)

// Scope is what a daemon takes care of: a policy file, a state directory, both
// as absolute paths, and a table. It stands in the headers of each of its answers.
type Scope struct{ Policy, StateDir, Table string }

// NewScope makes a Scope of what was given on a command line.
func NewScope(policy, stateDir, table string) Scope {
	return Scope{Policy: absolute(policy), StateDir: absolute(stateDir), Table: table}
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// Names of the headers.
const (
	headerPolicy   = "Nftfw-Policy"
	headerStateDir = "Nftfw-State-Dir"
	headerTable    = "Nftfw-Table"
)

// Sign puts s into the headers of an answer.
func (s Scope) Sign(h http.Header) {
	h.Set(headerPolicy, s.Policy)
	h.Set(headerStateDir, s.StateDir)
	h.Set(headerTable, s.Table)
}

func scopeOf(h http.Header) Scope {
	return Scope{Policy: h.Get(headerPolicy), StateDir: h.Get(headerStateDir), Table: h.Get(headerTable)}
}
