package mig_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/test/lab/nvml"
)

// sharedHost is a host with an A40, which MIG cannot cut, behind one library or another.
type sharedHost struct {
	lib mig.Library
	fs  *sim.Sysfs
	// occupied makes a vGPU exist, and its other value takes it away.
	occupied func(bool)
	sets     func() int // how often something was set so far
}

func simulatedShare(t *testing.T) sharedHost {
	t.Helper()
	h := simulated(t, sim.A40(string(id), 0).WithVGPU(true), sim.Mbochs())
	if _, err := h.RunTool(t.Context(), "sriov-manage", "-e", string(id)); err != nil {
		t.Fatal(err)
	}
	const uuid = "0b6e5c5e-9f3d-4c62-8f0e-111111111111"
	return sharedHost{
		lib: h.NVML, fs: h.Sysfs,
		occupied: func(on bool) {
			t.Helper()
			file, text := "bus/pci/devices/0000:41:00.4/mdev_supported_types/nvidia-558/create", uuid
			if !on {
				file, text = "bus/mdev/devices/"+uuid+"/remove", "1"
			}
			if err := h.Sysfs.Write(t.Context(), file, text); err != nil {
				t.Fatal(err)
			}
		},
		sets: func() (n int) {
			for _, c := range h.NVML.Calls() {
				if strings.HasPrefix(c.Name, "Set") {
					n++
				}
			}
			return n
		},
	}
}

func lookAlikeShare(t *testing.T) sharedHost {
	t.Helper()
	h := simulated(t, sim.Mbochs())
	lib, f := lookAlike(t, nvml.GPU{Address: target})
	if err := f.Shares(nvml.Share{Address: target, Policy: 1, Sizes: true}); err != nil {
		t.Fatal(err)
	}
	return sharedHost{lib: lib, fs: h.Sysfs, occupied: func(on bool) {
		t.Helper()
		n := 0
		if on {
			n = 1
		}
		if err := f.Occupy(target, n); err != nil {
			t.Fatal(err)
		}
	}}
}

func bothShares(t *testing.T, test func(t *testing.T, h sharedHost)) {
	t.Helper()
	t.Run("simulated", func(t *testing.T) { test(t, simulatedShare(t)) })
	t.Run("look-alike", func(t *testing.T) { test(t, lookAlikeShare(t)) })
}

