package mig

import (
	"fmt"
	"time"

	"gpuvirt/gpu"
)

// A Library begins sessions with NVIDIA's management library (NVML), or with what
// stands in for it.
type Library interface {
	// Open begins a session. Its error is a Return: ErrLibraryNotFound or
	// ErrDriverNotLoaded on a host without the driver.
	Open() (Session, error)
}

// A Session is a time in which the library is initialised. While there is one the
// driver counts as used, which keeps virtual functions from being enabled and VMs
// from being started on its GPUs: so it is ended as soon as one question is answered.
// Nothing that was got in a session means anything after it. Errors are Returns.
type Session interface {
	Close() error
	DriverVersion() (string, error)
	// Addresses lists the GPUs that the driver has, in its order. What cannot be
	// asked for its address is left out.
	Addresses() ([]gpu.Address, error)
	// Device finds one; ErrNotFound where the driver has none there.
	Device(gpu.Address) (Device, error)
}

// A Device is one GPU in a session.
type Device interface {
	Facts() (Facts, error)
	Mode() (gpu.MIGMode, error)
	// SetMode turns MIG on or off. Cards before Hopper are reset for it, and only the
	// one that is asked. Where activation is an error the mode is stored and not in
	// force: ErrInUse, or ErrResetRequired.
	SetMode(on bool) (activation, err error)
	// Modes reads how it is set up; what it has not, or the library cannot tell, is absent.
	Modes() (gpu.Modes, error)
	// Processes lists who computes or draws on it, on instances and beside them.
	Processes() ([]Process, error)

	// Profiles lists what GPU instances it can have, in mode or not; while MIG is off
	// some drivers may tell of none.
	Profiles() ([]DeviceProfile, error)
	// Instances lists its GPU instances with their compute instances, by ID; none
	// where MIG is off.
	Instances() ([]DeviceInstance, error)
	// Create makes a GPU instance without compute instances at a place, and returns
	// its ID. index is that of its profile.
	Create(index, start int) (id int, err error)
	// Destroy removes a GPU instance that has no compute instances; ErrInUse
	// otherwise, or if somebody uses it.
	Destroy(id int) error

	// ComputeProfiles lists what compute instances a GPU instance can have.
	ComputeProfiles(instance int) ([]ComputeProfile, error)
	CreateCompute(instance, index, start int) (id int, err error)
	DestroyCompute(instance, id int) error

	// VGPUTypes lists the types of vGPU that the driver knows for it, in any order; none
	// where it has none. ErrFunctionNotFound from a library that cannot tell.
	VGPUTypes() ([]gpu.VGPUType, error)
	// VGPUs lists the vGPUs that run in VMs, in any order, without the shares of their usage.
	// One whose VM ends meanwhile is left out. ErrFunctionNotFound from a library that
	// cannot tell.
	VGPUs() ([]ActiveVGPU, error)
	// VGPUSamples returns what the driver has sampled of them lately, in any order; none
	// where it has not yet, or cannot.
	VGPUSamples() ([]VGPUSample, error)
	Timeslicer
}

// An ActiveVGPU is a vGPU that runs, with the number that the library has for it.
type ActiveVGPU struct {
	ID uint32
	gpu.RunningVGPU
}

// A VGPUSample is what a vGPU was seen to use at a time, in percent of the GPU's; below
// 0: unknown.
type VGPUSample struct {
	VGPU                         uint32 // ActiveVGPU.ID
	Time                         time.Time
	SM, Memory, Encoder, Decoder int
}

// Facts are what does not change of a GPU.
type Facts struct {
	Name        string // "NVIDIA A100-PCIE-40GB"
	UUID        string // "GPU-…"
	Serial      string // empty where the board has none
	Minor       int    // of /dev/nvidia<minor>
	MemoryBytes uint64
	ModeResets  bool // changing its MIG mode resets it: so it is before Hopper
}

// A Process has something on a GPU.
type Process struct {
	PID      int
	Instance int // GPU instance, -1: none
}

// A DeviceProfile is a Profile as the library knows it.
type DeviceProfile struct {
	Profile
	Index     int // by which the library is asked for it: the same on all cards
	MemoryMiB uint64
	Available int // how many more fit now; 0 where MIG is off
}

// A DeviceInstance is a GPU instance that is there.
type DeviceInstance struct {
	ID        int
	ProfileID int
	Start     int // memory slices
	Size      int
	Compute   []ComputeInstance // by ID
}

// A ComputeProfile is a size of compute instance within one GPU instance.
type ComputeProfile struct {
	Name   string // "1c.3g.20gb"; the one that fills the GPU instance is called as it is: "3g.20gb"
	Index  int
	ID     int
	Slices int   // compute slices
	Starts []int // compute slices at which one may begin, ascending; empty where the driver cannot tell
	Max    int
}

// A ComputeInstance is there.
type ComputeInstance struct {
	ID        int
	ProfileID int
	Start     int    // compute slices
	Size      int    // compute slices
	UUID      string // "MIG-…": by it a program asks for it
}

// A Return is what a call of the library answers, other than success, with the
// numbers of nvml.h.
type Return int

// The returns that mean something to us.
const (
	ErrUninitialized         Return = 1
	ErrInvalidArgument       Return = 2
	ErrNotSupported          Return = 3
	ErrNoPermission          Return = 4
	ErrNotFound              Return = 6
	ErrDriverNotLoaded       Return = 9
	ErrLibraryNotFound       Return = 12
	ErrFunctionNotFound      Return = 13
	ErrGPULost               Return = 15
	ErrResetRequired         Return = 16
	ErrVersionMismatch       Return = 18 // of library and kernel module
	ErrInUse                 Return = 19
	ErrInsufficientResources Return = 23
	ErrUnknown               Return = 999
)

var returns = map[Return]string{
	ErrUninitialized: "not initialised", ErrInvalidArgument: "invalid argument", ErrNotSupported: "not supported",
	ErrNoPermission: "no permission", ErrNotFound: "not found", ErrDriverNotLoaded: "driver not loaded",
	ErrLibraryNotFound: "library not found", ErrFunctionNotFound: "function not found", ErrGPULost: "gpu is lost",
	ErrResetRequired: "reset required", ErrVersionMismatch: "versions of library and driver differ", ErrInUse: "in use",
	ErrInsufficientResources: "insufficient resources", ErrUnknown: "unknown error",
}

// Error is what the return means, with its number in nvml.h. The library's own words
// are not asked for: it may be closed already.
func (r Return) Error() string {
	if text, ok := returns[r]; ok {
		return fmt.Sprintf("NVML: %s (%d)", text, int(r))
	}
	return fmt.Sprintf("NVML: error %d", int(r))
}
