package daemon

import (
	"os"
	"runtime/debug"
	"time"
)

const (
	// settleAfter is how long a daemon runs, from its start or from the first of
	// some changes, until what that took is given back.
	settleAfter = 10 * time.Second
	// busyGC and restingGC are the garbage, in percent of what is in use, at
	// which a daemon collects it until it has settled and from then on: see
	// runtime/debug.SetGCPercent. While it starts, or containers do, time is worth
	// more than memory. Else it does little.
	busyGC    = 400
	restingGC = 100
	// memoryLimit is how much memory a daemon takes before it collects garbage
	// more often than that, in bytes. What it needs it takes all the same.
	memoryLimit = 180 << 20
)

// begin has little garbage collected while the daemon starts, and bounds what it
// takes, unless the operator has said how much that is to be.
func begin() {
	hurry()
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

func hurry() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(busyGC)
	}
}

// pace has garbage collected rarely while there is something to do, and the heap
// kept small else. It belongs to one goroutine.
type pace struct {
	settled *time.Timer // is to be answered by rest
	resting bool
}

// newPace is of a daemon that has begun.
func newPace() *pace { return &pace{settled: time.NewTimer(settleAfter)} }

// busy says that there is something to do. A collection that began in the midst
// of it took longer than all the rest.
func (p *pace) busy() {
	if p.resting {
		hurry()
		p.resting = false
		p.settled.Reset(settleAfter)
	}
}

// rest gives back what was taken meanwhile.
func (p *pace) rest() {
	p.resting = true
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(restingGC)
	}
	releaseMemory()
}

// releaseMemory gives back to the kernel what is not in use, beside the loop.
func releaseMemory() { go debug.FreeOSMemory() }
