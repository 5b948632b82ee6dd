package main

import (
	"errors"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// variant is one of several ways that are measured in turn. measure gives one
// round's figure.
type variant struct {
	name    string
	measure func() (float64, error)
}

// inTurn measures all variants in each round, beginning with another one each
// time, so that what the machine does meanwhile falls on all alike. It returns
// the figures by variant and round.
func inTurn(rounds int, variants []variant) ([][]float64, error) {
	out := make([][]float64, len(variants))
	for round := range rounds {
		for i := range variants {
			v := (i + round) % len(variants)
			figure, err := variants[v].measure()
			if err != nil {
				return nil, errors.Join(errors.New(variants[v].name), err)
			}
			out[v] = append(out[v], figure)
		}
	}
	return out, nil
}

// ratio is the median of the rounds' ratios.
func ratio(figures, yardstick []float64) float64 {
	var all []float64
	for i := range figures {
		all = append(all, figures[i]/yardstick[i])
	}
	return median(all)
}

func median(list []float64) float64 { return quantile(list, 0.5) }

func quantile(list []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// threadTime is the processor time of the calling thread, which must be locked.
// The kernel counts it to the nanosecond, and what a packet costs on its way is
// in it: see the package's comment.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// onThread runs f on a thread of its own.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- f()
	}()
	return <-done
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
