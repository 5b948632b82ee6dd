package dockerwatch

import (
	"context"
	"errors"
	"sync"

	"github.com/docker/docker/api/types/events"
)

// inboxLimit bounds the memory for events that nobody has taken yet.
const inboxLimit = 1 << 16

var (
	errStream   = errors.New("event stream ended")
	errOverflow = errors.New("too many events at once")
)

// inbox gathers events in memory. The engine drops what a listener does not
// read within 100 ms, without a word.
type inbox struct {
	wake chan struct{} // holds one token while there is something to take

	mu       sync.Mutex
	messages []events.Message
	err      error
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// read fills the inbox until the stream ends. It calls created, which must not
// wait, as soon as it hears of a new container.
func (in *inbox) read(ctx context.Context, s stream, created func(id string)) {
	for {
		select {
		case m := <-s.messages:
			if m.Type == events.ContainerEventType && m.Action == events.ActionCreate && m.Actor.ID != "" {
				created(m.Actor.ID)
			}
			in.add(m)
		case err, ok := <-s.errs:
			if !ok || err == nil {
				err = errStream
			}
			in.end(err)
			return
		case <-ctx.Done():
			return
		}
	}
}

func (in *inbox) add(m events.Message) {
	in.mu.Lock()
	if len(in.messages) < inboxLimit {
		in.messages = append(in.messages, m)
	} else {
		in.err = errOverflow
	}
	in.mu.Unlock()
	in.signal()
}

func (in *inbox) end(err error) {
	in.mu.Lock()
	in.err = err
	in.mu.Unlock()
	in.signal()
}

func (in *inbox) signal() {
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

// take empties the inbox. After an error nothing more will come.
func (in *inbox) take() ([]events.Message, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	m := in.messages
	in.messages = nil
	return m, in.err
}
