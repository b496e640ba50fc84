package assess

import (
	"gpuvirt/p2v/report"
)

// Assessment is what an inspection tells about moving a server's GPU workload into a VM.
type Assessment struct {
	// Hostname is the source's own word, cut where it is long.
	Hostname  string     `json:"hostname"`
	Workloads []Workload `json:"workloads"` // what uses GPUs, without what only watches them
	Concerns  []Concern  `json:"concerns"`  // blockers first, then in the order of Catalogue
	Needs     []Need     `json:"needs"`     // one for each GPU of the source, by address
	Policy    Policy     `json:"policy"`    // that it was made with
}

// Policy holds the figures that nobody can measure and that a person may see otherwise.
// A zero figure stands for its default.
type Policy struct {
	// MemoryMarginRatio is added to measured memory, but MemoryMarginMinBytes at least:
	// 0.15, and 1 GiB.
	MemoryMarginRatio    float64 `json:"memory_margin_ratio"`
	MemoryMarginMinBytes uint64  `json:"memory_margin_min_bytes"`
	// ContextBytes is counted for each process where memory is known of processes and not of
	// the GPU as a whole, for what CUDA takes beside it: 512 MiB (300 to 600 MiB are usual).
	ContextBytes uint64 `json:"context_bytes"`
	// ReservationRatio is the part of a vGPU's memory that its driver keeps for itself, where
	// the driver does not tell it: 0.05.
	ReservationRatio float64 `json:"reservation_ratio"`
	// ComputeQuantile is the quantile of the multiprocessors' activity that has to be served:
	// 0.95.
	ComputeQuantile float64 `json:"compute_quantile"`
	// WindowSeconds is how long the GPUs should have been watched: 86 400, a day.
	WindowSeconds float64 `json:"window_seconds"`
	// AcceptUnknownCompute lets memory alone decide where it is not known how many
	// multiprocessors are needed or there; else only a whole card of the same model is
	// enough then.
	AcceptUnknownCompute bool `json:"accept_unknown_compute"`
	// BandwidthMinBytes and BandwidthMaxBytes, a second, are the range that is assumed for a
	// copy whose rate nobody has given: 100 MB/s to 1 GB/s, of a network of 1 to 10 Gbit/s.
	BandwidthMinBytes uint64 `json:"bandwidth_min_bytes_per_second"`
	BandwidthMaxBytes uint64 `json:"bandwidth_max_bytes_per_second"`
	// ConversionSeconds is what the conversion of a disk image takes, BootSeconds what the VM
	// takes until it answers, FixedSeconds what stopping the source and the last checks take.
	// 180, 120 and 60, of conversions and boots in emulation, which is slower than KVM.
	ConversionSeconds float64 `json:"conversion_seconds"`
	BootSeconds       float64 `json:"boot_seconds"`
	FixedSeconds      float64 `json:"fixed_seconds"`
	// ChangeRatio is the share of the used bytes that is taken to have changed before the last
	// pass, where no rate of change was measured: 0.01.
	ChangeRatio float64 `json:"change_ratio"`
	// OverlayRatio and OverlayMinBytes are the room for what conversion and first boots write
	// beside the mirror: 0.1 of the used bytes, and 4 GiB at least.
	OverlayRatio    float64 `json:"overlay_ratio"`
	OverlayMinBytes uint64  `json:"overlay_min_bytes"`
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

// WithDefaults returns the policy with the default of every figure that is zero or that
// makes no sense: below zero, or no number.
func (p Policy) WithDefaults() Policy {
	for _, f := range []struct {
		value  *float64
		preset float64
	}{
		{&p.MemoryMarginRatio, 0.15},
		{&p.ReservationRatio, 0.05},
		{&p.ComputeQuantile, 0.95},
		{&p.WindowSeconds, 86_400},
		{&p.ConversionSeconds, 180},
		{&p.BootSeconds, 120},
		{&p.FixedSeconds, 60},
		{&p.ChangeRatio, 0.01},
		{&p.OverlayRatio, 0.1},
	} {
		if !(*f.value > 0) || *f.value > 1e12 { //nolint:staticcheck // so that NaN is none
			*f.value = f.preset
		}
	}
	p.ReservationRatio, p.ComputeQuantile, p.ChangeRatio = min(p.ReservationRatio, 0.9), min(p.ComputeQuantile, 1), min(p.ChangeRatio, 1)
	for _, n := range []struct {
		value  *uint64
		preset uint64
	}{
		{&p.MemoryMarginMinBytes, gib},
		{&p.ContextBytes, 512 * mib},
		{&p.BandwidthMinBytes, 100_000_000},
		{&p.BandwidthMaxBytes, 1_000_000_000},
		{&p.OverlayMinBytes, 4 * gib},
	} {
		if *n.value == 0 {
			*n.value = n.preset
		}
	}
	p.BandwidthMaxBytes = max(p.BandwidthMaxBytes, p.BandwidthMinBytes)
	return p
}

// Assess judges an inspection. It takes any report, also one that report.Read would refuse.
func Assess(r report.Report, p Policy) Assessment {
	return newLook(r, p).assessment()
}

func (l *look) assessment() Assessment {
	return Assessment{
		Hostname:  shorten(l.Hostname),
		Workloads: l.workloads(),
		Concerns:  l.concerns(),
		Needs:     l.needs(),
		Policy:    l.policy,
	}
}
