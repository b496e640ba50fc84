package mig_test

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/mig/cards"
)

// layout reads "3g.20gb@4 2g.10gb 1g.5gb:1c+1c": profile, place, compute.
func layout(text string) gpu.Layout {
	l := gpu.Layout{Enabled: true}
	for _, word := range strings.Fields(text) {
		word, compute, _ := strings.Cut(word, ":")
		profile, place, found := strings.Cut(word, "@")
		in := gpu.LayoutInstance{Profile: profile, Place: gpu.AnyPlace}
		if found {
			in.Place = int(place[0] - '0')
		}
		for _, c := range strings.FieldsFunc(compute, func(r rune) bool { return r == ',' }) {
			in.Compute = append(in.Compute, c+"."+profile)
		}
		l.Instances = append(l.Instances, in)
	}
	return l
}

// apply does what a plan says.
func apply(b *mig.Backend, p gpu.LayoutPlan, must func(error)) {
	for _, q := range p.Remove {
		must(b.Remove(context.Background(), q))
	}
	for _, q := range p.Create {
		_, err := b.Make(context.Background(), q)
		must(err)
	}
}

func places(ps []gpu.Partition) string {
	var out []string
	for _, p := range ps {
		text := p.Profile + "@" + p.Slot
		if len(p.Compute) > 1 {
			text += fmt.Sprintf(":%d", len(p.Compute))
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func TestPlanLayout(t *testing.T) {
	for name, c := range map[string]struct {
		have, want           string
		busy                 int // instance
		pinned               string
		keep, remove, create string
		code                 gpu.Code
		blocker              string
	}{
		"an empty card":                     {want: "3g.20gb 2g.10gb 1g.5gb 1g.5gb", create: "1g.5gb@0 1g.5gb@1 2g.10gb@2 3g.20gb@4"},
		"nothing to do":                     {have: "3g.20gb@4 1g.5gb@0", want: "1g.5gb 3g.20gb", keep: "1g.5gb@0 3g.20gb@4"},
		"one changes beside one in use":     {have: "3g.20gb@4 2g.10gb@0", want: "3g.20gb 1g.5gb 1g.5gb", busy: 2, keep: "3g.20gb@4", remove: "2g.10gb@0", create: "1g.5gb@2 1g.5gb@3"},
		"one in use is in the way":          {have: "3g.20gb@0 1g.5gb@4", want: "4g.20gb 1g.5gb", busy: 1, code: gpu.CodeGPUBusy, blocker: "0000:41:00.0/mig/0"},
		"one pinned is in the way":          {have: "3g.20gb@0 1g.5gb@4", want: "4g.20gb 1g.5gb", pinned: "0000:41:00.0/mig/0", code: gpu.CodeGPUBusy, blocker: "0000:41:00.0/mig/0"},
		"more than the card has":            {want: "4g.20gb 4g.20gb", code: gpu.CodeNoCapacity},
		"no such profile":                   {want: "4g.40gb", code: gpu.CodeProfileUnknown},
		"no such place":                     {want: "4g.20gb@4", code: gpu.CodeInvalid},
		"compute instances are made":        {want: "3g.20gb:1c,2c", create: "3g.20gb@4:2"},
		"other compute instances":           {have: "3g.20gb@4 1g.5gb@0", want: "1g.5gb 3g.20gb:1c,1c,1c", keep: "1g.5gb@0", remove: "3g.20gb@4", create: "3g.20gb@4:3"},
		"other compute instances, in use":   {have: "3g.20gb@4", want: "3g.20gb:1c,1c,1c", busy: 1, code: gpu.CodeGPUBusy, blocker: "0000:41:00.0/mig/4"},
		"like instances are told by theirs": {have: "3g.20gb@0:1c,2c 3g.20gb@4", want: "3g.20gb 3g.20gb:2c,1c", keep: "3g.20gb@0:2 3g.20gb@4"},
		"all is to go, and one is in use":   {have: "3g.20gb@0 3g.20gb@4", want: "", busy: 2, code: gpu.CodeGPUBusy, blocker: "0000:41:00.0/mig/4"},
		"all goes":                          {have: "3g.20gb@0 3g.20gb@4", want: "", remove: "3g.20gb@0 3g.20gb@4"},
	} {
		t.Run(name, func(t *testing.T) {
			h, b := two(t)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			first, err := b.PlanLayout(t.Context(), id, layout(c.have), nil)
			must(err)
			apply(b, first, must)
			if c.busy > 0 {
				must(h.Compute(string(id), mig.Process{PID: 4711, Instance: c.busy}))
			}
			before := partitions(t, b)
			p, err := b.PlanLayout(t.Context(), id, layout(c.want), map[string]string{c.pinned: "gpuvirt did not make it"})
			if c.code != "" {
				wantCode(t, err, c.code)
				if e, ok := errors.AsType[*gpu.Error](err); c.blocker != "" && (!ok || len(e.Blockers) != 1 || e.Blockers[0].ID != c.blocker || e.Blockers[0].Note == "") {
					t.Errorf("%+v", err)
				}
				return
			}
			must(err)
			if k, r, m := places(p.Keep), places(p.Remove), places(p.Create); k != c.keep || r != c.remove || m != c.create || p.Mode != nil {
				t.Errorf("keeps %q, removes %q, creates %q, mode %v", k, r, m, p.Mode)
			}
			apply(b, p, must)
			after := partitions(t, b)
			for _, k := range p.Keep {
				if i := slices.IndexFunc(before, func(q gpu.Partition) bool { return cmp.Equal(q, k) }); i < 0 || !slices.ContainsFunc(after, func(q gpu.Partition) bool { return cmp.Equal(q, k) }) {
					t.Errorf("%+v was to be kept: before %+v, after %+v", k, before, after)
				}
			}
			again, err := b.PlanLayout(t.Context(), id, layout(c.want), nil)
			must(err)
			if len(again.Remove)+len(again.Create) > 0 {
				t.Errorf("the layout is there, and the plan for it is %+v", again)
			}
		})
	}
}

// Random layouts on a card where some instances are in use: what the plan promises is
// what applying it gives, kept ones keep their driver's id and their UUIDs, and nothing
// in use is touched.
func TestLayoutsOneAfterAnother_T30(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		m := rapid.SampledFrom(cards.Models).Draw(r, "model")
		c := sim.A100(string(id), 0)
		c.MIG = &sim.MIG{Model: m.Name}
		h := simulated(t, c)
		b := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{})
		must := func(err error) {
			if err != nil {
				r.Fatalf("%v", err)
			}
		}
		must(b.SetMode(t.Context(), id, true))
		for range rapid.IntRange(2, 5).Draw(r, "layouts") {
			var l gpu.Layout
			l.Enabled = true
			for range rapid.IntRange(0, 5).Draw(r, "instances") {
				p := rapid.SampledFrom(m.Profiles).Draw(r, "profile")
				w := gpu.LayoutInstance{Profile: p.Name, Place: gpu.AnyPlace}
				if p.Engines.Compute > 1 && rapid.Bool().Draw(r, "compute") {
					w.Compute = slices.Repeat([]string{"1c." + p.Name}, p.Engines.Compute)
				}
				l.Instances = append(l.Instances, w)
			}
			before := partitions(t, b)
			p, err := b.PlanLayout(t.Context(), id, l, nil)
			if err != nil {
				if diff := cmp.Diff(before, partitions(t, b)); diff != "" {
					r.Fatalf("planning changed something:\n%s", diff)
				}
				continue
			}
			calls := len(h.NVML.Calls())
			apply(b, p, must)
			after := partitions(t, b)
			if len(after) != len(l.Instances) {
				r.Fatalf("%d instances were asked for: %s", len(l.Instances), places(after))
			}
			for _, k := range p.Keep {
				if !slices.ContainsFunc(after, func(q gpu.Partition) bool { return cmp.Equal(q, k) }) {
					r.Fatalf("%+v was to be kept: %+v", k, after)
				}
			}
			for _, q := range before {
				if len(q.Holders) > 0 && !slices.ContainsFunc(p.Keep, func(k gpu.Partition) bool { return k.ID == q.ID }) {
					r.Fatalf("%+v is in use and not kept", q)
				}
			}
			for _, call := range h.NVML.Calls()[calls:] {
				if call.Err != nil {
					r.Fatalf("%v", call)
				}
			}
			must(h.Idle(string(id)))
			for _, q := range after {
				if rapid.IntRange(0, 2).Draw(r, "use") == 0 {
					must(h.Compute(string(id), mig.Process{PID: 1, Instance: atoi(q.Instance)}))
				}
			}
		}
	})
}

