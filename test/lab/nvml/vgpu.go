package nvml

import (
	"fmt"
	"os"
	"strings"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/mig"
)

// A VGPU is one that runs.
type VGPU struct {
	ID       uint32
	VM       string
	Domain   bool   // the VM is named by the number of a domain, and not by a UUID
	Mdev     string // UUID; empty: on a virtual function
	Type     uint32
	Instance int // GPU instance, -1: none
	Memory   uint64
	Driver   string // empty: it has not loaded
	License  int    // as in nvml.h
	Expires  time.Time
	Gone     bool // its VM has ended since it was listed
}

// Modes are those of a card; ECC is nil where it has none. Compute is as in nvml.h.
type Modes struct {
	ECC     *gpu.ECC
	Compute int
}

// Monitor writes what the driver tells of a card beside how it is cut.
func (f File) Monitor(a gpu.Address, modes Modes, samples []mig.VGPUSample, vgpus ...VGPU) error {
	var b strings.Builder
	bit := func(on bool) int {
		if on {
			return 1
		}
		return 0
	}
	ecc := [2]int{-1, -1}
	if modes.ECC != nil {
		ecc = [2]int{bit(modes.ECC.Current), bit(modes.ECC.Pending)}
	}
	fmt.Fprintf(&b, "modes %s %d %d %d\n", busID(a), ecc[0], ecc[1], modes.Compute)
	for _, s := range samples {
		fmt.Fprintf(&b, "sample %s %d %d %d %d %d %d\n", busID(a), s.VGPU, s.Time.UnixMicro(), s.SM, s.Memory, s.Encoder, s.Decoder)
	}
	for _, v := range vgpus {
		or := func(text, none string) string {
			if text == "" {
				return none
			}
			return text
		}
		expires := 4 // never
		if !v.Expires.IsZero() {
			expires = 2
		}
		e := v.Expires
		fmt.Fprintf(&b, "vgpu %s %d %d %s %s %d %d %d %d %d %d %d %d %d %d %d %d %s\n", busID(a), v.ID, 1-bit(v.Domain), v.VM,
			or(v.Mdev, "-"), v.Type, uint32(v.Instance), v.Memory, v.License, expires, //nolint:gosec // none is the largest
			e.Year(), e.Month(), e.Day(), e.Hour(), e.Minute(), e.Second(), bit(v.Gone), or(v.Driver, "Not Available"))
	}
	return os.WriteFile(string(f)+".vgpus", []byte(b.String()), 0o600)
}