// The scheduler is read and set on a card that MIG cannot cut, and read back. What is right
// is not set again, and the driver refuses while there is a vGPU.
func TestScheduler(t *testing.T) {
	bothShares(t, func(t *testing.T, h sharedHost) {
		b := mig.NewBackend(h.lib, h.fs, mig.Options{})
		read := func() gpu.SchedulerState {
			t.Helper()
			s, err := b.Timeslicing(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return s.Scheduler
		}
		want := gpu.SchedulerState{
			Policies:       []gpu.SchedulerPolicy{gpu.BestEffort, gpu.EqualShare, gpu.FixedShare},
			MinTimeSliceNS: 1e6, MaxTimeSliceNS: 30e6, Actual: &gpu.Scheduler{Policy: gpu.BestEffort},
		}
		if diff := cmp.Diff(want, read()); diff != "" {
			t.Error(diff)
		}
		fixed := gpu.Scheduler{Policy: gpu.FixedShare, TimeSliceNS: 5e6}
		for _, s := range []gpu.Scheduler{fixed, fixed, {Policy: gpu.FixedShare}} { // the last asks for no slice
			if err := b.SetScheduler(t.Context(), id, s); err != nil {
				t.Fatal(err)
			}
			if got := read().Actual; !cmp.Equal(*got, fixed) {
				t.Errorf("after %+v it is %+v", s, got)
			}
		}
		if h.sets != nil && h.sets() != 1 {
			t.Errorf("it was set %d times", h.sets())
		}
		if err := b.SetScheduler(t.Context(), id, gpu.Scheduler{Policy: gpu.EqualShare}); err != nil {
			t.Fatal(err)
		}
		if got := read().Actual; got.Policy != gpu.EqualShare || !got.Adaptive || got.TimeSliceNS != 2e6 {
			t.Errorf("the driver's own is %+v", got)
		}
		// Not what the driver made of it by itself: that it adapts.
		if err := b.SetScheduler(t.Context(), id, gpu.Scheduler{Policy: gpu.EqualShare, TimeSliceNS: 2e6}); err != nil || read().Actual.Adaptive {
			t.Error(read().Actual, err)
		}
		wantCode(t, b.SetScheduler(t.Context(), id, gpu.Scheduler{Policy: gpu.FixedShare, TimeSliceNS: 999}), gpu.CodeInvalid)
		wantCode(t, b.SetScheduler(t.Context(), id, gpu.Scheduler{Policy: "whoever is loudest"}), gpu.CodeInvalid)
		h.occupied(true)
		wantCode(t, b.SetScheduler(t.Context(), id, fixed), gpu.CodeGPUBusy)
		if got := read(); len(got.Policies) != 3 || got.Actual.Policy != gpu.EqualShare {
			t.Errorf("%+v", got)
		}
		h.occupied(false)
		if err := b.SetScheduler(t.Context(), id, gpu.Scheduler{Policy: gpu.BestEffort}); err != nil {
			t.Error(err)
		}
	})
}

// What there is no answer to is said, and is no error: no driver for hosts of VMs, MIG on,
// an old library. A GPU that the driver does not have is none.
func TestSchedulerUnavailable(t *testing.T) {
	h := simulated(t, sim.H100(string(id), 0).WithVGPU(false), sim.A100(string(other), 1), sim.Mbochs())
	b := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{})
	on(t, h.NVML, target)
	for gpuID, why := range map[gpu.ID]string{id: "MIG is on", other: "no scheduler of vGPUs"} {
		s, err := b.Timeslicing(t.Context(), gpuID)
		if err != nil || s.Scheduler.Actual != nil || !strings.Contains(s.Scheduler.Unavailable, why) {
			t.Errorf("%s: %+v, %v", gpuID, s, err)
		}
		wantCode(t, b.SetScheduler(t.Context(), gpuID, gpu.Scheduler{Policy: gpu.EqualShare}), gpu.CodeGPUBusy)
	}
	for _, gpuID := range []gpu.ID{"0000:99:00.0", "mbochs", ""} {
		_, err := b.Timeslicing(t.Context(), gpuID)
		wantCode(t, err, gpu.CodeNotFound)
		wantCode(t, b.SetScheduler(t.Context(), gpuID, gpu.Scheduler{Policy: gpu.EqualShare}), gpu.CodeNotFound)
	}
	h.NVML.Fail("Init", mig.ErrDriverNotLoaded, 1)
	_, err := b.Timeslicing(t.Context(), id)
	wantCode(t, err, gpu.CodeNotFound)
	if n := h.NVML.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}

// A library that has only one form of a function is asked in that; one that has none says so.
func TestSchedulerOfOtherLibraries(t *testing.T) {
	const get, set = "nvmlDeviceGetVgpuSchedulerState", "nvmlDeviceSetVgpuSchedulerState"
	for name, tt := range map[string]struct {
		lacks      []string
		reads      bool
		plain, cut gpu.Code // of a wish without a time slice, and of one with
	}{
		"older":   {[]string{get + "_v2", set + "_v2"}, true, "", ""},
		"newer":   {[]string{get, set}, true, "", gpu.CodeDriverMismatch},
		"neither": {[]string{get, get + "_v2", set, set + "_v2"}, false, gpu.CodeDriverMismatch, gpu.CodeDriverMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := nvml.Build(t.TempDir(), tt.lacks...)
			if err != nil {
				t.Fatal(err)
			}
			_, f := lookAlike(t, nvml.GPU{Address: target})
			if err := f.Shares(nvml.Share{Address: target, Policy: 1}); err != nil {
				t.Fatal(err)
			}
			b := mig.NewBackend(mig.New(path), simulated(t, sim.Mbochs()).Sysfs, mig.Options{})
			s, err := b.Timeslicing(t.Context(), id)
			if err != nil || (s.Scheduler.Actual != nil) != tt.reads || (s.Scheduler.Unavailable == "") != tt.reads || len(s.Scheduler.Policies) != 3 {
				t.Errorf("%+v, %v", s, err)
			}
			for want, code := range map[gpu.Scheduler]gpu.Code{
				{Policy: gpu.EqualShare}:                   tt.plain,
				{Policy: gpu.FixedShare, TimeSliceNS: 7e6}: tt.cut,
			} {
				err := b.SetScheduler(t.Context(), id, want)
				if code != "" {
					wantCode(t, err, code)
				} else if s, rerr := b.Timeslicing(t.Context(), id); err != nil || rerr != nil || !s.Scheduler.Actual.Is(want) {
					t.Errorf("%+v: %v, %v; it is %+v", want, err, rerr, s.Scheduler.Actual)
				}
			}
		})
	}
}

