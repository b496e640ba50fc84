package inspect

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuvirt/p2v/report"
)

// A usagePart is one part of the watching while it is made.
type usagePart struct {
	w    *watcher
	u    report.Usage
	gpus map[string]*report.GPUUsage
	who  map[int]report.ProcessUsage // by process id: what it is

	columns []string // of pmon
	at      string   // the time of the sample of processes that is being put together
	now     map[report.ProcessKey]*used
	all     map[report.ProcessKey]*report.ProcessUsage
}

// used is what a process, or all of a program together, use in one sample: memory in bytes, and
// the shares of SMs, memory's bandwidth, encoder and decoder, in the order of the series of a
// report.ProcessUsage; -1: not told.
type used [5]float64

var unused = used{-1, -1, -1, -1, -1}

func newPart(w *watcher) *usagePart {
	p := &usagePart{
		w: w, gpus: map[string]*report.GPUUsage{}, who: map[int]report.ProcessUsage{}, now: map[report.ProcessKey]*used{},
		all: map[report.ProcessKey]*report.ProcessUsage{},
	}
	p.u.IntervalSeconds = w.interval.Seconds()
	p.u.Source = "nvidia-smi"
	if w.dcgm != nil {
		p.u.Source = "dcgm"
	}
	return p
}

// end puts the part together.
func (p *usagePart) end(took time.Duration, cpu float64) report.Usage {
	p.flush()
	p.u.End = p.u.Start.Add(took)
	p.u.Cost.WindowSeconds, p.u.Cost.CPUSeconds = took.Seconds(), cpu
	if due := int(math.Round(took.Seconds() / p.u.IntervalSeconds)); due > p.u.Samples {
		p.u.Missed = due - p.u.Samples
	}
	out := p.u
	for _, g := range p.gpus {
		out.Merge(report.Usage{GPUs: []report.GPUUsage{*g}})
	}
	for _, q := range p.all {
		out.Merge(report.Usage{Processes: []report.ProcessUsage{*q}})
	}
	out.Clean()
	return out
}

func (p *usagePart) gpu(pci string) *report.GPUUsage {
	if p.gpus[pci] == nil {
		p.gpus[pci] = &report.GPUUsage{PCI: pci, UUID: p.w.uuid[pci]}
	}
	return p.gpus[pci]
}

// add adds a sample where there is one.
func add(to *report.Series, text string, unit float64) {
	if v, err := strconv.ParseFloat(said(text), 64); err == nil {
		to.Add(v * unit)
	}
}

const (
	mib     = 1 << 20
	percent = 0.01
)

// gpuRow reads a line of "nvidia-smi --query-gpu".
func (p *usagePart) gpuRow(line string) {
	v := row(line)
	if len(v) != len(p.w.fields) {
		return
	}
	pci := smiAddress(v[1])
	if p.w.pci[v[0]] != pci {
		return
	}
	g := p.gpu(pci)
	for n, name := range p.w.fields {
		switch name {
		case "memory.used":
			add(&g.Memory, v[n], mib)
		case "utilization.gpu":
			add(&g.SM, v[n], percent)
		case "utilization.memory":
			add(&g.DRAM, v[n], percent)
		case "utilization.encoder":
			add(&g.Encoder, v[n], percent)
		case "utilization.decoder":
			add(&g.Decoder, v[n], percent)
		case "utilization.jpeg":
			add(&g.JPEG, v[n], percent)
		case "utilization.ofa":
			add(&g.OFA, v[n], percent)
		case "power.draw":
			add(&g.Power, v[n], 1)
		}
	}
	p.u.Samples = max(p.u.Samples, g.Memory.Samples)
}

// Fields of DCGM: memory used, the shares of time that SMs and memory work, encoder,
// decoder, bytes a second over PCIe to and from the GPU and over NVLink, power.
var dcgmFields = []string{"252", "1002", "1005", "206", "207", "1009", "1010", "1011", "1012", "155"}

// dcgmRow reads a line of "dcgmi dmon".
func (p *usagePart) dcgmRow(line string) {
	f := strings.Fields(line)
	if len(f) != len(dcgmFields)+2 || f[0] != "GPU" {
		return
	}
	pci := p.w.dcgm[f[1]]
	if pci == "" {
		return
	}
	g, v := p.gpu(pci), f[2:]
	add(&g.Memory, v[0], mib)
	add(&g.SM, v[1], 1)
	add(&g.DRAM, v[2], 1)
	add(&g.Encoder, v[3], percent)
	add(&g.Decoder, v[4], percent)
	add(&g.PCIeTx, v[5], 1)
	add(&g.PCIeRx, v[6], 1)
	tx, err1 := strconv.ParseFloat(v[7], 64)
	rx, err2 := strconv.ParseFloat(v[8], 64)
	if err1 == nil && err2 == nil {
		g.NVLink.Add(tx + rx)
	}
	add(&g.Power, v[9], 1)
	g.Activity = g.SM.Seen()
	p.u.Samples = max(p.u.Samples, g.Memory.Samples)
}

