package assess

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// Basis says what a figure rests on.
type Basis string

// What figures rest on, the best first.
const (
	BasisWish         Basis = "wish"         // a person stated it
	BasisWindow       Basis = "window"       // measured over a window
	BasisMoment       Basis = "moment"       // seen at the moment of the inspection
	BasisPreallocated Basis = "preallocated" // measured, of a program that takes what it sees: an upper bound
	BasisActivity     Basis = "activity"     // which share of the multiprocessors worked
	BasisUtilisation  Basis = "utilisation"  // whether any kernel ran: an upper bound
	BasisSeen         Basis = "seen"         // there are signs of it
	BasisNone         Basis = "none"         // nothing is known
)

// Class is what a partition is for.
type Class string

// The classes.
const (
	Compute  Class = "compute"  // vGPUs of series C
	Graphics Class = "graphics" // vGPUs of series Q
)

// Engines are the fixed-function engines of a GPU that are used.
type Engines struct {
	Encoder bool `json:"encoder"`
	Decoder bool `json:"decoder"`
	JPEG    bool `json:"jpeg"`
	OFA     bool `json:"ofa"` // optical flow
}

func (e Engines) names() []string {
	var out []string
	for _, n := range []struct {
		used bool
		name string
	}{{e.Encoder, "encoder"}, {e.Decoder, "decoder"}, {e.JPEG, "JPEG"}, {e.OFA, "optical flow"}} {
		if n.used {
			out = append(out, n.name)
		}
	}
	return out
}

// Features of a workload that not every kind of partition has. The inspection tells of them
// for the server as a whole, so each GPU in use is taken to need them.
const (
	FeatureUnifiedMemory = "unified-memory"
	FeaturePeer          = "peer-to-peer" // NVLink or P2P between GPUs
	FeatureSwitch        = "nvswitch"
	FeatureRDMA          = "gpudirect-rdma"
	FeatureStorage       = "gpudirect-storage"
	FeatureProfilers     = "profilers"
	FeatureMPS           = "mps"
)

// A Need is what the workload of one GPU of the source needs of a partition.
type Need struct {
	Source NeedSource `json:"source"`
	// Required is false where nothing was seen to use the GPU; Explanation tells how well
	// that is known.
	Required bool `json:"required"`
	// MemoryBytes is what a partition must have for the workload; 0: not known.
	MemoryBytes uint64 `json:"memory_bytes"`
	MemoryBasis Basis  `json:"memory_basis"`
	// SMs is how many multiprocessors of the source's kind must be there; 0: not known.
	SMs          int   `json:"sms"`
	ComputeBasis Basis `json:"compute_basis"`
	// ComputeRatio is the share of the source's multiprocessors that SMs is of, 0 to 1.
	ComputeRatio float64  `json:"compute_ratio"`
	Engines      Engines  `json:"engines"`
	Features     []string `json:"features"`
	Class        Class    `json:"class,omitempty"` // empty: any
	// WholeGPU is set where no part of a GPU will do.
	WholeGPU bool `json:"whole_gpu"`
	// Together are the addresses of the other GPUs that a program uses along with this one.
	Together    []string `json:"together"`
	Explanation []Line   `json:"explanation"`
}

// NeedSource is the GPU of the source that the workload runs on now.
type NeedSource struct {
	PCI         string `json:"pci_address"` // empty: a partition that a person asks for beside what was seen
	Vendor      string `json:"vendor"`
	Model       string `json:"model,omitempty"`
	MemoryBytes uint64 `json:"memory_bytes"` // 0: not known
	SMs         int    `json:"sms"`          // 0: not known
	Capability  string `json:"compute_capability,omitempty"`
}

// A Line explains one figure.
type Line struct {
	About string `json:"about"` // use, memory, compute, engines, features, class, whole
	Text  string `json:"text"`
	Basis Basis  `json:"basis"`
}

func (n *Need) explain(about string, basis Basis, format string, args ...any) {
	n.Explanation = append(n.Explanation, Line{about, fmt.Sprintf(format, args...), basis})
}

// needs are those of all GPUs of the source.
func (l *look) needs() []Need {
	out := make([]Need, 0, len(l.GPUs))
	features, class := l.features(), Compute
	if len(l.graphics()) > 0 {
		class = Graphics
	}
	for _, g := range l.GPUs {
		out = append(out, l.need(g, features, class))
	}
	return out
}

