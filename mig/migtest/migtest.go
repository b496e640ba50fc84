// Package migtest holds what NVIDIA's library and whatever stands in for it have in
// common, as a test.
package migtest

import (
	"cmp"
	"errors"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuvirt/gpu"
	"gpuvirt/mig"
	"gpuvirt/mig/cards"
)

// Options say what the contract is tried on.
type Options struct {
	// GPU is changed. At the beginning its MIG mode is off and nobody uses it.
	GPU   gpu.Address
	Model *cards.Model
	// Resets tells that a change of the mode resets the GPU.
	Resets bool
	// Use makes a process use a GPU instance, -1 for the GPU beside its instances;
	// Idle ends it.
	Use  func(pid, instance int) error
	Idle func() error
	// Waits makes the next change of the mode wait for a reset; Reset resets the GPU.
	Waits func() error
	Reset func() error
}

// Library tries all of the contract, and leaves MIG off.
func Library(t *testing.T, lib mig.Library, o Options) {
	t.Helper()
	ReadOnly(t, lib)
	x := &trial{T: t, lib: lib, o: o}
	for _, c := range []struct {
		name string
		test func(*trial)
	}{
		{"profiles are those of the model", (*trial).profiles},
		{"nothing is made where MIG is off", (*trial).off},
		{"mode changes when idle and waits otherwise_T36", (*trial).mode},
		{"a mode that waits comes with a reset_T36", (*trial).waits},
		{"a handle is void after a reset_T33", (*trial).handles},
		{"made is read back", (*trial).made},
		{"a GPU instance goes after its compute instances and its users_T32", (*trial).order},
		{"compute instances share one GPU instance", (*trial).compute},
		{"what fits is what the planner says_T31", (*trial).fits},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := *x
			x.T = t
			c.test(&x)
			x.clear()
		})
	}
}

// ReadOnly tries the part that changes nothing, on every GPU.
func ReadOnly(t *testing.T, lib mig.Library) {
	t.Helper()
	s, err := lib.Open()
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}()
	if v, err := s.DriverVersion(); err != nil || v == "" {
		t.Errorf("DriverVersion is %q, %v", v, err)
	}
	all, err := s.Addresses()
	if err != nil || len(all) == 0 {
		t.Fatalf("Addresses are %v, %v", all, err)
	}
	for _, a := range all {
		d, err := s.Device(a)
		if err != nil {
			t.Fatalf("Device(%s): %v", a, err)
		}
		if f, err := d.Facts(); err != nil || f.Name == "" || f.UUID == "" || f.MemoryBytes == 0 {
			t.Errorf("%s: Facts are %+v, %v", a, f, err)
		}
		if _, err := d.Processes(); err != nil {
			t.Errorf("%s: Processes: %v", a, err)
		}
		m, err := d.Mode()
		if err != nil {
			t.Errorf("%s: Mode: %v", a, err)
		}
		monitored(t, a, d)
		if m.Capable {
			capable(t, a, d, m)
		} else if in, err := d.Instances(); len(in) > 0 || err != nil && !errors.Is(err, mig.ErrNotSupported) {
			t.Errorf("%s: Instances of a gpu without MIG are %v, %v", a, in, err)
		}
	}
	if _, err := s.Device(gpu.Address{Domain: 0xfffe, Bus: 0xff, Slot: 0x1f}); !errors.Is(err, mig.ErrNotFound) {
		t.Errorf("Device of no gpu: %v", err)
	}
}

// monitored tries what is only shown. What is absent may be so: most hosts have no VMs.
func monitored(t *testing.T, a gpu.Address, d mig.Device) {
	t.Helper()
	if m, err := d.Modes(); err != nil {
		t.Errorf("%s: Modes are %+v, %v", a, m, err)
	}
	all, err := d.VGPUs()
	if err != nil && !errors.Is(err, mig.ErrFunctionNotFound) {
		t.Errorf("%s: VGPUs: %v", a, err)
	}
	for _, v := range all {
		if v.ID == 0 || v.Type == 0 {
			t.Errorf("%s: a vGPU that is none: %+v", a, v)
		}
	}
	samples, err := d.VGPUSamples()
	if err != nil {
		t.Errorf("%s: VGPUSamples: %v", a, err)
	}
	for _, s := range samples {
		if max(s.SM, s.Memory, s.Encoder, s.Decoder) > 100 || s.VGPU == 0 {
			t.Errorf("%s: a sample %+v", a, s)
		}
	}
}

