package assess

// A Figure is one of a policy's that an operator may set.
type Figure struct {
	Name string // as an assessment has it
	Doc  string // for people
	// Of is the figure in a policy: a *float64, *uint64 or *bool.
	Of func(*Policy) any
	// Most is the most that a number may be; zero is none, as it stands for the default.
	Most float64
}

// The most that a figure can be which is no share: a year of seconds, and an exbibyte.
const (
	mostSeconds = 365 * 24 * 3600
	mostBytes   = 1 << 60
)

// Figures lists those of a policy.
func Figures() []Figure {
	return []Figure{
		{"memory_margin_ratio", "What is added to measured memory, as a share of it.", func(p *Policy) any { return &p.MemoryMarginRatio }, 100},
		{"memory_margin_min_bytes", "What is added to measured memory at least.", func(p *Policy) any { return &p.MemoryMarginMinBytes }, mostBytes},
		{"context_bytes", "What CUDA takes for each process, where memory is known of processes only.", func(p *Policy) any { return &p.ContextBytes }, mostBytes},
		{"reservation_ratio", "The share of a vGPU's memory that its driver keeps, where the driver does not tell.", func(p *Policy) any { return &p.ReservationRatio }, 0.9},
		{"compute_quantile", "The quantile of the multiprocessors' activity that has to be served.", func(p *Policy) any { return &p.ComputeQuantile }, 1},
		{"window_seconds", "How long GPUs should have been watched.", func(p *Policy) any { return &p.WindowSeconds }, mostSeconds},
		{"accept_unknown_compute", "Whether memory alone decides where it is not known how many multiprocessors are needed or there.", func(p *Policy) any { return &p.AcceptUnknownCompute }, 0},
		{"bandwidth_min_bytes_per_second", "The least rate of a copy that is assumed where a wish names none.", func(p *Policy) any { return &p.BandwidthMinBytes }, mostBytes},
		{"bandwidth_max_bytes_per_second", "The highest.", func(p *Policy) any { return &p.BandwidthMaxBytes }, mostBytes},
		{"conversion_seconds", "What the conversion of a disk takes.", func(p *Policy) any { return &p.ConversionSeconds }, mostSeconds},
		{"boot_seconds", "What a VM takes until it answers.", func(p *Policy) any { return &p.BootSeconds }, mostSeconds},
		{"fixed_seconds", "What stopping the server and the last checks take.", func(p *Policy) any { return &p.FixedSeconds }, mostSeconds},
		{"change_ratio", "The share of the used bytes that changes before the last pass, where no rate was measured.", func(p *Policy) any { return &p.ChangeRatio }, 1},
		{"overlay_ratio", "The room for what conversion and first boots write, as a share of the used bytes.", func(p *Policy) any { return &p.OverlayRatio }, 100},
		{"overlay_min_bytes", "That room at least.", func(p *Policy) any { return &p.OverlayMinBytes }, mostBytes},
	}
}
