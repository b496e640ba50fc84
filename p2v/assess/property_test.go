package assess

import (
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuvirt/gpu"
	"gpuvirt/p2v/report"
)

// marker is in every text of a hostile report.
const marker = "§evil§"

// words are texts that rules look for, with some that none does.
var words = []string{
	"", marker, strings.Repeat("é", 300), "nvidia", "nouveau", "vfio-pci", "0000:41:00.0", "0000:42:00.0", "workload", "persistence", "fabric-manager", "mps",
	"gridd", "mig-manager", "display-manager", "monitor", "vllm", "active", "enabled", "failed", "crypt", "md", "multipath", "lvm", "dm-0", "sda", "sda1", "nvme0n1",
	"/dev/sda1", "/", "/boot", "swap", "zfs", "btrfs", "nfs4", "physical", "bond", "index", "gpu-uuid", "pci", "xorg", "power", "cdi", "mig", "compute", "graphics",
	"cuda>=12.4", "cuda>=", "550.90.07", "535", "x.1", "NVIDIA H100 80GB HBM3", "NVIDIA A30", "9.0", "12.0", "open", "runfile", "bios", "uefi", "x86_64", "debian", "GPU-1", "a.scope",
}

// anyReport draws a report whose lists and texts are whatever: also what report.Read refuses.
func anyReport(t *rapid.T) report.Report {
	var r report.Report
	fill(t, reflect.ValueOf(&r).Elem(), 0)
	return r
}

func fill(t *rapid.T, v reflect.Value, depth int) {
	switch v.Kind() { //nolint:exhaustive // a report has no others
	case reflect.String:
		v.SetString(rapid.SampledFrom(words).Draw(t, "text"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Int:
		v.SetInt(int64(rapid.SampledFrom([]int{0, 0, 1, 2, 7, 9000, 1 << 40, -1, math.MinInt, math.MaxInt}).Draw(t, "int")))
	case reflect.Uint64, reflect.Uint32:
		v.SetUint(rapid.SampledFrom([]uint64{0, 1, 512, 4096, 50 * mib, 3 * gib}).Draw(t, "size"))
		if v.Kind() == reflect.Uint64 && rapid.IntRange(0, 5).Draw(t, "large") == 0 {
			v.SetUint(rapid.SampledFrom([]uint64{80 * gib, math.MaxUint64}).Draw(t, "size"))
		}
	case reflect.Float64:
		v.SetFloat(rapid.SampledFrom([]float64{0, 0.3, 1, 5e10, -1, math.Inf(1), math.NaN(), math.MaxFloat64}).Draw(t, "number"))
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "there") {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem(), depth)
		}
	case reflect.Slice:
		n := rapid.IntRange(0, 2).Draw(t, "items")
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(t, v.Index(i), depth+1)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(int64(rapid.Int32().Draw(t, "time")), 0).UTC()))
			return
		}
		for i := range v.NumField() {
			fill(t, v.Field(i), depth)
		}
	}
}

// anyHost draws a host with some profiles of each kind.
func anyHost(t *rapid.T) HostState {
	h := HostState{MemoryBytes: rapid.SampledFrom([]uint64{0, 512 * gib}).Draw(t, "memory"), DiskBytes: rapid.SampledFrom([]uint64{0, 2000 * gib}).Draw(t, "disk")}
	for i := range rapid.IntRange(0, 2).Draw(t, "gpus") {
		g := HostGPU{GPU: gpu.GPU{
			ID: gpu.ID("0000:1" + string(rune('0'+i)) + ":00.0"), Vendor: rapid.SampledFrom([]string{"NVIDIA", "AMD", ""}).Draw(t, "vendor"),
			Model:       rapid.SampledFrom([]string{"NVIDIA H100 80GB HBM3", "NVIDIA A30", ""}).Draw(t, "model"),
			MemoryBytes: rapid.SampledFrom([]uint64{0, 24 * gib, 80 * gib}).Draw(t, "memory"), Managed: rapid.Bool().Draw(t, "managed"),
			Driver: gpu.Driver{Version: rapid.SampledFrom([]string{"", "580.65.05", "999.1"}).Draw(t, "driver")},
		}}
		for range rapid.IntRange(0, 5).Draw(t, "profiles") {
			g.Profiles = append(g.Profiles, gpu.Profile{
				Name: rapid.SampledFrom([]string{"card", "1g.10gb", "A-1C", "A-2Q", "A-4B"}).Draw(t, "name"),
				Kind: rapid.SampledFrom([]gpu.Kind{gpu.KindCard, gpu.KindMIG, gpu.KindMdev, gpu.KindVGPU, gpu.KindVF, "new"}).Draw(t, "kind"),
				On:   rapid.SampledFrom([]string{"", "1g.10gb"}).Draw(t, "on"), GPU: g.GPU.ID,
				MemoryBytes:  rapid.SampledFrom([]uint64{0, 5 * gib, 40 * gib, math.MaxUint64}).Draw(t, "memory"),
				MaxInstances: rapid.IntRange(-1, 4).Draw(t, "most"), Available: rapid.IntRange(-1, 3).Draw(t, "available"),
				NotCreatable: rapid.SampledFrom([]string{"", "", "MIG is off"}).Draw(t, "not creatable"),
				Attributes: map[string]string{
					"series": rapid.SampledFrom([]string{"", "C", "Q", "B"}).Draw(t, "series"), "compute_slices": rapid.SampledFrom([]string{"", "1", "7", "x"}).Draw(t, "slices"),
					"max_per_vm": rapid.SampledFrom([]string{"", "1", "4"}).Draw(t, "per vm"),
				},
			})
		}
		h.GPUs = append(h.GPUs, g)
	}
	return h
}