func (l *look) need(g report.GPU, features []string, class Class) Need {
	card := cardOf(g.Model)
	n := Need{
		Source: NeedSource{
			PCI: shorten(g.PCI), Vendor: shorten(g.Vendor), Model: shorten(g.Model), MemoryBytes: g.MemoryBytes,
			SMs: cmp.Or(max(g.Multiprocessors, 0), card.SMs), Capability: shorten(cmp.Or(g.Capability, card.Capability)),
		},
		MemoryBasis: BasisNone, ComputeBasis: BasisNone, Class: Compute, Features: []string{}, Together: []string{},
	}
	users := l.usersOf(g)
	if n.Required = l.required(&n, g, users); !n.Required {
		return n
	}
	l.memory(&n, g, users)
	l.compute(&n, g)
	n.Engines = l.engines(g)
	if names := n.Engines.names(); len(names) > 0 {
		n.explain("engines", BasisSeen, "these engines were at work: %s", strings.Join(names, ", "))
	}
	for _, f := range features {
		n.Features = append(n.Features, f)
		n.explain("features", BasisSeen, "%s: there are signs of it on the server, for which of its GPUs is not told", f)
	}
	if n.Class = class; class == Graphics {
		n.explain("class", BasisSeen, "graphics are drawn on this server, which only series Q and whole cards do")
	} else {
		n.explain("class", BasisSeen, "no graphics were seen: compute")
	}
	l.whole(&n, g, users)
	return n
}

func (l *look) usersOf(g report.GPU) []report.Process {
	return slices.DeleteFunc(slices.Clone(l.users), func(p report.Process) bool { return !slices.Contains(p.GPUs, g.PCI) })
}

// required tells whether anything uses the GPU.
func (l *look) required(n *Need, g report.GPU, users []report.Process) bool {
	u := l.usage[g.PCI]
	switch {
	case len(users) > 0:
		n.explain("use", BasisSeen, "%s it now", Count(len(users), "process uses", "processes use"))
		return true
	case u.SM.Max > 0 || u.Encoder.Max > 0 || u.Decoder.Max > 0 || u.JPEG.Max > 0:
		n.explain("use", BasisWindow, "it worked during the window, for a program that was not seen")
		return true
	case g.Vendor != nvidia:
		n.explain("use", BasisNone, "no program was seen to use it; it may be the server's display")
	case u.SM.Seen() && l.Privileged:
		n.explain("use", BasisWindow, "no program was seen to use it, and it did nothing for %s", duration(l.windowSeconds()))
	default:
		n.explain("use", BasisNone, "no program was seen to use it, which is not known well: nobody watched it, or not as root")
	}
	return false
}

// memory says how much memory the workload needs: the most that was seen in use, what CUDA
// takes where that is not in it, and a margin; not more than the GPU has on which it runs.
func (l *look) memory(n *Need, g report.GPU, users []report.Process) {
	p, u := l.policy, l.usage[g.PCI]
	now, peaks, programs := uint64(0), uint64(0), 0
	for _, x := range users {
		now = sum(now, x.MemoryBytes/uint64(max(1, len(x.GPUs))))
	}
	if l.Usage != nil {
		for _, x := range l.Usage.Processes {
			if x.PCI == g.PCI && x.Memory.Seen() {
				peaks, programs = sum(peaks, bytesOf(x.Memory.Max)), programs+1
			}
		}
	}
	var measured uint64
	switch {
	case u.Memory.Seen():
		measured, n.MemoryBasis = max(bytesOf(u.Memory.Max), now), BasisWindow
		n.explain("memory", BasisWindow, "%s at most were in use over %s, with the contexts of CUDA and the driver's own; half of the time at most %s",
			size(measured), duration(l.windowSeconds()), size(bytesOf(u.Memory.Quantile(0.5))))
	case programs > 0:
		measured, n.MemoryBasis = sum(max(peaks, now), p.ContextBytes*uint64(programs)), BasisWindow
		n.explain("memory", BasisWindow, "the peaks of %s add up to %s, with %s for each context",
			Count(programs, "program", "programs"), size(measured), size(p.ContextBytes))
	case now > 0:
		measured, n.MemoryBasis = sum(now, p.ContextBytes*uint64(len(users))), BasisMoment
		n.explain("memory", BasisMoment, "%s had %s at the moment of the inspection, with %s for each context: nothing is known of a peak",
			Count(len(users), "process", "processes"), size(measured), size(p.ContextBytes))
	default:
		n.explain("memory", BasisNone, "how much memory is used is not known: only the whole memory of the GPU is known to be enough")
		n.MemoryBytes = g.MemoryBytes
		return
	}
	margin := max(p.MemoryMarginMinBytes, bytesOf(float64(measured)*p.MemoryMarginRatio))
	n.MemoryBytes = sum(measured, margin)
	n.explain("memory", n.MemoryBasis, "a margin of %s is added (%s, at least %s): %s",
		size(margin), percent(p.MemoryMarginRatio), size(p.MemoryMarginMinBytes), size(n.MemoryBytes))
	if g.MemoryBytes > 0 && n.MemoryBytes > g.MemoryBytes {
		n.MemoryBytes = g.MemoryBytes
		n.explain("memory", n.MemoryBasis, "that is more than the GPU has on which it runs, so its %s are enough", size(g.MemoryBytes))
	}
	if slices.ContainsFunc(users, func(x report.Process) bool { return x.Preallocates }) {
		n.MemoryBasis = BasisPreallocated
		n.explain("memory", BasisPreallocated, "a program takes memory in advance, a share of what it sees, so this is an upper bound: what it needs is not known")
		l.models(n)
	}
}

