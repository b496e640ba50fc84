package gpu

import "strings"

// VMState is the state of a libvirt domain.
type VMState string

// The states of a VM.
const (
	VMRunning VMState = "running"
	VMPaused  VMState = "paused"
	VMShutoff VMState = "shutoff"
	VMCrashed VMState = "crashed"
)

// Active reports whether a hypervisor process exists, so that devices can be
// live-attached and are held.
func (s VMState) Active() bool { return s == VMRunning || s == VMPaused }

// A VM is a libvirt domain, known by UUID; its name is only for people.
type VM struct {
	UUID       string
	Name       string
	State      VMState
	Autostart  bool
	Persistent bool
	Hostdevs   []Hostdev
	// MemoryNodes are the host's NUMA nodes that its memory is bound to, sorted; of a
	// running VM those of now. None: it is bound to none.
	MemoryNodes []int
	// Mark says which migration gpuvirt made it for; empty: gpuvirt did not make it.
	Mark string
	// Trial: what runs is a trial of it, and not what its persistent definition says.
	Trial bool

	Assignments []string // names; added by the host
}

// A Trial is what a VM is started with once instead of what its definition says, so that
// nothing it is made of is written and nobody meets it.
type Trial struct {
	// Disks are the paths to use, by those in the definition. Each disk is named, and has
	// the format there that it has in the definition. What begins with /dev/ is a device.
	Disks map[string]string
	// Network is the network of libvirt that all its NICs are on.
	Network string
	// NVRAM is the file for the variables of UEFI, which libvirt makes where it is missing,
	// even if the start fails then, and never removes: that is for whoever removes the disks.
	// Default: the file of the first disk that is in one here, with the suffix TrialNVRAM.
	NVRAM string
}

// TrialNVRAM is the suffix of Trial.NVRAM where none is given.
const TrialNVRAM = ".nvram"

// A VMHead is what identifies a VM and says where it can be given a device. It says
// nothing of the devices that the VM has.
type VMHead struct {
	UUID       string
	Name       string
	Active     bool // a hypervisor process exists: see VMState.Active
	Persistent bool
}

// Hostdev returns the VM's device with the given alias.
func (vm VM) Hostdev(alias string) (Hostdev, bool) {
	for _, d := range vm.Hostdevs {
		if d.Alias == alias {
			return d, true
		}
	}
	return Hostdev{}, false
}

// A Hostdev is a host device in a VM's definition: ours, if its alias says so.
type Hostdev struct {
	Alias        string
	Handle       Handle
	Model        string // device API of an mdev: "vfio-pci"
	Display      bool
	RamFB        bool   // a display of the firmware as well: QEMU can neither add nor remove it while the VM runs
	Live         bool   // in the running VM's XML
	Config       bool   // in the persistent XML
	GuestAddress string // PCI address inside the guest, from the live XML
	// Managed says that libvirt takes a PCI device from its driver when the VM starts, and
	// gives it back when it stops (managed='yes').
	Managed bool
}

// Scope says which of a VM's two definitions a change is for.
type Scope struct{ Live, Config bool }

// AliasPrefix begins the user alias of every hostdev that gpuvirt adds; libvirt
// keeps aliases that begin with "ua-".
const AliasPrefix = "ua-gpuvirt-"

// Alias returns the user alias of a partition's hostdev: its id, with a "-" in place
// of whatever libvirt does not take.
func Alias(partition string) string {
	return AliasPrefix + strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '-'
	}, partition)
}

// A VMEvent says that something about a VM changed; whoever hears it looks again.
// An event with an empty UUID means that events may have been missed.
type VMEvent struct {
	UUID  string
	Kind  string // "lifecycle", "device-added", "device-removed", "device-removal-failed", "connected", "disconnected"
	Alias string // of device events
}

// A StartFinding is something that speaks against the start of a VM: Code says what kind of
// thing. CodeUnavailable means that it is not known whether there is one.
type StartFinding struct {
	Code       Code
	Message    string
	Hint       string
	Assignment string
	Partition  string
}
