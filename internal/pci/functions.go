package pci

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// A VirtualFunction is a link of a physical function to one of its virtual functions.
type VirtualFunction struct {
	Index int    // N of virtfnN
	Link  string // "virtfn3"
}

// VirtualFunctions lists those among the names in the directory of a device, by index.
func VirtualFunctions(names []string) (out []VirtualFunction) {
	for _, name := range names {
		number, ok := strings.CutPrefix(name, "virtfn")
		index, err := strconv.ParseUint(number, 10, 16)
		if ok && err == nil {
			out = append(out, VirtualFunction{Index: int(index), Link: name})
		}
	}
	slices.SortFunc(out, func(a, b VirtualFunction) int { return cmp.Compare(a.Index, b.Index) })
	return out
}
