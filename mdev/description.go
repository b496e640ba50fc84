package mdev

import (
	"maps"
	"regexp"
	"strconv"
	"strings"
)

// Facts are what a driver's description of a type says, where we know its words.
type facts struct {
	memory uint64 // bytes, 0: unknown
	max    int    // how many fit on an empty card, 0: unknown
	attrs  map[string]string
}

var (
	pairPattern = regexp.MustCompile(`([a-z_]+)=([^,\n]+)`)
	linePattern = regexp.MustCompile(`(?m)^([a-z_]+):[ \t]*([^\n]+)$`)
	// The kernel's sample drivers: "virtual display, 4 MB video memory".
	videoPattern = regexp.MustCompile(`\b([0-9]+) MB video memory\b`)
	sizePattern  = regexp.MustCompile(`^([0-9]+)[ ]?(K|M|G)i?B?$`)
)

// parseDescription reads the description attribute of a type. Three dialects are
// known:
//
//   - NVIDIA: "num_heads=4, frl_config=60, framebuffer=1024M, max_resolution=…, max_instance=16",
//     where max_instance counts for the whole card;
//   - Intel GVT-g: lines "low_gm_size: 128MB", "high_gm_size: 512MB", "fence: 4", …
//     The memory of such a device is the sum of both: the part the processor can
//     reach (low) and the part it cannot (high) are separate ranges;
//   - the sample drivers, which name only their memory, if that.
//
// What is understood as memory or number is not repeated in the attributes, except
// Intel's two sizes, of which the memory is only the sum. A word that is not
// understood is kept as it stands; text in no dialect gives no facts.
func parseDescription(s string) facts {
	f := facts{attrs: map[string]string{}}
	for _, p := range []*regexp.Regexp{pairPattern, linePattern} {
		for _, m := range p.FindAllStringSubmatch(s, -1) {
			f.attrs[m[1]] = strings.TrimSpace(m[2])
		}
	}
	if n, ok := parseSize(f.attrs["framebuffer"]); ok {
		f.memory = n
		delete(f.attrs, "framebuffer")
	}
	if n, err := strconv.ParseUint(f.attrs["max_instance"], 10, 31); err == nil {
		f.max = int(n)
		delete(f.attrs, "max_instance")
	}
	low, okLow := parseSize(f.attrs["low_gm_size"])
	high, okHigh := parseSize(f.attrs["high_gm_size"])
	if f.memory == 0 && okLow && okHigh {
		f.memory = low + high
	}
	if m := videoPattern.FindStringSubmatch(s); f.memory == 0 && m != nil {
		f.memory, _ = parseSize(m[1] + "M")
	}
	maps.DeleteFunc(f.attrs, func(_, v string) bool { return v == "" })
	return f
}

// parseSize reads "1024M", "128MB" or "4 GiB" as bytes, up to 2^62; the units are
// powers of 1024.
func parseSize(s string) (uint64, bool) {
	m := sizePattern.FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	shift := map[string]uint{"K": 10, "M": 20, "G": 30}[m[2]]
	n, err := strconv.ParseUint(m[1], 10, 64)
	if err != nil || n > (1<<62)>>shift {
		return 0, false
	}
	return n << shift, true
}
