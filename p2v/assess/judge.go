package assess

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"gpuvirt/gpu"
)

// A judgement collects what speaks for and against a candidate.
type judgement struct {
	against, why, cautions, params []string
}

func (j *judgement) reject(format string, args ...any) {
	j.against = append(j.against, fmt.Sprintf(format, args...))
}

func (j *judgement) reason(format string, args ...any) {
	j.why = append(j.why, fmt.Sprintf(format, args...))
}

func (j *judgement) caution(format string, args ...any) {
	j.cautions = append(j.cautions, fmt.Sprintf(format, args...))
}

// judge says whether a profile is enough for a need.
func (f *fitter) judge(n wanted, g HostGPU, p gpu.Profile) Candidate {
	k := kindOf(p)
	c := Candidate{
		GPU: g.GPU.ID, Model: g.GPU.Model, Profile: p.Name, Kind: p.Kind, Sharing: string(k),
		vgpuSeries: series(p), series: seriesRank(n.Class, series(p)), rank: f.rank(g, p),
	}
	var j judgement
	j.sort(n, g, p, k)
	if k == instance { // whatever its size
		c.Available, _ = f.free(g, p)
		c.Reasons, c.Cautions = j.against, []string{}
		return c
	}
	var why string
	if c.Available, why = f.free(g, p); why != "" {
		j.reject("%s", why)
	}
	j.class(n, p, k)
	j.features(n, g, p, k)
	c.MemoryBytes = f.memory(&j, n, g, p, k)
	c.SMs = f.compute(&j, n, g, p, k)
	f.several(&j, n, p, k)
	c.Fits, c.Reasons, c.Cautions, c.Params = len(j.against) == 0, j.why, j.cautions, strings.Join(j.params, ",")
	switch {
	case !c.Fits:
		c.Reasons, c.Cautions, c.Params = j.against, nil, ""
	case len(c.Reasons) == 0:
		c.Reasons = []string{"nothing more is asked of it"}
	}
	if c.Cautions == nil {
		c.Cautions = []string{}
	}
	return c
}

// sort refuses what is not of the right sort, whatever its size.
func (j *judgement) sort(n wanted, g HostGPU, p gpu.Profile, k kind) {
	w := n.wish
	if w.GPU != "" && w.GPU != string(g.GPU.ID) {
		j.reject("another GPU is asked for")
	}
	if w.Profile != "" && w.Profile != p.Name {
		j.reject("another profile is asked for")
	}
	if n.Source.PCI == "" && w.Profile == "" {
		j.reject("a partition that is for nothing that was seen is asked for by its profile's name")
	}
	if n.Source.Vendor != "" && !strings.EqualFold(n.Source.Vendor, g.GPU.Vendor) {
		j.reject("the GPU is of another vendor (%s)", cmp.Or(g.GPU.Vendor, "not known"))
	}
	switch {
	case k == instance:
		j.reject("a VM is not given a GPU instance itself but a vGPU on it")
	case k == function && w.Profile == "":
		j.reject("what a plain virtual function has is not known: ask for it by name if it is the right one")
	case n.WholeGPU && k != whole:
		j.reject("the workload needs a whole GPU")
	}
}

// seriesRank orders the series that are right for a class.
func seriesRank(c Class, s string) string {
	if c == Compute && s == "C" || c == Graphics && s == "Q" {
		return ""
	}
	return s
}

func (j *judgement) class(n wanted, p gpu.Profile, k kind) {
	if k != migBacked && k != timeSliced {
		return
	}
	s := series(p)
	switch {
	case n.Class == "":
	case s == "" && n.Source.Vendor == nvidia:
		j.caution("its name tells no series: what it is for is not known")
	case s == "":
	case n.Class == Graphics && s != "Q":
		j.reject("graphics need a vGPU of series Q, and this is of series %s", s)
	case n.Class == Compute && s == "C":
		j.reason("series C is for compute, under a licence of NVIDIA AI Enterprise")
	case s == "Q":
		j.reason("series Q is for graphics and compute")
		j.caution("series Q takes a licence of RTX Virtual Workstation in the guest")
	default:
		j.reject("series %s is for desktops and applications, not for compute", s)
	}
}

