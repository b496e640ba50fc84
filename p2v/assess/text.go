package assess

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxQuoted   = 120 // bytes of a text of the source that are shown
	maxEvidence = 5   // lines of evidence that are shown
)

// shorten cuts a text of the source.
func shorten(s string) string {
	if len(s) <= maxQuoted {
		return strings.ToValidUTF8(s, "?")
	}
	cut := maxQuoted
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strings.ToValidUTF8(s[:cut], "?") + "…"
}

// quote shows a text of the source.
func quote(s string) string { return strconv.Quote(shorten(s)) }

// quotes shows a few texts of the source.
func quotes(list []string) string {
	shown, more := list, ""
	if len(shown) > maxEvidence {
		shown, more = shown[:maxEvidence], fmt.Sprintf(" and %d more", len(list)-maxEvidence)
	}
	out := make([]string, len(shown))
	for i, s := range shown {
		out[i] = quote(s)
	}
	return strings.Join(out, ", ") + more
}

// bounded keeps the first lines of evidence, each once, and says how many there are more.
func bounded(lines []string) []string {
	seen := map[string]bool{}
	lines = slices.DeleteFunc(slices.Clone(lines), func(s string) bool {
		was := seen[s]
		seen[s] = true
		return was
	})
	if len(lines) > maxEvidence {
		lines = append(lines[:maxEvidence:maxEvidence], fmt.Sprintf("and %d more", len(lines)-maxEvidence))
	}
	return lines
}

// size writes bytes for people.
func size(n uint64) string {
	switch {
	case n >= gib:
		return strconv.FormatFloat(float64(n)/gib, 'f', 1, 64) + " GiB"
	case n >= mib:
		return strconv.FormatFloat(float64(n)/mib, 'f', 0, 64) + " MiB"
	default:
		return strconv.FormatUint(n, 10) + " bytes"
	}
}

// rateOf writes bytes a second for people, in thousands as networks are sold.
func rateOf(n uint64) string {
	if n >= 1e9 {
		return strconv.FormatFloat(float64(n)/1e9, 'f', 1, 64) + " GB/s"
	}
	return strconv.FormatFloat(float64(n)/1e6, 'f', 0, 64) + " MB/s"
}

// percent writes a share for people.
func percent(share float64) string { return strconv.FormatFloat(share*100, 'f', 0, 64) + " %" }

// duration writes seconds for people.
func duration(seconds float64) string {
	switch {
	case seconds < 120:
		return strconv.FormatFloat(math.Ceil(seconds), 'f', 0, 64) + " s"
	case seconds < 2*3600:
		return strconv.FormatFloat(math.Ceil(seconds/60), 'f', 0, 64) + " min"
	case seconds < 48*3600:
		return strconv.FormatFloat(seconds/3600, 'f', 1, 64) + " h"
	default:
		return strconv.FormatFloat(seconds/86_400, 'f', 1, 64) + " days"
	}
}

// Count writes a number with its noun.
func Count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// bytesOf turns a sample into bytes, whatever it is.
func bytesOf(f float64) uint64 {
	switch {
	case !(f > 0): //nolint:staticcheck // so that NaN is none
		return 0
	case f >= math.MaxInt64:
		return math.MaxInt64
	default:
		return uint64(math.Ceil(f))
	}
}

// sum adds sizes, and stays at the largest there is.
func sum(list ...uint64) (out uint64) {
	for _, n := range list {
		if out+n < out {
			return math.MaxUint64
		}
		out += n
	}
	return out
}