func capable(t *testing.T, a gpu.Address, d mig.Device, m gpu.MIGMode) {
	t.Helper()
	profiles, err := d.Profiles()
	if err != nil || len(profiles) == 0 && m.Current { // while it is off a driver may keep them to itself
		t.Errorf("%s: Profiles are %+v, %v", a, profiles, err)
	}
	names, ids := map[string]bool{}, map[int]mig.DeviceProfile{}
	for _, p := range profiles {
		if names[p.Name] || p.Size < 1 || len(p.Starts) == 0 || p.Max < 1 || p.Engines.Compute < 1 || p.MemoryMiB == 0 {
			t.Errorf("%s: profile %+v is there twice or lacks something", a, p)
		}
		if !m.Current && p.Available != 0 {
			t.Errorf("%s: MIG is off, and %d of %s fit", a, p.Available, p.Name)
		}
		names[p.Name], ids[p.ID] = true, p
	}
	instances, err := d.Instances()
	if err != nil || !m.Current && len(instances) > 0 {
		t.Errorf("%s: Instances are %+v, %v", a, instances, err)
	}
	for _, in := range instances {
		p, ok := ids[in.ProfileID]
		if !ok || in.Size != p.Size || !slices.Contains(p.Starts, in.Start) {
			t.Errorf("%s: instance %+v is none of a known profile %+v", a, in, p)
		}
		for _, c := range in.Compute {
			if c.UUID == "" || c.Size < 1 || c.Start+c.Size > p.Engines.Compute {
				t.Errorf("%s: compute instance %+v of %+v lacks its UUID or its place", a, c, in)
			}
		}
	}
}

// A trial is one part of the contract.
type trial struct {
	*testing.T
	lib mig.Library
	o   Options
}

// tester is what a test and rapid's have in common.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// on runs f on the GPU, in a session of its own.
func (t *trial) on(tb tester, f func(mig.Device)) {
	tb.Helper()
	s, err := t.lib.Open()
	if err != nil {
		tb.Fatalf("Open: %v", err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			tb.Fatalf("Close: %v", err)
		}
	}()
	d, err := s.Device(t.o.GPU)
	if err != nil {
		tb.Fatalf("Device: %v", err)
	}
	f(d)
}

func (t *trial) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (t *trial) want(what string, err error, ret mig.Return) {
	t.Helper()
	if !errors.Is(err, ret) {
		t.Errorf("%s: %v, want %v", what, err, ret)
	}
}

func (t *trial) wantMode(current, pending bool) {
	t.Helper()
	t.on(t, func(d mig.Device) {
		m, err := d.Mode()
		if want := (gpu.MIGMode{Capable: true, Current: current, Pending: pending}); m != want || err != nil {
			t.Errorf("the mode is %+v, %v; want %+v", m, err, want)
		}
	})
}

// set changes the mode and returns why it is not in force.
func (t *trial) set(on bool) (activation error) {
	t.Helper()
	t.on(t, func(d mig.Device) {
		a, err := d.SetMode(on)
		t.must(err)
		activation = a
	})
	return activation
}

// empty removes all instances.
func (t *trial) empty(tb tester) {
	tb.Helper()
	t.on(tb, func(d mig.Device) {
		all, err := d.Instances()
		for _, in := range all {
			for _, c := range in.Compute {
				err = cmp.Or(err, d.DestroyCompute(in.ID, c.ID))
			}
			err = cmp.Or(err, d.Destroy(in.ID))
		}
		if err != nil {
			tb.Fatalf("%v", err)
		}
	})
}

func (t *trial) clear() {
	t.Helper()
	t.must(t.o.Idle())
	t.empty(t)
	t.must(t.set(false))
}

// first is a profile of which several fit.
func (t *trial) first() mig.Profile {
	for _, p := range t.o.Model.Profiles {
		if p.Max > 1 {
			return p
		}
	}
	return t.o.Model.Profiles[0]
}

func (t *trial) largest() mig.Profile {
	return slices.MaxFunc(t.o.Model.Profiles, func(a, b mig.Profile) int {
		return cmp.Or(cmp.Compare(a.Engines.Compute, b.Engines.Compute), cmp.Compare(b.ID, a.ID))
	})
}

func (t *trial) profiles() {
	t.on(t, func(d mig.Device) {
		got, err := d.Profiles()
		t.must(err)
		for _, p := range got {
			if diff := gocmp.Diff(t.o.Model.Profile(p.Name), p.Profile); diff != "" || cards.Index(p.Profile) != p.Index {
				t.Errorf("profile %+v (-model +library):\n%s", p, diff)
			}
		}
		if len(got) != len(t.o.Model.Profiles) {
			t.Errorf("%d profiles, the model has %d", len(got), len(t.o.Model.Profiles))
		}
	})
}