var (
	dcgmGPU = regexp.MustCompile(`^\|\s*(\d+)\s*\|`)
	dcgmPCI = regexp.MustCompile(`PCI Bus ID:\s*([0-9A-Fa-f:.]+)`)
)

// discovered reads "dcgmi discovery -l": nil where it names no GPU.
func discovered(text string) map[string]string {
	var out map[string]string
	current := ""
	for line := range strings.Lines(text) {
		if g := dcgmGPU.FindStringSubmatch(line); g != nil {
			current = g[1]
		}
		if g := dcgmPCI.FindStringSubmatch(line); g != nil && current != "" {
			if out == nil {
				out = map[string]string{}
			}
			out[current] = smiAddress(g[1])
		}
	}
	return out
}

// pmonRow reads a line of "nvidia-smi pmon". Which columns there are is in its head.
func (p *usagePart) pmonRow(line string) {
	f := strings.Fields(strings.Replace(line, "#", " ", 1))
	if strings.HasPrefix(strings.TrimSpace(line), "#") {
		if slices.Contains(f, "pid") {
			p.columns = f
		}
		return
	}
	at := func(name string) string {
		if n := slices.IndexFunc(p.columns, func(c string) bool { return strings.EqualFold(c, name) }); n >= 0 && n < len(f) {
			return f[n]
		}
		return ""
	}
	p.sample(at("time"))
	p.used(p.w.pci[at("gpu")], at("pid"), at("fb"), at("sm"), at("mem"), at("enc"), at("dec"))
}

// appRow reads a line of "nvidia-smi --query-compute-apps".
func (p *usagePart) appRow(line string) {
	v := row(line)
	if len(v) != 4 {
		return
	}
	second, _, _ := strings.Cut(v[0], ".")
	p.sample(second)
	p.used(smiAddress(v[1]), v[2], v[3])
}

// used notes what a process uses of a GPU in the sample that is being put together: its memory
// in MiB, and shares in percent, in the order of a used, as many as there are.
func (p *usagePart) used(pci, pid, memory string, shares ...string) {
	n, err := strconv.Atoi(pid)
	if err != nil || pci == "" || n <= 0 {
		return
	}
	q := p.describe(n)
	q.PCI = pci
	const most = 512 // programs in one part
	if p.all[q.Key()] == nil {
		if len(p.all) >= most {
			return
		}
		p.all[q.Key()] = &q
	}
	u := p.now[q.Key()]
	if u == nil {
		all := unused
		u = &all
		p.now[q.Key()] = u
	}
	if v, err := strconv.ParseFloat(said(memory), 64); err == nil {
		u[0] = max(u[0], 0) + v*mib
	}
	for i, share := range shares {
		if v, err := strconv.ParseFloat(said(share), 64); err == nil {
			u[i+1] = min(max(u[i+1], 0)+v*percent, 1)
		}
	}
}

// sample begins a sample of processes, where it is another than the last line's.
func (p *usagePart) sample(at string) {
	if at != p.at {
		p.flush()
	}
	p.at = at
}

// flush ends one. What is -1 was not told, and a series does not take it.
func (p *usagePart) flush() {
	for key, u := range p.now {
		for i, s := range p.all[key].Series() {
			s.Add(u[i])
		}
	}
	clear(p.now)
}

// describe tells what a process is; looked up once in each part.
func (p *usagePart) describe(pid int) report.ProcessUsage {
	if known, there := p.who[pid]; there {
		return known
	}
	dir := "proc/" + itoa(pid)
	var q report.ProcessUsage
	exe, _ := p.w.tree.link(dir + "/exe")
	q.Exe = report.CleanString(strings.TrimSuffix(exe, " (deleted)"))
	if q.Exe == "" {
		q.Exe = report.CleanString(p.w.tree.text(dir + "/comm"))
	}
	q.Unit, q.Container = cgroup(p.w.tree.text(dir + "/cgroup"))
	p.who[pid] = q
	return q
}