// What a time slice of 0 means to the older form is not written anywhere. A driver that does
// not take it gets the usual one.
func TestSchedulerWithoutTimeSlice(t *testing.T) {
	path, err := nvml.Build(t.TempDir(), "nvmlDeviceSetVgpuSchedulerState_v2")
	if err != nil {
		t.Fatal(err)
	}
	_, f := lookAlike(t, nvml.GPU{Address: target})
	if err := f.Shares(nvml.Share{Address: target, Policy: 1}); err != nil {
		t.Fatal(err)
	}
	b := mig.NewBackend(mig.New(path), simulated(t, sim.Mbochs()).Sysfs, mig.Options{})
	for range 2 {
		if err := f.Fail("nvmlDeviceSetVgpuSchedulerState", mig.ErrInvalidArgument, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.SetScheduler(t.Context(), id, gpu.Scheduler{Policy: gpu.FixedShare}); err == nil {
		t.Error("it was refused twice, and is set")
	}
	if err := f.Fail("nvmlDeviceSetVgpuSchedulerState", mig.ErrInvalidArgument, 1); err != nil {
		t.Fatal(err)
	}
	if err := b.SetScheduler(t.Context(), id, gpu.Scheduler{Policy: gpu.FixedShare}); err != nil {
		t.Error(err)
	}
	if s, err := b.Timeslicing(t.Context(), id); err != nil || *s.Scheduler.Actual != (gpu.Scheduler{Policy: gpu.FixedShare, TimeSliceNS: 2e6}) {
		t.Errorf("%+v, %v", s.Scheduler.Actual, err)
	}
}

// That a call has succeeded is not believed (T06), and what it answers is told by its kind.
func TestSchedulerAnswers_T06(t *testing.T) {
	h := simulatedShare(t)
	b := mig.NewBackend(forgetful{h.lib}, h.fs, mig.Options{})
	err := b.SetScheduler(t.Context(), id, gpu.Scheduler{Policy: gpu.FixedShare})
	if gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "the driver has taken it, and it is best-effort") {
		t.Error(err)
	}
	lib, f := lookAlike(t, nvml.GPU{Address: target})
	if err := f.Shares(nvml.Share{Address: target, Policy: 1}); err != nil {
		t.Fatal(err)
	}
	b = mig.NewBackend(lib, h.fs, mig.Options{})
	for ret, code := range map[mig.Return]gpu.Code{
		mig.ErrResetRequired: gpu.CodeNeedsReboot, mig.ErrNotSupported: gpu.CodeGPUBusy, mig.ErrGPULost: gpu.CodeUnavailable,
		mig.ErrUnknown: gpu.CodeUnavailable,
	} {
		if err := f.Fail("nvmlDeviceSetVgpuSchedulerState_v2", ret, 1); err != nil {
			t.Fatal(err)
		}
		err := b.SetScheduler(t.Context(), id, gpu.Scheduler{Policy: gpu.FixedShare})
		if wantCode(t, err, code); !errors.Is(err, ret) {
			t.Error(err)
		}
	}
	if err := f.Fail("nvmlDeviceGetVgpuSchedulerState", mig.ErrGPULost, 1); err != nil {
		t.Fatal(err)
	}
	_, err = b.Timeslicing(t.Context(), id)
	wantCode(t, err, gpu.CodeUnavailable)
}

// A forgetful library takes what is set, and does nothing.
type forgetful struct{ mig.Library }

func (l forgetful) Open() (mig.Session, error) {
	s, err := l.Library.Open()
	return forgetfulSession{s}, err
}

type forgetfulSession struct{ mig.Session }

func (s forgetfulSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return forgetfulDevice{d}, err
}

type forgetfulDevice struct{ mig.Device }

func (forgetfulDevice) SetScheduler(gpu.Scheduler) error { return nil }
func (forgetfulDevice) SetMixedSize(bool) error          { return nil }
