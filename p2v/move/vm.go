package move

import (
	"fmt"
	"net"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/p2v/verify"
)

// Conversion is how the disks become those of a VM.
type Conversion string

// The ways to convert.
const (
	ConvertV2V  Conversion = "virt-v2v" // virtio into its initramfs, other names of devices
	ConvertNone Conversion = "none"     // the server's system boots as a VM as it is
)

// Conversions are all there are.
func Conversions() []Conversion { return []Conversion{ConvertV2V, ConvertNone} }

// VMWish says what the VM is to be like, beside what the plan has.
type VMWish struct {
	Name string `json:"name"` // empty: as the migration
	// Network and Bridge are where NICs are plugged in that NICs does not name: a network of
	// libvirt, or a bridge of the host. Neither: nowhere, their cable is out.
	Network string `json:"network,omitempty"`
	Bridge  string `json:"bridge,omitempty"`
	NICs    []NIC  `json:"nics"`
	// CPU is a model of libvirt, or host-passthrough, host-model, maximum; empty:
	// host-passthrough.
	CPU string `json:"cpu,omitempty"`
	// Emulated has it run without the processor's help: for tests.
	Emulated bool       `json:"emulated,omitempty"`
	Convert  Conversion `json:"convert"`
	// Checks are a person's own, of the VM, and of the source before.
	Checks []verify.Check `json:"checks"`
}

// NIC says where one of the server's is plugged in.
type NIC struct {
	MAC     string `json:"mac"`
	Network string `json:"network,omitempty"`
	Bridge  string `json:"bridge,omitempty"`
}

// Listed returns the wish with what was left out, as it goes on the wire.
func (w VMWish) Listed() VMWish {
	w.NICs = append([]NIC{}, w.NICs...)
	w.Checks = append([]verify.Check{}, w.Checks...)
	if w.Convert == "" {
		w.Convert = ConvertV2V
	}
	return w
}

// maxNICs and maxChecks bound what somebody may ask for.
const (
	maxNICs   = 64
	maxChecks = 32
)

// Check refuses what makes no sense by itself. The error says which field is wrong.
func (w VMWish) Check() error {
	switch {
	case w.Network != "" && w.Bridge != "":
		return fmt.Errorf("network and bridge exclude each other")
	case w.Convert != "" && !slices.Contains(Conversions(), w.Convert):
		return fmt.Errorf("convert %q is none of %q", w.Convert, Conversions())
	case len(w.NICs) > maxNICs:
		return fmt.Errorf("nics are %d, and %d at most", len(w.NICs), maxNICs)
	case len(w.Checks) > maxChecks:
		return fmt.Errorf("checks are %d, and %d at most", len(w.Checks), maxChecks)
	}
	for i, n := range w.NICs {
		if hw, err := net.ParseMAC(n.MAC); err != nil || len(hw) != 6 {
			return fmt.Errorf("nics[%d].mac %q is no MAC address", i, n.MAC)
		}
		if n.Network != "" && n.Bridge != "" {
			return fmt.Errorf("nics[%d]: network and bridge exclude each other", i)
		}
	}
	for i, c := range w.Checks {
		if err := c.Check(); err != nil {
			return fmt.Errorf("checks[%d]: %w", i, err)
		}
	}
	return nil
}

// VM is the one that the server becomes.
type VM struct {
	UUID string `json:"uuid"`
	Name string `json:"name"`
	// Slices are the assignments that hold its partitions.
	Slices []Slice `json:"slices"`
}

// Slice is a partition that is reserved for the VM, by an assignment of this name.
type Slice struct {
	Assignment string `json:"assignment"`
	Profile    string `json:"profile"`
	GPU        gpu.ID `json:"gpu"`
	Params     string `json:"vgpu_params,omitempty"`
	// Source is the address of the source's GPU that it is for, and Model that of the host's;
	// empty: it is for none that was seen, or was reserved by a version that did not tell.
	Source string `json:"source,omitempty"`
	Model  string `json:"model,omitempty"`
	// MemoryBytes is what a workload has of it; 0: not known, or reserved by a version that did not tell.
	MemoryBytes uint64 `json:"memory_bytes,omitempty"`
	// Kind, Sharing and Series are what it was when it was chosen: what a guest needs follows from them.
	Kind    gpu.Kind `json:"kind,omitempty"`
	Sharing string   `json:"sharing,omitempty"`
	Series  string   `json:"series,omitempty"`
}
