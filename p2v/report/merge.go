package report

import (
	"cmp"
	"slices"
	"strings"
)

// Merge adds what another part of the watching saw. Parts may be put together in any
// grouping, and in any order as long as a GPU keeps its UUID. Of more programs than a report
// may hold, those that sort first stay.
func (u *Usage) Merge(o Usage) {
	if !o.Start.IsZero() && (u.Start.IsZero() || o.Start.Before(u.Start)) {
		u.Start = o.Start
	}
	if o.End.After(u.End) {
		u.End = o.End
	}
	u.IntervalSeconds = max(u.IntervalSeconds, o.IntervalSeconds)
	u.Samples += o.Samples
	u.Missed += o.Missed
	u.Source = union(u.Source, o.Source)
	u.Cost.CPUSeconds += o.Cost.CPUSeconds
	u.Cost.WindowSeconds += o.Cost.WindowSeconds
	u.Cost.LongestSeconds = max(u.Cost.LongestSeconds, o.Cost.LongestSeconds)
	for _, g := range o.GPUs {
		u.gpu(g.PCI).merge(g)
	}
	for _, p := range o.Processes {
		u.process(p).merge(p)
	}
	u.GPUs = u.GPUs[:min(len(u.GPUs), maxItems)]
	u.Processes = u.Processes[:min(len(u.Processes), maxItems)]
}

// gpu returns the use of the GPU at an address, made where there is none.
func (u *Usage) gpu(pci string) *GPUUsage {
	i, there := slices.BinarySearchFunc(u.GPUs, pci, func(g GPUUsage, pci string) int { return cmp.Compare(g.PCI, pci) })
	if !there {
		u.GPUs = slices.Insert(u.GPUs, i, GPUUsage{PCI: pci})
	}
	return &u.GPUs[i]
}

// process returns the use of a program, made where there is none.
func (u *Usage) process(p ProcessUsage) *ProcessUsage {
	i, there := slices.BinarySearchFunc(u.Processes, p.Key(), func(a ProcessUsage, k ProcessKey) int { return a.Key().Compare(k) })
	if !there {
		u.Processes = slices.Insert(u.Processes, i, ProcessUsage{PCI: p.PCI, Exe: p.Exe, Unit: p.Unit, Container: p.Container})
	}
	return &u.Processes[i]
}

func (g *GPUUsage) merge(o GPUUsage) {
	g.UUID = cmp.Or(g.UUID, o.UUID)
	switch { // before the samples are added: a part without any does not count
	case !g.SM.Seen():
		g.Activity = o.Activity && o.SM.Seen() // of nothing it says nothing
	case o.SM.Seen():
		g.Activity = g.Activity && o.Activity
	}
	theirs := o.series()
	for i, s := range g.series() {
		s.Merge(*theirs[i])
	}
}

func (g *GPUUsage) series() []*Series {
	return []*Series{
		&g.Memory, &g.SM, &g.DRAM, &g.Encoder, &g.Decoder, &g.JPEG, &g.OFA, &g.NVLink, &g.PCIeRx, &g.PCIeTx, &g.Power,
	}
}

func (p *ProcessUsage) merge(o ProcessUsage) {
	theirs := o.Series()
	for i, s := range p.Series() {
		s.Merge(*theirs[i])
	}
}

// union puts names together that are joined by "+".
func union(a, b string) string {
	all := slices.Concat(strings.Split(a, "+"), strings.Split(b, "+"))
	slices.Sort(all)
	return strings.Trim(strings.Join(slices.Compact(all), "+"), "+")
}
