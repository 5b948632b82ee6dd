package doctor

import (
	"cmp"
	"slices"
)

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // something is open, or broken, or not enforced
	Warning Severity = "warning" // something may be, or will not do what it seems to
)

// Finding is one thing that is wrong on a host.
type Finding struct {
	ID       string   `json:"id"` // stable across releases
	Severity Severity `json:"severity"`
	What     string   `json:"what"`   // what was seen
	Why      string   `json:"why"`    // what follows from it
	Remedy   string   `json:"remedy"` // a command or a setting
}

// Examine gives the findings in f, errors first. None is clean.
func Examine(f *Facts) []Finding {
	out := []Finding{}
	for _, check := range []func(*Facts) []Finding{
		daemonFindings, policyFindings, openFindings, stateFindings, kernelFindings,
		dockerFindings, networkFindings, labelFindings,
		ruleFindings, forwardFindings, legacyFindings, rivalFindings, serviceFindings, sysctlFindings,
	} {
		out = append(out, check(f)...)
	}
	// "error" sorts before "warning".
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(a.Severity, b.Severity) })
	return out
}