func anyWish(t *rapid.T) Wish {
	w := Wish{
		Prefer: rapid.SampledFrom([]string{"", "card", "time-sliced", "x"}).Draw(t, "prefer"), GuestDriver: rapid.SampledFrom([]string{"", "550.1", "x"}).Draw(t, "guest"),
		ChangeRate: rapid.SampledFrom([]uint64{0, 1e6, 1e12}).Draw(t, "change"), DowntimeSeconds: rapid.SampledFrom([]float64{0, 60, 1e6}).Draw(t, "budget"),
	}
	if rapid.Bool().Draw(t, "waived") {
		w.Waivers = []Waiver{{ID: noPartition, Reason: "we know", By: "ops"}}
	}
	if rapid.Bool().Draw(t, "asked") {
		w.Partitions = []WishPartition{{
			Source:  rapid.SampledFrom([]string{"", "0000:41:00.0", marker}).Draw(t, "source"),
			Profile: rapid.SampledFrom([]string{"", "A-1C", "card"}).Draw(t, "profile"), MemoryBytes: rapid.SampledFrom([]uint64{0, gib}).Draw(t, "memory"),
		}}
	}
	return w
}

// Whatever a report says, there is an answer; texts of the source are only in evidence and
// where they name things; a rejected candidate has a reason; a choice fits, or somebody has
// waived that.
func TestAnyReport(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := NewPlan(anyReport(t), anyWish(t), anyHost(t), Policy{AcceptUnknownCompute: rapid.Bool().Draw(t, "accept")}, BuiltInDrivers())
		known := map[string]Rule{}
		for _, r := range Catalogue() {
			known[r.ID] = r
		}
		for _, c := range slices.Concat(p.Assessment.Concerns, p.Verdict.Blockers, p.Verdict.Warnings) {
			r, ok := known[c.ID]
			if !ok || c.Title != r.Title || c.Why != r.Why || c.Remedy != r.Remedy || c.Severity.weight() > r.Severity.weight() {
				t.Fatalf("%+v is not as the catalogue has it", c)
			}
			if len(c.Evidence) == 0 || len(c.Evidence) > maxEvidence+1 {
				t.Fatalf("%s has %d lines of evidence", c.ID, len(c.Evidence))
			}
			for _, line := range c.Evidence {
				if len(line) > 1000 || bare(line) {
					t.Fatalf("%s: %q", c.ID, line)
				}
			}
		}
		for _, f := range p.Fittings {
			checkFitting(t, f)
		}
		for _, c := range p.Changes {
			if c.ID == "" || c.What == "" || c.Why == "" || c.Undo == "" || c.When == "" || bare(c.What+c.Why+c.Undo) {
				t.Fatalf("change %+v", c)
			}
			if !c.Automatic && c.When == Offline {
				t.Fatalf("a person is told of a moment that only gpuvirt has: %+v", c)
			}
		}
		if (p.Verdict.State == Blocked) != (len(p.Verdict.Blockers) > 0) || p.Verdict.Text == "" || strings.Contains(p.Verdict.Text, marker) {
			t.Fatalf("verdict %+v", p.Verdict)
		}
		if _, err := json.Marshal(p); err != nil {
			t.Fatal(err)
		}
	})
}

// bare tells whether a text of the source stands somewhere without quotation marks.
func bare(line string) bool {
	return strings.Contains(strings.ReplaceAll(line, `"`+marker+`"`, ""), marker)
}

