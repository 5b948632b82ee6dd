package integration

import (
	"github.com/nftfw/nftfw/integration/lab"
)

// openUntil is open with engines before the major version, which leave the way
// open. Later ones close it themselves, and that is demanded of them.
func (s *set) openUntil(major int, ns lab.Namespace, server string, probes []lab.Probe) {
	s.t.Helper()
	if s.engine.Major < major {
		s.open(ns, server, probes)
		return
	}
	s.closed(ns, probes)
}
