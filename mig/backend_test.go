package mig_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/test/lab/nvml"
)

const (
	id    = gpu.ID("0000:41:00.0")
	other = gpu.ID("0000:42:00.0")
)

// wish is a partition of a profile at a place.
func wish(profile, slot string, compute ...gpu.Compute) gpu.Partition {
	return gpu.Partition{ID: mig.PartitionID(id, slot), GPU: id, Kind: gpu.KindMIG, Profile: profile, Slot: slot, Compute: compute}
}

// two is a host with two A100, both with MIG on.
func two(t *testing.T) (*sim.Host, *mig.Backend) {
	t.Helper()
	h := simulated(t, sim.A100(string(id), 0), sim.A100(string(other), 1), sim.Mbochs())
	for _, a := range []gpu.Address{target, {Bus: 0x42}} {
		on(t, h.NVML, a)
	}
	return h, mig.NewBackend(h.NVML, h.Sysfs, mig.Options{})
}

func on(t *testing.T, lib mig.Library, a gpu.Address) {
	t.Helper()
	s, err := lib.Open()
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Device(a)
	if err != nil {
		t.Fatal(err)
	}
	if activation, err := d.SetMode(true); activation != nil || err != nil {
		t.Fatal(activation, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func mustMake(t *testing.T, b *mig.Backend, want gpu.Partition) gpu.Partition {
	t.Helper()
	made, err := b.Make(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func partitions(t *testing.T, b *mig.Backend) []gpu.Partition {
	t.Helper()
	out, err := b.Partitions(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantCode(t *testing.T, err error, code gpu.Code) {
	t.Helper()
	if err == nil || gpu.CodeOf(err) != code {
		t.Errorf("%v (%s), want %s", err, gpu.CodeOf(err), code)
	}
}

func TestBackendContract(t *testing.T) {
	contract := func(t *testing.T, lib mig.Library, fs *sim.Sysfs) {
		t.Helper()
		b := mig.NewBackend(lib, fs, mig.Options{})
		// A foreign instance keeps 2g from beginning at 4.
		mustMake(t, b, wish("1g.5gb", "5"))
		gputest.Backend(t, b, gputest.Options{
			GPU: id, Profile: "2g.10gb", Other: "1g.10gb", Places: true, Racers: 10,
			Want: func(profile string) gpu.Partition {
				p, err := b.Place(t.Context(), id, profile, nil)
				if err != nil {
					return wish(profile, "4")
				}
				return p
			},
		})
	}
	t.Run("simulated", func(t *testing.T) {
		h, _ := two(t)
		contract(t, h.NVML, h.Sysfs)
	})
	t.Run("look-alike", func(t *testing.T) {
		h, _ := two(t)
		lib, _ := lookAlike(t, nvml.GPU{Address: target, Model: model(t, "A100-PCIE-40GB")})
		on(t, lib, target)
		contract(t, lib, h.Sysfs)
	})
}

func TestLook(t *testing.T) {
	h, b := two(t)
	ids, err := b.IDs(t.Context())
	if err != nil || !slices.Equal(ids, []gpu.ID{id, other}) {
		t.Errorf("%v, %v", ids, err)
	}
	g, profiles, err := b.Look(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	want := gpu.GPU{
		ID: id, Vendor: "NVIDIA", Model: "A100-PCIE-40GB", PCIAddress: string(id), UUID: "GPU-" + string(id), Serial: "132092200041",
		NUMANode: 0, IOMMUGroup: "40", Driver: gpu.Driver{Name: "nvidia", Version: "535.183.04"}, MemoryBytes: 40192 << 20,
		Kinds: []gpu.Kind{gpu.KindMIG}, MIG: gpu.MIGMode{Capable: true, Current: true, Pending: true},
		Identity: gpu.Identity{Model: "10de:20f1", Subsystem: "10de:145f", Serial: "132092200041", UUID: "GPU-" + string(id)},
	}
	if diff := cmp.Diff(want, g); diff != "" {
		t.Error(diff)
	}
	i := slices.IndexFunc(profiles, func(p gpu.Profile) bool { return p.Name == "3g.20gb" })
	if diff := cmp.Diff(gpu.Profile{
		Name: "3g.20gb", Kind: gpu.KindMIG, GPU: id, MemoryBytes: 19968 << 20, MaxInstances: 2, Available: 2, NativeID: "9",
		Attributes: map[string]string{"compute_slices": "3", "memory_slices": "4", "placements": "0,4", "decoders": "2"},
	}, profiles[i]); diff != "" {
		t.Error(diff)
	}
	if n := h.NVML.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}

// A mode that waits for a reset is told, and what cannot be made says why.
func TestPendingMode_T36(t *testing.T) {
	h := simulated(t, sim.A100(string(id), 0))
	b := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{})
	if err := h.Compute(string(id), mig.Process{PID: 1, Instance: -1}); err != nil {
		t.Fatal(err)
	}
	s, err := h.NVML.Open()
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Device(target)
	if err != nil {
		t.Fatal(err)
	}
	if activation, err := d.SetMode(true); !errors.Is(activation, mig.ErrInUse) || err != nil {
		t.Fatal(activation, err)
	}
	g, profiles, err := b.Look(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if len(g.Conditions) != 1 || g.Conditions[0].Reason != "NeedsReset" || !strings.Contains(g.Conditions[0].Message, "is off and will be on") {
		t.Errorf("%+v", g.Conditions)
	}
	for _, p := range profiles {
		if p.NotCreatable == "" {
			t.Errorf("%+v", p)
		}
	}
	_, err = b.Make(t.Context(), wish("1g.5gb", "0"))
	wantCode(t, err, gpu.CodeProfileNotCreatable)
}

// Making takes back what it made when a compute instance fails, and says what of.
func TestMakeRollsBack_T02_T51(t *testing.T) {
	for _, failing := range []int{1, 2, 3} {
		h, b := two(t)
		mustMake(t, b, wish("1g.5gb", "6"))
		before := partitions(t, b)
		for range failing - 1 {
			h.NVML.Fail("CreateComputeInstance", 0, 1)
		}
		h.NVML.Fail("CreateComputeInstance", mig.ErrUnknown, 1)
		c := func(start int) gpu.Compute { return gpu.Compute{Profile: "1c.3g.20gb", Start: start} }
		_, err := b.Make(t.Context(), wish("3g.20gb", "0", c(0), c(1), c(2)))
		if err == nil || !strings.Contains(err.Error(), "1c.3g.20gb") || !strings.Contains(err.Error(), "(3g.20gb)") {
			t.Errorf("%d: %v", failing, err)
		}
		if diff := cmp.Diff(before, partitions(t, b)); diff != "" {
			t.Errorf("%d: something is left behind:\n%s", failing, diff)
		}
		mustMake(t, b, wish("3g.20gb", "0", c(0), c(1), c(2)))
	}
}

// What a crash left of a partition is completed, not doubled.
func TestMakeCompletes(t *testing.T) {
	h, b := two(t)
	c := func(start int) gpu.Compute { return gpu.Compute{Profile: "1c.3g.20gb", Start: start} }
	half := mustMake(t, b, wish("3g.20gb", "4", c(1)))
	calls := len(h.NVML.Calls())
	whole := mustMake(t, b, wish("3g.20gb", "4", c(0), c(1), c(2)))
	if len(whole.Compute) != 3 || whole.Compute[1] != half.Compute[0] || whole.Instance != half.Instance {
		t.Errorf("%+v became %+v", half, whole)
	}
	if made := h.NVML.Calls()[calls:]; len(made) != 2 {
		t.Errorf("calls: %v", made)
	}
	_, err := b.Make(t.Context(), wish("3g.20gb", "4", c(0)))
	wantCode(t, err, gpu.CodeConflict)
	_, err = b.Make(t.Context(), wish("3g.20gb", "0", gpu.Compute{Profile: "4c.3g.20gb"}))
	wantCode(t, err, gpu.CodeProfileUnknown)
	if diff := cmp.Diff([]gpu.Partition{whole}, partitions(t, b)); diff != "" {
		t.Error(diff)
	}
}

// A partition in use stays whole, and the refusal names who uses it. So it does where
// the driver alone knows that it is in use.
func TestRemoveInUse_T32(t *testing.T) {
	h, b := two(t)
	c := func(start int) gpu.Compute { return gpu.Compute{Profile: "1c.2g.10gb", Start: start} }
	p := mustMake(t, b, wish("2g.10gb", "2", c(0), c(1)))
	beside := mustMake(t, b, wish("1g.5gb", "0"))
	if err := h.Compute(string(id), mig.Process{PID: 4711, Instance: 1}); err != nil {
		t.Fatal(err)
	}
	calls := len(h.NVML.Calls())
	err := b.Remove(t.Context(), p)
	wantCode(t, err, gpu.CodeGPUBusy)
	if e, ok := errors.AsType[*gpu.Error](err); !ok || len(e.Blockers) != 1 || e.Blockers[0].ID != "4711" || e.Hint == "" {
		t.Errorf("%+v", err)
	}
	if made := h.NVML.Calls()[calls:]; len(made) != 0 {
		t.Errorf("something was tried on it: %v", made)
	}
	if err := h.Idle(string(id)); err != nil {
		t.Fatal(err)
	}
	h.NVML.Fail("DestroyComputeInstance", 0, 1)
	h.NVML.Fail("DestroyComputeInstance", mig.ErrInUse, 1)
	wantCode(t, b.Remove(t.Context(), p), gpu.CodeGPUBusy)
	now := partitions(t, b)
	if len(now) != 2 || len(now[1].Compute) != 2 || now[1].Compute[0].Start != 0 || now[1].Compute[1] != p.Compute[1] {
		t.Errorf("it was %+v and is %+v", p, now)
	}
	if err := b.Remove(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]gpu.Partition{beside}, partitions(t, b)); diff != "" {
		t.Error(diff)
	}
}

// Whoever is asked last may keep a partition.
func TestRemoveAsksFirst(t *testing.T) {
	h, b := two(t)
	p := mustMake(t, b, wish("2g.10gb", "2"))
	keep := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{Unused: func(_ context.Context, q gpu.Partition) error {
		return gpu.Errorf(gpu.CodeGPUBusy, "somebody has %s", q.ID)
	}})
	calls := len(h.NVML.Calls())
	wantCode(t, keep.Remove(t.Context(), p), gpu.CodeGPUBusy)
	if made := h.NVML.Calls()[calls:]; len(made) != 0 {
		t.Errorf("something was tried on it: %v", made)
	}
}

// The other card is never touched, nor any other instance, and no session outlives a
// call.
func TestOnlyTheTarget_T29_T30_T33(t *testing.T) {
	h, b := two(t)
	calls := len(h.NVML.Calls())
	stays := mustMake(t, b, wish("3g.20gb", "4"))
	p := mustMake(t, b, wish("1g.5gb", "0"))
	if err := b.Remove(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	again := mustMake(t, b, wish("2g.10gb", "0"))
	_, err := b.Make(t.Context(), wish("4g.20gb", "0"))
	wantCode(t, err, gpu.CodeConflict)
	_, err = b.Make(t.Context(), wish("7g.40gb", "0"))
	wantCode(t, err, gpu.CodeConflict)
	_, err = b.Place(t.Context(), id, "4g.20gb", nil)
	wantCode(t, err, gpu.CodeNoCapacity)
	if e, ok := errors.AsType[*gpu.Error](err); !ok || len(e.Blockers) != 1 || e.Blockers[0].Name != "2g.10gb" {
		t.Errorf("%+v", err)
	}
	if diff := cmp.Diff([]gpu.Partition{again, stays}, partitions(t, b)); diff != "" {
		t.Error(diff)
	}
	for _, c := range h.NVML.Calls()[calls:] {
		if c.Card != string(id) || c.Name == "SetMigMode" || c.Err != nil {
			t.Error(c)
		}
	}
	if n := h.NVML.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}

// After a reboot the same partition is made at the same place: what programs ask for
// it by is another, its identity is not.
func TestRecreated_T34(t *testing.T) {
	h, b := two(t)
	want := wish("2g.10gb", "2")
	p := mustMake(t, b, want)
	if err := h.Reboot(); err != nil {
		t.Fatal(err)
	}
	if now := partitions(t, b); len(now) != 0 {
		t.Fatalf("%+v", now)
	}
	q := mustMake(t, b, want)
	if p.ID != q.ID || p.Slot != q.Slot || p.Compute[0].UUID == q.Compute[0].UUID {
		t.Errorf("%+v came back as %+v", p, q)
	}
}

// Without a driver there is nothing to cut, which is told once; a driver that comes
// later is found.
func TestDriverMissing(t *testing.T) {
	var log bytes.Buffer
	lib, f := lookAlike(t)
	if err := os.Remove(string(f)); err != nil {
		t.Fatal(err)
	}
	h := simulated(t, sim.Mbochs())
	b := mig.NewBackend(lib, h.Sysfs, mig.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	for range 3 {
		if ids, err := b.IDs(t.Context()); len(ids) != 0 || err != nil {
			t.Errorf("%v, %v", ids, err)
		}
		_, _, err := b.Look(t.Context(), id)
		wantCode(t, err, gpu.CodeNotFound)
	}
	if n := strings.Count(log.String(), "driver-missing"); n != 1 {
		t.Errorf("told %d times: %s", n, &log)
	}
	if err := f.Write(nvml.GPU{Address: target, Model: model(t, "A30")}); err != nil {
		t.Fatal(err)
	}
	if ids, err := b.IDs(t.Context()); !slices.Equal(ids, []gpu.ID{id}) || err != nil {
		t.Errorf("%v, %v", ids, err)
	}
}

// A library of another version than the kernel module is no absent driver.
func TestDriverMismatch(t *testing.T) {
	lib, f := lookAlike(t, nvml.GPU{Address: target, Model: model(t, "A30")})
	h := simulated(t, sim.Mbochs(), sim.T4("0000:08:00.0", 0), sim.A100(target.String(), 1), sim.GVTg("0000:00:02.0"))
	b := mig.NewBackend(lib, h.Sysfs, mig.Options{})
	if err := f.Fail("nvmlInit_v2", mig.ErrVersionMismatch, 1); err != nil {
		t.Fatal(err)
	}
	// None of NVIDIA's is passed over: what numbers them would count wrong.
	ids, err := b.IDs(t.Context())
	wantCode(t, err, gpu.CodeDriverMismatch)
	if !slices.Equal(ids, []gpu.ID{"0000:08:00.0", gpu.ID(target.String())}) {
		t.Errorf("%v", ids)
	}
	if ids, err := b.IDs(t.Context()); len(ids) != 1 || err != nil {
		t.Errorf("%v, %v", ids, err)
	}
}

// A library that lacks a function is not called, which would end the daemon. It can cut
// nothing, and takes nothing from cards that are cut in another way.
func TestOldLibrary(t *testing.T) {
	// In a process of its own: the binding finds a function once, in whichever library was
	// loaded first, and the other tests are to find those of the whole one.
	const alone = "GPUVIRT_TEST_ALONE"
	if os.Getenv(alone) == "" {
		again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOldLibrary$", "-test.v")
		again.Env = append(os.Environ(), alone+"=1")
		if out, err := again.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestOldLibrary") {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	lib, err := nvml.Build(t.TempDir(), "nvmlDeviceGetGpuInstancePossiblePlacements_v2")
	if err != nil {
		t.Fatal(err)
	}
	f := nvml.File(filepath.Join(t.TempDir(), "nvml"))
	if err := f.Write(nvml.GPU{Address: target, Model: model(t, "A30")}); err != nil {
		t.Fatal(err)
	}
	t.Setenv(nvml.Env, string(f))
	b := mig.NewBackend(mig.New(lib), nil, mig.Options{})
	if ids, err := b.IDs(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("%v, %v", ids, err)
	}
	_, err = b.Partitions(t.Context(), gpu.ID(target.String()))
	wantCode(t, err, gpu.CodeNotFound)
}

// A countingLibrary counts its sessions.
type countingLibrary struct {
	mig.Library
	opened atomic.Int32
}

func (l *countingLibrary) Open() (mig.Session, error) {
	l.opened.Add(1)
	return l.Library.Open()
}

// A hangingLibrary does not come back from questions about profiles or modes until it is
// let go.
type hangingLibrary struct {
	mig.Library
	hang atomic.Bool
	free chan struct{}
}

func (l *hangingLibrary) Open() (mig.Session, error) {
	s, err := l.Library.Open()
	return hangingSession{s, l}, err
}

type hangingSession struct {
	mig.Session
	l *hangingLibrary
}

func (s hangingSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return hangingDevice{d, s.l}, err
}

type hangingDevice struct {
	mig.Device
	l *hangingLibrary
}

func (d hangingDevice) Profiles() ([]mig.DeviceProfile, error) {
	if d.l.hang.Load() {
		<-d.l.free
	}
	return d.Device.Profiles()
}

func (d hangingDevice) Modes() (gpu.Modes, error) {
	if d.l.hang.Load() {
		<-d.l.free
	}
	return d.Device.Modes()
}

// A library that does not come back is not waited for, nor asked anything else; what it
// was told to do may be done all the same, and that is seen when it comes back.
func TestLibraryHangs_T44(t *testing.T) {
	h, _ := two(t)
	l := &hangingLibrary{Library: h.NVML, free: make(chan struct{})}
	b := mig.NewBackend(l, h.Sysfs, mig.Options{ReadTimeout: 50 * time.Millisecond, ChangeTimeout: 50 * time.Millisecond})
	l.hang.Store(true)
	_, err := b.Make(t.Context(), wish("2g.10gb", "2"))
	wantCode(t, err, gpu.CodeStuck)
	g, _, err := b.Look(t.Context(), id)
	wantCode(t, err, gpu.CodeStuck)
	if g.ID != id || len(g.Conditions) != 1 || g.Conditions[0].Type != gpu.Stuck || len(g.Kinds) != 0 {
		t.Errorf("%+v", g)
	}
	_, err = b.Partitions(t.Context(), id)
	wantCode(t, err, gpu.CodeStuck)
	_, err = b.IDs(t.Context())
	wantCode(t, err, gpu.CodeStuck)
	wantCode(t, b.Remove(t.Context(), wish("2g.10gb", "2")), gpu.CodeStuck)
	_, _, err = b.Look(t.Context(), "mbochs")
	wantCode(t, err, gpu.CodeNotFound)
	l.hang.Store(false)
	close(l.free)
	deadline := time.NewTimer(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	for {
		if _, err := b.IDs(t.Context()); err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("it came back, and is still stuck")
		}
	}
	p := mustMake(t, b, wish("2g.10gb", "2"))
	if now := partitions(t, b); len(now) != 1 || now[0].Instance != p.Instance {
		t.Errorf("%+v", now)
	}
	if n := h.NVML.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}
