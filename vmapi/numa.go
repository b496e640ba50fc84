package vmapi

import (
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// maxNodes bounds the number of a host's NUMA nodes; Linux has at most 1024.
const maxNodes = 1024

// memoryNodes lists the NUMA nodes of the host that a domain's memory is bound to, sorted:
// as a whole, and for each of the guest's own nodes. What cannot be read is left out: it
// is a preference.
func memoryNodes(tune *libvirtxml.DomainNUMATune) []int {
	if tune == nil {
		return nil
	}
	var out []int
	if tune.Memory != nil {
		out = append(out, nodeset(tune.Memory.Nodeset)...)
	}
	for _, n := range tune.MemNodes {
		out = append(out, nodeset(n.Nodeset)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// nodeset reads a set of numbers as libvirt writes it, "0-3,^2,8": what comes later in it
// counts. It is empty where the text is no such set.
func nodeset(text string) []int {
	in := map[int]bool{}
	for word := range strings.SplitSeq(text, ",") {
		word, out := strings.CutPrefix(strings.TrimSpace(word), "^")
		first, last, isRange := strings.Cut(word, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from > to || to >= maxNodes {
			return nil
		}
		for n := from; n <= to; n++ {
			in[int(n)] = !out
		}
	}
	var nodes []int
	for n, is := range in {
		if is {
			nodes = append(nodes, n)
		}
	}
	slices.Sort(nodes)
	return nodes
}
