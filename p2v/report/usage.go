package report

import (
	"cmp"
	"time"
)

// Usage is what the GPUs were seen to do. Parts that follow one another, or that were taken
// at other times, are put together by Merge and give the percentiles of the whole.
type Usage struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	// Interval is between two samples, in seconds; Samples is how many there are, and Missed
	// how many were due and did not come.
	IntervalSeconds float64 `json:"interval_seconds"`
	Samples         int     `json:"samples"`
	Missed          int     `json:"missed"`
	// Source tells what the samples are from: nvml, nvidia-smi, dcgm.
	Source string `json:"source"`
	// Cost is what the watching itself took of the source.
	Cost GPUCost `json:"cost"`

	GPUs      []GPUUsage     `json:"gpus"`
	Processes []ProcessUsage `json:"processes"`
}

// GPUCost is the price of watching: processor seconds of the inspector and of what it ran,
// over the seconds that it watched, and the longest that one sample took.
type GPUCost struct {
	CPUSeconds     float64 `json:"cpu_seconds"`
	WindowSeconds  float64 `json:"window_seconds"`
	LongestSeconds float64 `json:"longest_seconds"`
}

// GPUUsage is one GPU's use. Shares are from 0 to 1. A series without samples was not seen.
type GPUUsage struct {
	PCI  string `json:"pci_address"`
	UUID string `json:"uuid,omitempty"`

	Memory  Series `json:"memory_bytes"`  // used, of all processes and the driver
	SM      Series `json:"sm_ratio"`      // "some kernel ran" where only NVML tells (see Activity)
	DRAM    Series `json:"dram_ratio"`    // memory was read or written
	Encoder Series `json:"encoder_ratio"` //
	Decoder Series `json:"decoder_ratio"` //
	JPEG    Series `json:"jpeg_ratio"`    //
	OFA     Series `json:"ofa_ratio"`     //
	NVLink  Series `json:"nvlink_bytes"`  // a second
	PCIeRx  Series `json:"pcie_rx_bytes"` // a second
	PCIeTx  Series `json:"pcie_tx_bytes"` // a second
	Power   Series `json:"power_watts"`   //
	// Activity is set where SM tells which share of the multiprocessors worked (DCGM, GPM)
	// and not only whether any did.
	Activity bool `json:"activity"`
}

// ProcessUsage is what one program was seen to use of one GPU, under whatever process ids.
type ProcessUsage struct {
	PCI       string `json:"pci_address"`
	Exe       string `json:"exe"`
	Unit      string `json:"unit,omitempty"`
	Container string `json:"container,omitempty"`
	Memory    Series `json:"memory_bytes"`
	SM        Series `json:"sm_ratio"`
	// Those below an older inspection does not have, and nothing tells them under MIG.
	DRAM    Series `json:"dram_ratio,omitzero"` // memory was read or written
	Encoder Series `json:"encoder_ratio,omitzero"`
	Decoder Series `json:"decoder_ratio,omitzero"`
}

// Series returns what was seen of the program: memory, SMs, memory's bandwidth, encoder and
// decoder, in this order.
func (p *ProcessUsage) Series() []*Series {
	return []*Series{&p.Memory, &p.SM, &p.DRAM, &p.Encoder, &p.Decoder}
}

// ProcessKey tells the program and GPU of a ProcessUsage from all others.
type ProcessKey struct{ PCI, Exe, Unit, Container string }

// Key returns what tells it from all others.
func (p ProcessUsage) Key() ProcessKey { return ProcessKey{p.PCI, p.Exe, p.Unit, p.Container} }

// Compare orders keys.
func (k ProcessKey) Compare(o ProcessKey) int {
	return cmp.Or(cmp.Compare(k.PCI, o.PCI), cmp.Compare(k.Exe, o.Exe), cmp.Compare(k.Unit, o.Unit), cmp.Compare(k.Container, o.Container))
}