// models tells how large the models are, which is what is known of a preallocator's need.
func (l *look) models(n *Need) {
	var largest uint64
	for _, m := range l.Models {
		largest = max(largest, m.SizeBytes)
	}
	if largest > 0 {
		n.explain("memory", BasisSeen, "its weights are among the model folders, of which the largest has %s on disk: how much of that is loaded is not known", size(largest))
	}
}

// compute says how many multiprocessors the workload keeps busy.
func (l *look) compute(n *Need, g report.GPU) {
	u, q := l.usage[g.PCI], l.policy.ComputeQuantile
	if !u.SM.Seen() {
		n.explain("compute", BasisNone, "how many multiprocessors it keeps busy is not known: nobody watched")
		return
	}
	n.ComputeRatio = min(max(u.SM.Quantile(q), 0), 1)
	if math.IsNaN(n.ComputeRatio) {
		n.ComputeRatio = 1
	}
	n.ComputeBasis = BasisUtilisation
	seen := fmt.Sprintf("for %s of the samples some kernel ran for %s of the time at most", percent(q), percent(n.ComputeRatio))
	if u.Activity {
		n.ComputeBasis = BasisActivity
		seen = fmt.Sprintf("for %s of the samples %s of the multiprocessors were busy at most", percent(q), percent(n.ComputeRatio))
	}
	if n.Source.SMs == 0 {
		n.explain("compute", n.ComputeBasis, "%s; how many multiprocessors the GPU has is not known", seen)
		return
	}
	n.SMs = max(1, int(math.Ceil(n.ComputeRatio*float64(n.Source.SMs)-1e-9)))
	if u.Activity {
		n.explain("compute", n.ComputeBasis, "%s: %d of its %d are needed", seen, n.SMs, n.Source.SMs)
		return
	}
	n.explain("compute", n.ComputeBasis, "%s: %d of its %d multiprocessors are an upper bound, and likely too many", seen, n.SMs, n.Source.SMs)
}

// engines are those that worked during the window. Where only the report's sentences tell of
// an encoder or decoder, every GPU in use may be the one.
func (l *look) engines(g report.GPU) Engines {
	u := l.usage[g.PCI]
	return Engines{
		Encoder: u.Encoder.Max > 0 || len(l.Features.Encoder) > 0 && g.Vendor == nvidia && !u.Encoder.Seen(),
		Decoder: u.Decoder.Max > 0 || len(l.Features.Decoder) > 0 && g.Vendor == nvidia && !u.Decoder.Seen(),
		JPEG:    u.JPEG.Max > 0,
		OFA:     u.OFA.Max > 0,
	}
}

// features are those of the server that rule kinds of partition out.
func (l *look) features() []string {
	var out []string
	add := func(name string, signs ...[]string) {
		for _, s := range signs {
			if len(s) > 0 {
				out = append(out, name)
				return
			}
		}
	}
	f := l.Features
	add(FeatureUnifiedMemory, f.UnifiedMemory)
	traffic := slices.ContainsFunc(l.GPUs, func(g report.GPU) bool { return l.usage[g.PCI].NVLink.Max > 0 })
	if traffic {
		out = append(out, FeaturePeer)
	} else {
		add(FeaturePeer, f.NVLink, f.P2P)
	}
	add(FeatureSwitch, f.NVSwitch)
	add(FeatureRDMA, f.GPUDirectRDMA)
	add(FeatureStorage, f.GPUDirectIO)
	add(FeatureProfilers, f.Profilers)
	add(FeatureMPS, f.MPS)
	return out
}

// whole says whether a part of a GPU can do.
func (l *look) whole(n *Need, g report.GPU, users []report.Process) {
	for _, other := range l.GPUs {
		if other.PCI != g.PCI && slices.ContainsFunc(users, func(p report.Process) bool { return slices.Contains(p.GPUs, other.PCI) }) {
			n.Together = append(n.Together, shorten(other.PCI))
		}
	}
	for _, f := range []string{FeatureSwitch, FeatureRDMA, FeatureStorage} {
		if slices.Contains(n.Features, f) {
			n.WholeGPU = true
			n.explain("whole", BasisSeen, "%s: whole cards have it, and few vGPUs", f)
		}
	}
	if len(n.Together) > 0 && slices.Contains(n.Features, FeaturePeer) {
		n.WholeGPU = true
		n.explain("whole", BasisSeen, "a program uses it together with %s, and GPUs talk to one another directly", Count(len(n.Together), "other", "others"))
	}
}
