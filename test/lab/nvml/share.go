package nvml

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
)

// A Share is how the vGPUs of a GPU share it by time: share.c has its rules. The numbers are
// those of nvml.h.
type Share struct {
	Address           gpu.Address
	Policy, TimeSlice uint32
	ARR               uint32
	VGPUs             int // that exist
	// Sizes tells that sizes of vGPUs can differ, Mixed that they may.
	Sizes, Mixed bool
	Places       []gpu.VGPUPlacements
}

// Shares makes the driver of these GPUs, and of no others, one for hosts of VMs.
func (f File) Shares(all ...Share) error {
	var b strings.Builder
	for _, s := range all {
		fmt.Fprintf(&b, "gpu %s %d %d %d %d %d %d\n", busID(s.Address), s.Policy, s.TimeSlice, s.ARR, s.VGPUs, bit(s.Sizes), bit(s.Mixed))
		for _, p := range s.Places {
			fmt.Fprintf(&b, "type %d %d %s %s\n", p.Type, p.Size, commas(p.Starts), commas(p.Free))
		}
	}
	return os.WriteFile(string(f)+".vgpu", []byte(b.String()), 0o600)
}

func bit(on bool) int {
	if on {
		return 1
	}
	return 0
}

func commas(starts []int) string {
	if len(starts) == 0 {
		return "-"
	}
	words := make([]string, len(starts))
	for i, n := range starts {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}

// Share reads what became of one, without its places.
func (f File) Share(a gpu.Address) (Share, error) {
	text, err := os.ReadFile(string(f) + ".vgpu")
	if err != nil {
		return Share{}, err
	}
	for line := range strings.Lines(string(text)) {
		s := Share{Address: a}
		var word, bus string
		var sizes, mixed int
		n, err := fmt.Sscan(line, &word, &bus, &s.Policy, &s.TimeSlice, &s.ARR, &s.VGPUs, &sizes, &mixed)
		if s.Sizes, s.Mixed = sizes == 1, mixed == 1; word == "gpu" && strings.EqualFold(bus, busID(a)) {
			if n < 8 {
				return s, err
			}
			return s, nil
		}
	}
	return Share{}, fmt.Errorf("cannot find gpu %s in %q", a, string(f)+".vgpu")
}

// Occupy makes so many vGPUs exist.
func (f File) Occupy(a gpu.Address, vgpus int) error {
	text, err := os.ReadFile(string(f) + ".vgpu")
	if err != nil {
		return err
	}
	lines := strings.Split(string(text), "\n")
	i := slices.IndexFunc(lines, func(l string) bool {
		return strings.HasPrefix(strings.ToLower(l), "gpu "+strings.ToLower(busID(a))+" ")
	})
	if i < 0 {
		return fmt.Errorf("cannot find gpu %s in %q", a, string(f)+".vgpu")
	}
	words := strings.Fields(lines[i])
	words[5] = strconv.Itoa(vgpus)
	lines[i] = strings.Join(words, " ")
	return os.WriteFile(string(f)+".vgpu", []byte(strings.Join(lines, "\n")), 0o600)
}
