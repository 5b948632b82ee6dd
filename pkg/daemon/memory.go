package daemon

import (
	"os"
	"runtime/debug"
	"time"
)

const (
	// settleAfter is how long a daemon runs until what it took to start is given
	// back.
	settleAfter = 10 * time.Second
	// startingGC and restingGC are the garbage, in percent of what is in use, at
	// which a daemon collects it until it has settled and from then on: see
	// runtime/debug.SetGCPercent. While it starts little is garbage, and time is
	// worth more than memory. Later it does little.
	startingGC = 400
	restingGC  = 50
	// memoryLimit is how much memory a daemon takes before it collects garbage
	// more often than that, in bytes. What it needs it takes all the same.
	memoryLimit = 180 << 20
)

// hurry has little garbage collected while the daemon starts, unless the operator
// has said how much.
func hurry() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(startingGC)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

// settle gives back what starting took, and keeps the heap small from then on,
// unless the operator has said how large it is to be.
func settle() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(restingGC)
	}
	releaseMemory()
}

// releaseMemory gives back to the kernel what is not in use, beside the loop.
func releaseMemory() { go debug.FreeOSMemory() }