func (t *trial) off() {
	t.wantMode(false, false)
	t.on(t, func(d mig.Device) {
		p := t.first()
		_, err := d.Create(cards.Index(p), p.Starts[0])
		t.want("Create with MIG off", err, mig.ErrNotSupported)
	})
}

func (t *trial) mode() {
	t.must(t.o.Use(4711, -1))
	t.want("SetMode of a gpu in use", t.set(true), mig.ErrInUse)
	t.wantMode(false, true)
	t.must(t.o.Idle())
	t.must(t.set(true))
	t.wantMode(true, true)
	t.must(t.set(true))
	t.on(t, func(d mig.Device) {
		p := t.first()
		_, err := d.Create(cards.Index(p), p.Starts[0])
		t.must(err)
	})
	t.want("SetMode off with an instance", t.set(false), mig.ErrInUse)
	t.wantMode(true, false)
	t.must(t.set(true))
	t.wantMode(true, true)
}

func (t *trial) waits() {
	t.must(t.o.Waits())
	t.want("SetMode that waits for a reset", t.set(true), mig.ErrResetRequired)
	t.wantMode(false, true)
	t.must(t.o.Reset())
	t.wantMode(true, true)
	t.must(t.set(false))
	t.must(t.o.Waits())
	t.want("SetMode that waits for a reset", t.set(true), mig.ErrResetRequired)
	t.must(t.set(false))
	t.wantMode(false, false)
}

func (t *trial) handles() {
	t.on(t, func(d mig.Device) {
		f, err := d.Facts()
		t.must(err)
		if f.ModeResets != t.o.Resets {
			t.Errorf("that its mode resets it is told as %v", f.ModeResets)
		}
		_, err = d.SetMode(true)
		t.must(err)
		_, err = d.Profiles()
		if t.o.Resets {
			t.want("a handle from before the reset", err, mig.ErrInvalidArgument)
		} else if err != nil {
			t.Errorf("there was no reset, and the handle is void: %v", err)
		}
	})
}

func (t *trial) made() {
	t.must(t.set(true))
	for _, p := range t.o.Model.Profiles {
		for _, start := range p.Starts {
			t.on(t, func(d mig.Device) {
				id, err := d.Create(cards.Index(p), start)
				t.must(err)
				got, err := d.Instances()
				t.must(err)
				want := []mig.DeviceInstance{{ID: id, ProfileID: p.ID, Start: start, Size: p.Size}}
				if diff := gocmp.Diff(want, got); diff != "" {
					t.Errorf("%s at %d is read back differently (-made +read):\n%s", p.Name, start, diff)
				}
				t.must(d.Destroy(id))
				t.want("Destroy of what is gone", d.Destroy(id), mig.ErrNotFound)
			})
		}
		t.on(t, func(d mig.Device) {
			_, err := d.Create(cards.Index(p), t.o.Model.Slices)
			t.want("Create off the card", err, mig.ErrInvalidArgument)
		})
	}
}

func (t *trial) order() {
	t.must(t.set(true))
	p := t.first()
	var gi, ci int
	t.on(t, func(d mig.Device) {
		var err error
		gi, err = d.Create(cards.Index(p), p.Starts[0])
		t.must(err)
		whole := t.whole(d, gi, p)
		ci, err = d.CreateCompute(gi, whole.Index, 0)
		t.must(err)
		t.want("Destroy with a compute instance", d.Destroy(gi), mig.ErrInUse)
	})
	t.must(t.o.Use(4711, gi))
	t.on(t, func(d mig.Device) {
		got, err := d.Processes()
		if diff := gocmp.Diff([]mig.Process{{PID: 4711, Instance: gi}}, got); err != nil || diff != "" {
			t.Errorf("Processes: %v\n%s", err, diff)
		}
		t.want("DestroyCompute in use", d.DestroyCompute(gi, ci), mig.ErrInUse)
		t.want("Destroy in use", d.Destroy(gi), mig.ErrInUse)
	})
	t.must(t.o.Idle())
	t.on(t, func(d mig.Device) {
		t.must(d.DestroyCompute(gi, ci))
		t.want("DestroyCompute of what is gone", d.DestroyCompute(gi, ci), mig.ErrNotFound)
		t.must(d.Destroy(gi))
	})
}

// whole is the compute profile that fills a GPU instance.
func (t *trial) whole(d mig.Device, gi int, p mig.Profile) mig.ComputeProfile {
	t.Helper()
	all, err := d.ComputeProfiles(gi)
	t.must(err)
	i := slices.IndexFunc(all, func(c mig.ComputeProfile) bool { return c.Slices == p.Engines.Compute })
	if i < 0 || all[i].Name != p.Name || all[i].Max != 1 || !slices.Equal(all[i].Starts, []int{0}) {
		t.Fatalf("no compute profile fills %s: %+v", p.Name, all)
	}
	return all[i]
}

