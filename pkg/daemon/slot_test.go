package daemon

import "testing"

func TestSlotKeepsTheNewest(t *testing.T) {
	s := newSlot[int]()
	for i := range 5 {
		s.put(i) // nobody takes, and put does not wait
	}
	if got := <-s; got != 4 {
		t.Errorf("took %d, want 4", got)
	}
	select {
	case got := <-s:
		t.Errorf("took %d from an empty slot", got)
	default:
	}
}