func checkFitting(t *rapid.T, f Fitting) {
	fits := false
	for _, l := range f.Need.Explanation {
		if bare(l.Text) {
			t.Fatalf("explanation %q", l.Text)
		}
	}
	for i, c := range f.Candidates {
		if len(c.Reasons) == 0 || slices.Contains(c.Reasons, "") {
			t.Fatalf("no reason: %+v", c)
		}
		if bare(strings.Join(slices.Concat(c.Reasons, c.Cautions), " ")) {
			t.Fatalf("reasons %q, cautions %q", c.Reasons, c.Cautions)
		}
		if c.Fits && i > 0 && !f.Candidates[i-1].Fits {
			t.Fatal("one that fits comes after one that does not")
		}
		if c.Fits && c.Available <= 0 {
			t.Fatalf("it fits and none is free: %+v", c)
		}
		fits = fits || c.Fits
	}
	switch {
	case f.Choice == nil && fits:
		t.Fatal("one fits and none is chosen")
	case f.Choice == nil:
		return
	case f.Choice.Waived == fits, f.Choice.Fits != fits, f.Choice.Available <= 0, f.Choice.Reasoning == "":
		t.Fatalf("choice %+v", f.Choice)
	}
	if !slices.ContainsFunc(f.Candidates, func(c Candidate) bool {
		return c.GPU == f.Choice.GPU && c.Profile == f.Choice.Profile && c.Fits == fits
	}) {
		t.Fatal("the choice is no candidate")
	}
}

// The order of lists does not matter, and the report stays as it is.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, h, w := anyReport(t), anyHost(t), anyWish(t)
		before, err := json.Marshal(dropNumbers(r))
		if err != nil {
			t.Fatal(err)
		}
		NewPlan(r, w, h, Policy{}, BuiltInDrivers())
		want := NewPlan(dropNumbers(r), w, h, Policy{}, BuiltInDrivers())
		turned := dropNumbers(r) // as a copy
		turn(reflect.ValueOf(&turned).Elem())
		for i := range h.GPUs {
			slices.Reverse(h.GPUs[i].Profiles)
		}
		slices.Reverse(h.GPUs)
		got := NewPlan(turned, w, h, Policy{}, BuiltInDrivers())
		if diff := cmp.Diff(text(t, want), text(t, got)); diff != "" {
			t.Fatalf("-as it was +turned\n%s", diff)
		}
		if after, _ := json.Marshal(dropNumbers(r)); string(after) != string(before) {
			t.Fatal("the report was changed")
		}
	})
}

// dropNumbers copies a report, with a number in place of each that JSON does not have.
func dropNumbers(r report.Report) report.Report {
	var walk func(v reflect.Value) reflect.Value
	walk = func(v reflect.Value) reflect.Value {
		out := reflect.New(v.Type()).Elem()
		out.Set(v)
		switch v.Kind() { //nolint:exhaustive // the others hold no number
		case reflect.Float64:
			if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
				out.SetFloat(1)
			}
		case reflect.Pointer:
			if !v.IsNil() {
				out.Set(reflect.New(v.Type().Elem()))
				out.Elem().Set(walk(v.Elem()))
			}
		case reflect.Slice:
			out.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
			for i := range v.Len() {
				out.Index(i).Set(walk(v.Index(i)))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					out.Field(i).Set(walk(v.Field(i)))
				}
			}
		}
		return out
	}
	return walk(reflect.ValueOf(r)).Interface().(report.Report) //nolint:errcheck // it is one
}

// turn reverses all lists whose order says nothing.
func turn(v reflect.Value) {
	switch v.Kind() { //nolint:exhaustive // the others hold no list
	case reflect.Pointer:
		if !v.IsNil() {
			turn(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && !slices.Contains(ordered, f.Name) {
				turn(v.Field(i))
			}
		}
	case reflect.Slice:
		swap := reflect.Swapper(v.Interface())
		for i := range v.Len() / 2 {
			swap(i, v.Len()-1-i)
		}
		for i := range v.Len() {
			turn(v.Index(i))
		}
	}
}

func text(t *rapid.T, v any) string {
	out, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// More measured memory never makes a smaller need, nor does more activity.
func TestMoreIsNeverLess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := sample()
		r.Processes[0].Preallocates = rapid.Bool().Draw(t, "preallocates")
		r.GPUs[0].MemoryBytes = rapid.SampledFrom([]uint64{0, 20 * gib, 80 * gib}).Draw(t, "memory of the GPU")
		r.Processes[0].MemoryBytes = rapid.Uint64Range(0, 100*gib).Draw(t, "now")
		switch rapid.IntRange(0, 2).Draw(t, "watched") {
		case 0:
			r.Usage = nil
		case 1:
			r.Usage.GPUs = nil
		}
		before := Assess(r, Policy{}).Needs[0]
		more := rapid.Uint64Range(0, 100*gib).Draw(t, "more")
		switch {
		case r.Usage == nil:
			r.Processes[0].MemoryBytes += more
		case r.Usage.GPUs == nil:
			r.Usage.Processes[0].Memory.Add(float64(more))
		default:
			r.Usage.GPUs[0].Memory.Add(float64(more))
			for range rapid.IntRange(0, 50).Draw(t, "busy") {
				r.Usage.GPUs[0].SM.Add(1)
			}
		}
		after := Assess(r, Policy{}).Needs[0]
		unknown := before.MemoryBasis == BasisNone // nothing was measured, so all of it was wanted
		if after.MemoryBytes < before.MemoryBytes && !unknown || after.SMs < before.SMs {
			t.Fatalf("was %+v\nis %+v", before, after)
		}
	})
}