// features refuses what lacks something that the workload uses.
func (j *judgement) features(n wanted, g HostGPU, p gpu.Profile, k kind) {
	has := func(name string) bool { return slices.Contains(n.Features, name) }
	vgpu := k == migBacked || k == timeSliced
	if has(FeatureUnifiedMemory) && vgpu {
		switch {
		case k == timeSliced && p.MaxInstances == 0:
			j.reject("unified memory needs a vGPU with all memory of its card, and whether this is one is not known")
		case k == timeSliced && p.MaxInstances > 1:
			j.reject("a time-sliced vGPU with a part of the memory has no unified memory")
		default:
			j.params = append(j.params, "enable_uvm=1")
			j.caution("unified memory is on only with the parameter enable_uvm=1, and the VM cannot be migrated live then")
		}
	}
	if has(FeatureProfilers) && vgpu {
		j.params = append(j.params, "enable_profiling=1")
		j.caution("profilers need the parameter enable_profiling=1 (debuggers enable_debugging=1), which not every profile takes")
	}
	if has(FeaturePeer) && vgpu {
		j.caution("there is no direct way to other GPUs from it, unless it is a time-sliced vGPU with all memory of a card with NVLink")
	}
	if has(FeatureSwitch) {
		j.caution("which GPUs of an NVSwitch board go together is for the Fabric Manager to say")
	}
	if k == migBacked {
		j.media(n, g, p)
		return
	}
	if k == timeSliced && p.MaxInstances != 1 && series(p) != "" {
		j.caution("its turn is only kept with the scheduler's policies equal-share and fixed-share; with best-effort others may take it")
		if names := n.Engines.names(); len(names) > 0 {
			j.caution("other vGPUs use the card's engines too (%s)", strings.Join(names, ", "))
		}
	}
}

// media refuses a GPU instance without an engine that is used.
func (j *judgement) media(n wanted, g HostGPU, p gpu.Profile) {
	used := n.Engines.names()
	if len(used) == 0 {
		return
	}
	in, known := g.instanceProfile(p)
	if !known || in.Attributes["compute_slices"] == "" {
		j.reject("it is not known whether its GPU instance has a media engine (%s)", strings.Join(used, ", "))
		return
	}
	for _, e := range []struct {
		used      bool
		name, key string
	}{
		{n.Engines.Encoder, "encoder", "encoders"},
		{n.Engines.Decoder, "decoder", "decoders"},
		{n.Engines.JPEG, "JPEG engine", "jpeg"},
		{n.Engines.OFA, "optical-flow engine", "ofa"},
	} {
		if e.used && number(in, e.key) == 0 {
			j.reject("its GPU instance %s has no %s", in.Name, e.name)
		}
	}
}

// memory compares memory, and returns how much a workload has of the candidate.
func (f *fitter) memory(j *judgement, n wanted, g HostGPU, p gpu.Profile, k kind) uint64 {
	have := p.MemoryBytes
	if k == whole {
		have = g.GPU.MemoryBytes
		if sameModel(n.Source.Model, g.GPU.Model) {
			j.reason("it is a card of the same model as the source's")
			return have
		}
	} else if have > 0 && (k == migBacked || k == timeSliced) && series(p) != "" {
		kept := uint64(number(p, "framebuffer_reservation")) //nolint:gosec // it is not negative
		if kept == 0 {
			kept = bytesOf(float64(have) * f.policy.ReservationRatio)
			j.caution("how much of its memory the driver keeps is not known: %s are assumed", percent(f.policy.ReservationRatio))
		}
		have -= min(kept, have)
	}
	switch {
	case n.MemoryBytes == 0 && n.MemoryBasis == BasisWish:
	case n.MemoryBytes == 0:
		j.reject("how much memory is needed is not known: state it in the wish (--need gpu=memory:…)")
	case have == 0:
		j.reject("how much memory it has is not known")
	case have < n.MemoryBytes && n.MemoryBasis == BasisPreallocated:
		j.reject("a workload has %s of it, less than the %s that go with a program which takes memory in advance: what it needs is not known, state it in the wish (--need gpu=memory:…)",
			size(have), size(n.MemoryBytes))
	case have < n.MemoryBytes && n.MemoryBasis == BasisNone:
		j.reject("a workload has %s of it, and how much is needed is not known: only the source's %s are known to be enough", size(have), size(n.MemoryBytes))
	case have < n.MemoryBytes:
		j.reject("a workload has %s of it, needed are %s", size(have), size(n.MemoryBytes))
	default:
		j.reason("a workload has %s of it, needed are %s", size(have), size(n.MemoryBytes))
	}
	if n.MemoryBasis == BasisPreallocated {
		j.caution("a program takes a share of the memory that it sees: on this it takes that share of %s", size(have))
	}
	return have
}

