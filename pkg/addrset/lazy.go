package addrset

import "sync"

// segments works out Segments when they are first asked for. Sets that share
// a family share the pointer to it; nil stands for no entries.
type segments struct {
	mu      sync.Mutex
	entries []Entry // nil once known
	known   *Segments
}

func newSegments(entries []Entry) *segments {
	if len(entries) == 0 {
		return nil
	}
	return &segments{entries: entries}
}

func (s *segments) get() *Segments {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries != nil {
		sw := newSweep(len(s.entries))
		for i := range s.entries {
			e := &s.entries[i]
			sw.add(Segment{e.Range.From, e.Range.To, e.Expires})
		}
		s.known, s.entries = sw.finish(), nil
	}
	return s.known
}

// ready returns the Segments if they have been worked out.
func (s *segments) ready() *Segments {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// derive decides what a family's segments become when its entries change
// inside of moved, next being the new entries, not yet worked out: s where
// nothing moved, else a patched copy of what s knows, else next, to be worked
// out when asked for.
func (s *segments) derive(next *segments, moved []Range) *segments {
	if len(moved) == 0 {
		return s
	}
	old := s.ready()
	// A change of a good part of a large set is quicker done from the start.
	if old == nil || next == nil || len(moved) > len(next.entries)/8+64 {
		return next
	}
	known := patch(old, next.entries, moved)
	if known == old {
		return s
	}
	return &segments{known: known}
}