func atoi(s string) (n int) {
	_, _ = fmt.Sscan(s, &n)
	return n
}

// The mode changes where nobody uses the GPU; otherwise nothing has changed, and the
// refusal says who does.
func TestSetMode_T29_T32_T36(t *testing.T) {
	h := simulated(t, sim.A100(string(id), 0), sim.H100(string(other), 1))
	b := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{})
	mode := func(on gpu.ID) gpu.MIGMode {
		g, _, err := b.Look(t.Context(), on)
		if err != nil {
			t.Fatal(err)
		}
		return g.MIG
	}
	if err := h.Compute(string(id), mig.Process{PID: 4711, Instance: -1}); err != nil {
		t.Fatal(err)
	}
	err := b.SetMode(t.Context(), id, true)
	wantCode(t, err, gpu.CodeGPUBusy)
	if e, ok := errors.AsType[*gpu.Error](err); !ok || len(e.Blockers) != 1 || e.Blockers[0].ID != "4711" || !strings.Contains(e.Hint, "nvidia-persistenced") {
		t.Errorf("%+v", err)
	}
	off, on := gpu.MIGMode{Capable: true}, gpu.MIGMode{Capable: true, Current: true, Pending: true}
	if m := mode(id); m != off {
		t.Errorf("%+v", m)
	}
	if err := h.Idle(string(id)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.SetMode(t.Context(), id, true); err != nil {
			t.Fatal(err)
		}
	}
	if m, o := mode(id), mode(other); m != on || o != off {
		t.Errorf("%+v, the other %+v", m, o)
	}
	mustMake(t, b, wish("1g.5gb", "0"))
	wantCode(t, b.SetMode(t.Context(), id, false), gpu.CodeGPUBusy)
	if m := mode(id); m != on {
		t.Errorf("%+v", m)
	}
	wantCode(t, b.SetMode(t.Context(), "mbochs", true), gpu.CodeNotFound)
	for _, c := range h.NVML.Calls() {
		if c.Card != string(id) {
			t.Errorf("the other card was touched: %v", c)
		}
	}
	// The plan turns it on first, or off at the end.
	p, err := b.PlanLayout(t.Context(), other, gpu.Layout{Enabled: true, Instances: []gpu.LayoutInstance{{Profile: "1g.10gb", Place: gpu.AnyPlace}}}, nil)
	if err != nil || p.Mode == nil || !*p.Mode || places(p.Create) != "1g.10gb@6" {
		t.Errorf("%+v, %v", p, err)
	}
	p, err = b.PlanLayout(t.Context(), id, gpu.Layout{}, nil)
	if err != nil || p.Mode == nil || *p.Mode || places(p.Remove) != "1g.5gb@0" {
		t.Errorf("%+v, %v", p, err)
	}
	_, err = b.PlanLayout(t.Context(), id, gpu.Layout{Instances: []gpu.LayoutInstance{{Profile: "1g.5gb"}}}, nil)
	wantCode(t, err, gpu.CodeInvalid)
}

