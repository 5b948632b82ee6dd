package sources

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/nftfw/nftfw/pkg/addrset"
	"github.com/nftfw/nftfw/pkg/sources/spec"
)

// Update is what a source has to say.
type Update struct {
	// Err says why the source could not be read. Then the entries told of
	// before stand, and the rest of the Update counts for nothing.
	Err error

	// Whole says that Add are all entries that there are. Otherwise Del are
	// taken away from those told of before, and Add joined to them; with
	// neither, they were found unchanged.
	Whole bool
	Add   []addrset.Entry // their Source is the name of the source
	Del   []addrset.Range

	// Note says what was passed over; "" for nothing.
	Note string
	// Resume is to be handed to the next Follow. Nil leaves what it was.
	Resume json.RawMessage
	// Revision is that of etcd's store which the entries show; 0 elsewhere.
	Revision int64
}

// Last is what was known of a source when it was last followed. The zero Last
// is nothing.
type Last struct {
	GoodAt  time.Time // zero: never
	Entries *addrset.Set
	Resume  json.RawMessage
}

// Reader reads the real sources. The zero Reader is ready for use; its fields
// are for tests and for those who know better. It is safe for concurrent use.
type Reader struct {
	HTTP      *http.Client     // nil: one of our own, with timeouts
	Resolvers []netip.AddrPort // none: those of /etc/resolv.conf, read anew each time
	Timeout   time.Duration    // of one question; 0: a minute for a URL, 3 s for etcd
	// Jitter gives a number from 0 to 1, by which hosts that ask the same
	// server are kept apart; nil is a random one.
	Jitter func() float64
}

// together makes one error of several, in one line; nil of none.
func together(list []error) error {
	var out error
	for _, err := range list {
		if out == nil {
			out = err
		} else {
			out = fmt.Errorf("%w; %w", out, err)
		}
	}
	return out
}

// Follow tells emit of the entries of s and of each change until ctx is done,
// and returns then. A source that fails is tried again and again. last is what
// an earlier Follow of the same source told. emit is called by one goroutine
// at a time and may take its time: what changes meanwhile is told together.
func (r Reader) Follow(ctx context.Context, s spec.Source, last Last, emit func(Update)) {
	name := addrset.Source(s.Name())
	switch {
	case s.File != nil:
		followFile(ctx, *s.File, name, last, emit)
	case s.DNS != nil:
		r.followDNS(ctx, *s.DNS, name, last, emit)
	case s.Etcd != nil:
		r.followEtcd(ctx, *s.Etcd, name, emit)
	case s.CrowdSec != nil:
		r.followCrowdSec(ctx, *s.CrowdSec, name, emit)
	case s.URL != nil:
		r.followURL(ctx, *s.URL, name, last, emit)
	default:
		emit(Update{Err: errors.New("this release cannot read sources of kind " + s.Kind())})
		<-ctx.Done()
	}
}
