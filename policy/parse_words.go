package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// quote quotes a text of the user's for a message, cut to a length that can
// be read.
func quote(s string) string {
	const longest = 60
	if len(s) <= longest {
		return strconv.Quote(s)
	}
	return strconv.Quote(strings.ToValidUTF8(s[:longest], "")) + "…"
}

// didYouMean is `, did you mean X?` when a word of known is close to word,
// and "" otherwise.
func didYouMean(word string, known []string) string {
	const longest = 40 // words of ours are shorter, and the distance is quadratic
	if word == "" || len(word) > longest {
		return ""
	}
	best, nearest := "", max(1, min(3, len(word)/3))+1
	for _, k := range known {
		if d := distance(strings.ToLower(word), k); d < nearest && word != k {
			best, nearest = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %s?", best)
}

// distance is the number of letters to insert, delete, replace or swap with
// their neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(last[j]+1, row[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// keysOf lists the keys of m in order.
func keysOf[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// unknownSet is the message for a set that is not among declared.
func unknownSet(e *unknownSetError, declared []string) string {
	const shown = 12
	list := strings.Join(declared[:min(len(declared), shown)], ", ")
	if len(declared) > shown {
		list += ", …"
	}
	return fmt.Sprintf("%v (declared: %s)%s", e, list, didYouMean(e.name, declared))
}