// compute compares multiprocessors, and returns how many the candidate has at worst.
func (f *fitter) compute(j *judgement, n wanted, g HostGPU, p gpu.Profile, k kind) int {
	have, how := f.sms(g, p, k)
	if n.SMs == 0 && n.ComputeBasis == BasisWish {
		return have
	}
	if k == whole && sameModel(n.Source.Model, g.GPU.Model) {
		return have // memory has said it
	}
	need, upper := n.SMs, n.ComputeBasis == BasisUtilisation
	if need == 0 {
		need, upper = n.Source.SMs, true // more it never had
	}
	unsure := j.reject
	if f.policy.AcceptUnknownCompute {
		unsure = j.caution
	}
	switch {
	case need == 0:
		unsure("how many multiprocessors are needed is not known: only a whole card of the same model is known to be enough")
	case have == 0:
		unsure("how many multiprocessors it has is not known, needed are %d", need)
	case have >= need:
		j.reason("it has %d multiprocessors%s, needed are %d", have, how, need)
	case upper:
		unsure("it has %d multiprocessors%s, and whether fewer than the source's %d are enough is not known: "+
			"measure their activity, or state it in the wish (--need gpu=sms:…)", have, how, need)
	default:
		j.reject("it has %d multiprocessors%s, needed are %d", have, how, need)
	}
	if a, b := n.Source.Capability, g.capability(); a != "" && b != "" && a != b {
		j.caution("its architecture is another (compute capability %s, the source's is %s), so its multiprocessors are not the same", b, quote(a))
	}
	return have
}

// sms is how many multiprocessors a candidate has when all others are busy.
func (f *fitter) sms(g HostGPU, p gpu.Profile, k kind) (n int, how string) {
	switch k {
	case whole:
		return g.sms(), ""
	case migBacked:
		in, known := g.instanceProfile(p)
		if !known {
			return 0, ""
		}
		n, estimated := g.instanceSMs(in.Name)
		if estimated {
			how = " by estimate"
		}
		if per := number(p, "max_per_instance"); per > 1 {
			return n / per, how + fmt.Sprintf(" while %d share its GPU instance", per)
		}
		return n, how
	case timeSliced:
		if p.MaxInstances <= 0 {
			return 0, ""
		}
		if p.MaxInstances == 1 {
			return g.sms(), ""
		}
		return g.sms() / p.MaxInstances, fmt.Sprintf(" at worst, as its turn of %d", p.MaxInstances)
	case function, instance:
	}
	return 0, ""
}

// several refuses vGPUs that a VM cannot have beside others.
func (f *fitter) several(j *judgement, n wanted, p gpu.Profile, k kind) {
	if f.partitions < 2 || k != migBacked && k != timeSliced {
		return
	}
	switch most := number(p, "max_per_vm"); {
	case most == 1:
		j.reject("a VM can have one of these only, and this one gets %d partitions", f.partitions)
	case most == 0 && n.Source.Vendor == nvidia:
		j.caution("whether a VM can have %d of these is not known", f.partitions)
	}
}

// reasoning is the paragraph for a choice.
func reasoning(n wanted, list []Candidate, c Candidate, waived bool) string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	say("%s on %s (%s): %s.", c.Profile, c.GPU, cmp.Or(c.Model, "model not known"), map[kind]string{
		whole: "the whole card", migBacked: "a vGPU on a GPU instance", timeSliced: "a mediated device that takes turns with others",
		function: "a virtual function", instance: "a GPU instance",
	}[kind(c.Sharing)])
	if waived {
		say("It does not fit, as %s; it was asked for by name, and that this does not count was stated.", strings.Join(c.Reasons, "; "))
		return strings.Join(out, " ")
	}
	say("It is enough: %s.", strings.Join(c.Reasons, "; "))
	fits, larger := 0, ""
	for _, o := range list {
		if o.Fits {
			fits++
			if larger == "" && (o.GPU != c.GPU || o.Profile != c.Profile) {
				larger = fmt.Sprintf("%s on %s", o.Profile, o.GPU)
			}
		}
	}
	switch {
	case n.WholeGPU:
		say("A whole GPU is needed, so no part of one was looked at further.")
	case kind(c.Sharing) == migBacked:
		say("A part of a GPU is enough; a GPU instance comes before taking turns, as its multiprocessors are its own.")
	case kind(c.Sharing) == timeSliced:
		say("A part of a GPU is enough, and nothing on a GPU instance fits or is free.")
	case kind(c.Sharing) == whole:
		say("No part of a GPU is known to be enough, and when in doubt a whole card comes first.")
	}
	if larger != "" {
		say("It is the first of %d that fit, by size and then by what is free; the next is %s.", fits, larger)
	} else {
		say("It is the only one that fits.")
	}
	if rejected := len(list) - fits; rejected > 0 {
		say("%s, each with its reason.", Count(rejected, "other was rejected", "others were rejected"))
	}
	return strings.Join(out, " ")
}