// unresettable is a sysfs that knows no way to reset a device.
type unresettable struct{ pci.Sysfs }

func (u unresettable) Read(name string) (string, error) {
	if path.Base(name) == "reset_method" {
		return "", nil
	}
	return u.Sysfs.Read(name)
}

// What a stored mode waits for is said: a reset of this GPU, or where there is no way
// to reset it, a reboot.
func TestModeWaits_T36(t *testing.T) {
	h := simulated(t, sim.A100(string(id), 0))
	for code, fs := range map[gpu.Code]pci.Sysfs{gpu.CodeNeedsReset: h.Sysfs, gpu.CodeNeedsReboot: unresettable{h.Sysfs}} {
		reason := map[gpu.Code]string{gpu.CodeNeedsReset: "NeedsReset", gpu.CodeNeedsReboot: "NeedsReboot"}[code]
		word := strings.ToLower(strings.TrimPrefix(reason, "Needs"))
		b := mig.NewBackend(h.NVML, fs, mig.Options{})
		h.NVML.Fail(sim.Activation, mig.ErrResetRequired, 1)
		wantCode(t, b.SetMode(t.Context(), id, true), code)
		g, _, err := b.Look(t.Context(), id)
		if err != nil || g.MIG != (gpu.MIGMode{Capable: true, Pending: true, Needs: word}) || len(g.Conditions) != 1 || g.Conditions[0].Reason != reason {
			t.Errorf("%+v, %+v, %v", g.MIG, g.Conditions, err)
		}
		if err := b.SetMode(t.Context(), id, false); err != nil {
			t.Fatal(err)
		}
	}
}

// lying is a library that says of a mode that it is in force and, at most, stores it.
type (
	lying struct {
		mig.Library

		deaf bool
	}
	lyingSession struct {
		mig.Session

		deaf bool
	}
	lyingDevice struct {
		mig.Device

		deaf bool
	}
)

func (l lying) Open() (mig.Session, error) {
	s, err := l.Library.Open()
	return lyingSession{s, l.deaf}, err
}

func (s lyingSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return lyingDevice{d, s.deaf}, err
}

func (d lyingDevice) SetMode(on bool) (activation, err error) {
	if !d.deaf {
		_, err = d.Device.SetMode(on)
	}
	return nil, err
}

// A mode is read back: what the library says of it is not believed.
func TestModeIsReadBack(t *testing.T) {
	h := simulated(t, sim.A100(string(id), 0))
	b := mig.NewBackend(lying{h.NVML, false}, h.Sysfs, mig.Options{})
	h.NVML.Fail(sim.Activation, mig.ErrResetRequired, 1)
	wantCode(t, b.SetMode(t.Context(), id, true), gpu.CodeNeedsReset)
	if err := b.SetMode(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	if err := b.SetMode(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	wantCode(t, mig.NewBackend(lying{h.NVML, true}, h.Sysfs, mig.Options{}).SetMode(t.Context(), id, false), gpu.CodeInternal)
}
