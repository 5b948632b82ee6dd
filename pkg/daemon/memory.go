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
	// restingGC is the garbage, in percent of what is in use, at which a daemon
	// that has settled collects it: see runtime/debug.SetGCPercent. It does little
	// from then on, so that memory is worth more than the time to collect.
	restingGC = 50
)

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
