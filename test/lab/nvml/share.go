package nvml

import (
	"fmt"
	"os"
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
}

// Shares makes the driver of these GPUs, and of no others, one for hosts of VMs.
func (f File) Shares(all ...Share) error {
	var b strings.Builder
	for _, s := range all {
		fmt.Fprintf(&b, "%s %d %d %d %d\n", busID(s.Address), s.Policy, s.TimeSlice, s.ARR, s.VGPUs)
	}
	return os.WriteFile(string(f)+".vgpu", []byte(b.String()), 0o600)
}

// Share reads what became of one.
func (f File) Share(a gpu.Address) (Share, error) {
	text, err := os.ReadFile(string(f) + ".vgpu")
	if err != nil {
		return Share{}, err
	}
	for line := range strings.Lines(string(text)) {
		s := Share{Address: a}
		var bus string
		if _, err := fmt.Sscan(line, &bus, &s.Policy, &s.TimeSlice, &s.ARR, &s.VGPUs); err != nil {
			return s, err
		}
		if strings.EqualFold(bus, busID(a)) {
			return s, nil
		}
	}
	return Share{}, fmt.Errorf("cannot find gpu %s in %q", a, string(f)+".vgpu")
}
