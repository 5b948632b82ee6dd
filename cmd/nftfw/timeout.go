package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// longUnits are the units that nft has and Go has not.
var longUnits = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?:(\d{1,4})w)?(?:(\d{1,5})d)?`) })

// maxTimeout keeps the expiry within what the kernel's millisecond counter and
// a Go duration hold alike.
const maxTimeout = 10 * 365 * 24 * time.Hour

// parseTimeout reads the value of a flag that is a duration, as nft and Go write
// it: 90s, 1h30m, 7d, 2w. The empty text is 0, no timeout.
func parseTimeout(flag, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	bad := func(why string) error {
		return usageError("--%s %q: %s; write it as 30s, 15m, 1h or 7d", flag, text, why)
	}
	parts := longUnits().FindStringSubmatch(text)
	var total time.Duration
	for i, unit := range []time.Duration{7 * 24 * time.Hour, 24 * time.Hour} {
		if parts[i+1] != "" {
			n, err := strconv.Atoi(parts[i+1])
			if err != nil {
				return 0, bad("no duration")
			}
			total += time.Duration(n) * unit
		}
	}
	if rest := text[len(parts[0]):]; rest != "" {
		d, err := time.ParseDuration(rest)
		switch {
		case err != nil && strings.Trim(rest, "0123456789.") == "":
			return 0, bad("a number without a unit")
		case err != nil:
			return 0, bad("no duration")
		}
		total += d
	}
	switch {
	case total <= 0:
		return 0, bad("it must be longer than nothing")
	case total > maxTimeout:
		return 0, bad(fmt.Sprintf("longer than ten years (%s)", total))
	}
	return total, nil
}
