package daemon

// slot hands the newest value of a kind from one goroutine to another: a
// value that nobody has taken yet is replaced. The giver never waits.
type slot[T any] chan T

func newSlot[T any]() slot[T] { return make(slot[T], 1) }

// put replaces what is in the slot. Only one goroutine may put.
func (s slot[T]) put(v T) {
	select {
	case <-s:
	default:
	}
	s <- v
}