func (t *trial) compute() {
	t.must(t.set(true))
	p := t.largest()
	t.on(t, func(d mig.Device) {
		gi, err := d.Create(cards.Index(p), p.Starts[0])
		t.must(err)
		whole := t.whole(d, gi, p)
		all, err := d.ComputeProfiles(gi)
		t.must(err)
		one := all[slices.IndexFunc(all, func(c mig.ComputeProfile) bool { return c.Slices == 1 })]
		if one.Name != "1c."+p.Name || one.Max != p.Engines.Compute {
			t.Errorf("the smallest compute profile of %s is %+v", p.Name, one)
		}
		seen := map[string]bool{}
		for i, start := range one.Starts {
			id, err := d.CreateCompute(gi, one.Index, start)
			t.must(err)
			in, err := d.Instances()
			t.must(err)
			at := slices.IndexFunc(in[0].Compute, func(c mig.ComputeInstance) bool { return c.ID == id })
			if len(in[0].Compute) != i+1 || at < 0 {
				t.Fatalf("%d compute instances were made: %+v", i+1, in)
			}
			c := in[0].Compute[at]
			if c.Start != start || c.Size != 1 || c.ProfileID != one.ID || c.UUID == "" || seen[c.UUID] {
				t.Errorf("made at %d: %+v", start, c)
			}
			seen[c.UUID] = true
		}
		_, err = d.CreateCompute(gi, whole.Index, 0)
		t.want("CreateCompute over others", err, mig.ErrInsufficientResources)
		_, err = d.CreateCompute(gi, one.Index, p.Engines.Compute)
		t.want("CreateCompute off the instance", err, mig.ErrInvalidArgument)
		_, err = d.CreateCompute(gi+1, one.Index, 0)
		t.want("CreateCompute in no instance", err, mig.ErrNotFound)
	})
}

// Random creations and removals: the library accepts what the planner finds a place
// for, and counts as many as that could go on to make.
func (t *trial) fits() {
	t.must(t.set(true))
	card := &t.o.Model.Card
	rapid.Check(t.T, func(r *rapid.T) {
		t.empty(r)
		t.on(r, func(d mig.Device) {
			for range rapid.IntRange(1, 10).Draw(r, "steps") {
				have := instances(r, d, t.o.Model)
				if len(have) > 0 && rapid.IntRange(0, 3).Draw(r, "remove") == 0 {
					if err := d.Destroy(rapid.SampledFrom(have).Draw(r, "which").ID); err != nil {
						r.Fatalf("%v", err)
					}
					continue
				}
				p := rapid.SampledFrom(card.Profiles).Draw(r, "profile")
				start := rapid.SampledFrom(p.Starts).Draw(r, "start")
				_, planned := card.Place(have, p.Name, start)
				_, err := d.Create(cards.Index(p), start)
				if (planned == nil) != (err == nil) || err != nil && !errors.Is(err, mig.ErrInsufficientResources) {
					r.Fatalf("%s at %d beside %+v: the planner says %v, the library %v", p.Name, start, have, planned, err)
				}
				t.available(r, d)
			}
		})
	})
	t.empty(t)
}

func instances(r *rapid.T, d mig.Device, model *cards.Model) (out []mig.Instance) {
	all, err := d.Instances()
	if err != nil {
		r.Fatalf("%v", err)
	}
	for _, in := range all {
		i := slices.IndexFunc(model.Profiles, func(p mig.Profile) bool { return p.ID == in.ProfileID })
		out = append(out, mig.Instance{ID: in.ID, Profile: model.Profiles[i].Name, Start: in.Start, Size: in.Size})
	}
	return out
}

func (t *trial) available(r *rapid.T, d mig.Device) {
	profiles, err := d.Profiles()
	if err != nil {
		r.Fatalf("%v", err)
	}
	there := instances(r, d, t.o.Model)
	for _, p := range profiles {
		have, n := slices.Clone(there), 0
		for ; ; n++ {
			at, err := t.o.Model.Place(have, p.Name, mig.Anywhere)
			if err != nil {
				break
			}
			have = append(have, mig.Instance{ID: 100 + n, Profile: p.Name, Start: at.Start, Size: p.Size})
		}
		if n != p.Available {
			r.Fatalf("%d more of %s fit by the planner, %d by the library, beside %+v", n, p.Name, p.Available, there)
		}
	}
}
