package gpu

import "time"

// Modes are how a card is set up, beside how it is cut. They are shown, and nothing is
// decided by them.
type Modes struct {
	ECC     *ECC // nil: the card has none, or it is not known
	Compute ComputeMode
}

// ECC tells whether a card's memory corrects errors, now and after the next reset.
type ECC struct{ Current, Pending bool }

// ComputeMode is who may compute on a card at a time; empty: unknown.
type ComputeMode string

// The compute modes.
const (
	ComputeDefault    ComputeMode = "default"           // any number of programs
	ComputeExclusive  ComputeMode = "exclusive-process" // one
	ComputeProhibited ComputeMode = "prohibited"        // none
)

// A RunningVGPU is a vGPU of a VM that runs, as the driver tells of it.
type RunningVGPU struct {
	VM       string // UUID of the VM; empty: unknown
	MdevUUID string // of its mediated device; of one on a virtual function it means nothing
	Type     uint32 // VGPUType.ID
	Instance string // the driver's id of the GPU instance that it lives on; empty: none
	Observed Observed
}

// Observed is what is seen of a partition in a VM that runs: by the driver of the host,
// and by that of the guest, which tells it.
type Observed struct {
	GuestDriver string   // version of the guest's driver; empty: it has not loaded, or is unknown
	License     *License // nil: the guest's driver has not loaded, or it is unknown
	Usage       *Usage   // nil: unknown
	Unknown     string   // why something of this is not told though it is there to be told
}

// License is whether a guest has the licence that its vGPU takes.
type License struct {
	State   LicenseState
	Expires time.Time // zero: never, or unknown
}

// LicenseState is how far a guest is with its licence. A guest without one is throttled
// after a while.
type LicenseState string

// The states of a licence, as NVML has them.
const (
	LicenseUninitialized LicenseState = "uninitialized"           // the guest's driver has just loaded
	LicenseUnrestricted  LicenseState = "unlicensed-unrestricted" // it is without, and not throttled yet
	LicenseRestricted    LicenseState = "unlicensed-restricted"   // and throttled
	LicenseNone          LicenseState = "unlicensed"
	LicenseHeld          LicenseState = "licensed"
)

// Usage is what a guest uses of its partition. What is nil is not known.
type Usage struct {
	MemoryUsedBytes *uint64 // of the framebuffer, now
	// Shares of the GPU's time, 0 to 1, over the last seconds before Sampled: in which its
	// programs computed or drew, its memory was read or written, and in which the video
	// encoders and decoders worked for it.
	SM, Memory, Encoder, Decoder *float64
	Sampled                      time.Time // zero: no shares, or the driver does not say when
}
