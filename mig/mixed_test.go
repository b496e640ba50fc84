package mig_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/test/lab/nvml"
)

// Mixed sizes are turned on and off and read back; what is right is not set again, and the
// driver refuses while there is a vGPU.
func TestMixedSize(t *testing.T) {
	bothShares(t, func(t *testing.T, h sharedHost) {
		b := mig.NewBackend(h.lib, h.fs, mig.Options{})
		is := func() gpu.MixedSizeState {
			t.Helper()
			s, err := b.Timeslicing(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return s.MixedSize
		}
		no, yes := false, true
		if got := is(); !cmp.Equal(got, gpu.MixedSizeState{Supported: true, Actual: &no}) {
			t.Errorf("%+v", got)
		}
		for range 2 {
			if err := b.SetMixedSize(t.Context(), id, true); err != nil {
				t.Fatal(err)
			}
		}
		if got := is(); !cmp.Equal(got, gpu.MixedSizeState{Supported: true, Actual: &yes}) || h.sets != nil && h.sets() != 1 {
			t.Errorf("%+v", got)
		}
		h.occupied(true)
		wantCode(t, b.SetMixedSize(t.Context(), id, false), gpu.CodeGPUBusy)
		if err := b.SetMixedSize(t.Context(), id, true); err != nil {
			t.Error(err)
		}
		h.occupied(false)
		if err := b.SetMixedSize(t.Context(), id, false); err != nil || *is().Actual {
			t.Error(err)
		}
	})
	h := simulatedShare(t)
	err := mig.NewBackend(forgetful{h.lib}, h.fs, mig.Options{}).SetMixedSize(t.Context(), id, true)
	if gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "taken it, and it is not so") { // T06
		t.Error(err)
	}
}

// Without functions on, with MIG on, on a card without SR-IOV and with an old library there
// are none, and why is said.
func TestMixedSizeUnavailable(t *testing.T) {
	h := simulated(t, sim.L40S(string(id), 0).WithVGPU(false), sim.H100(string(other), 1).WithVGPU(false), sim.T4("0000:08:00.0", 0))
	on(t, h.NVML, gpu.Address{Bus: 0x42})
	b := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{})
	for gpuID, why := range map[gpu.ID]string{id: "no mixed sizes", other: "MIG is on", "0000:08:00.0": "no mixed sizes"} {
		s, err := b.Timeslicing(t.Context(), gpuID)
		if err != nil || s.MixedSize.Supported || s.MixedSize.Actual != nil || !strings.Contains(s.MixedSize.Unavailable, why) {
			t.Errorf("%s: %+v, %v", gpuID, s.MixedSize, err)
		}
		wantCode(t, b.SetMixedSize(t.Context(), gpuID, true), gpu.CodeGPUBusy)
		_, err = b.Placements(t.Context(), gpuID)
		if gpuID != "0000:08:00.0" { // which has no types either
			wantCode(t, err, gpu.CodeGPUBusy)
		}
	}
	lib, f := lookAlike(t, nvml.GPU{Address: target})
	if err := f.Shares(nvml.Share{Address: target, Policy: 1}); err != nil {
		t.Fatal(err)
	}
	s, err := mig.NewBackend(lib, h.Sysfs, mig.Options{}).Timeslicing(t.Context(), id)
	if err != nil || s.MixedSize.Supported || s.Scheduler.Actual == nil {
		t.Errorf("%+v, %v", s, err)
	}
	for _, lacks := range []string{"nvmlDeviceGetVgpuCapabilities", "nvmlDeviceGetVgpuHeterogeneousMode"} {
		path, err := nvml.Build(t.TempDir(), lacks)
		if err != nil {
			t.Fatal(err)
		}
		s, err := mig.NewBackend(mig.New(path), h.Sysfs, mig.Options{}).Timeslicing(t.Context(), id)
		if err != nil || s.MixedSize.Supported || !strings.Contains(s.MixedSize.Unavailable, "the library lacks "+lacks) || s.Scheduler.Actual == nil {
			t.Errorf("%+v, %v", s, err)
		}
	}
}

// The places come past the binding: from a library that knows the second version of the
// structure, or only the first, with more of them than fit at once, with none, and not at
// all where it lacks the function or tells of more than there can be.
func TestPlacementsOfTheLibrary(t *testing.T) {
	var many []int
	for i := range 150 {
		many = append(many, i)
	}
	want := []gpu.VGPUPlacements{
		{Type: 1154, Size: 16, Starts: []int{0, 32}, Free: []int{32}},
		{Type: 1156, Size: 48, Starts: []int{0}, Free: []int{}},
		{Type: 1147, Size: 1, Starts: many[:100], Free: many[:70]},
		{Type: 0, Size: 1, Starts: []int{-1}},
		{Type: 1, Size: 1, Starts: []int{-2}},
	}
	place := func(t *testing.T, path string, typ uint32) (gpu.VGPUPlacements, error) {
		t.Helper()
		s, err := mig.New(path).Open()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		d, err := s.Device(target)
		if err != nil {
			t.Fatal(err)
		}
		return d.Placements(typ)
	}
	_, f := lookAlike(t, nvml.GPU{Address: gpu.Address{Bus: 8}}, nvml.GPU{Address: target})
	if err := f.Shares(nvml.Share{Address: target, Policy: 1, Sizes: true, Mixed: true, Places: want}); err != nil {
		t.Fatal(err)
	}
	functions := []string{"nvmlDeviceGetVgpuTypeSupportedPlacements", "nvmlDeviceGetVgpuTypeCreatablePlacements"}
	const versionMismatch = 25
	for _, old := range []bool{false, true} {
		for _, w := range want[:2] {
			for _, function := range functions {
				if err := f.Fail(function, versionMismatch, bit(old)); err != nil {
					t.Fatal(err)
				}
			}
			got, err := place(t, library, w.Type)
			if diff := cmp.Diff(w, got); diff != "" || err != nil {
				t.Error(err, diff)
			}
		}
	}
	got, err := place(t, library, want[2].Type)
	if diff := cmp.Diff(want[2], got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	for typ := range uint32(2) {
		if _, err := place(t, library, typ); !errors.Is(err, mig.ErrUnknown) || !strings.Contains(err.Error(), "in an array of 64") {
			t.Error(err)
		}
	}
	if _, err := place(t, library, 999); err != mig.ErrInvalidArgument { //nolint:errorlint // as it is returned
		t.Error(err)
	}
	for _, lacks := range functions {
		path, err := nvml.Build(t.TempDir(), lacks)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := place(t, path, 1154); err == nil || !strings.Contains(err.Error(), "the library lacks "+lacks) {
			t.Error(err)
		}
	}
	if err := f.Shares(nvml.Share{Address: target, Policy: 1, Sizes: true, Places: want}); err != nil {
		t.Fatal(err)
	}
	if _, err := place(t, library, 1154); err != mig.ErrNotSupported { //nolint:errorlint // as it is returned
		t.Error(err)
	}
}

func bit(on bool) int {
	if on {
		return 1
	}
	return 0
}

// Types that stand on MIG instances have no places on the card.
func TestPlacements(t *testing.T) {
	h := simulated(t, sim.H100(string(id), 0).WithVGPU(false))
	if out, err := h.RunTool(t.Context(), "sriov-manage", "-e", string(id)); err != nil {
		t.Fatal(out, err)
	}
	b := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{})
	if err := b.SetMixedSize(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	all, err := b.Placements(t.Context(), id)
	if err != nil || len(all) != 8 {
		t.Fatalf("%+v, %v", all, err)
	}
	sizes := map[int][]int{}
	for _, p := range all {
		sizes[p.Size] = p.Free
	}
	if !slices.Equal(sizes[40], []int{0, 40}) || !slices.Equal(sizes[16], []int{0, 24, 40, 64}) {
		t.Errorf("%+v", all)
	}
	for _, gpuID := range []gpu.ID{"0000:99:00.0", ""} {
		_, err := b.Placements(t.Context(), gpuID)
		wantCode(t, err, gpu.CodeNotFound)
	}
}

// A type whose places the library refuses to tell is left out, and hides no other; where
// it tells of none, that is the answer.
func TestPlacementsOfOneTypeRefused(t *testing.T) {
	h := simulatedShare(t)
	b := mig.NewBackend(h.lib, h.fs, mig.Options{})
	if err := b.SetMixedSize(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	all, err := b.Placements(t.Context(), id)
	if err != nil || len(all) < 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	b = mig.NewBackend(reticent{h.lib, all[1:2]}, h.fs, mig.Options{})
	got, err := b.Placements(t.Context(), id)
	if diff := cmp.Diff(slices.Delete(slices.Clone(all), 1, 2), got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	b = mig.NewBackend(reticent{h.lib, all}, h.fs, mig.Options{})
	if got, err := b.Placements(t.Context(), id); !errors.Is(err, mig.ErrUnknown) {
		t.Errorf("%+v, %v", got, err)
	}
}

// A reticent library does not tell the places of some types.
type reticent struct {
	mig.Library
	about []gpu.VGPUPlacements
}

func (l reticent) Open() (mig.Session, error) {
	s, err := l.Library.Open()
	return reticentSession{s, l.about}, err
}

type reticentSession struct {
	mig.Session
	about []gpu.VGPUPlacements
}

func (s reticentSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return reticentDevice{d, s.about}, err
}

type reticentDevice struct {
	mig.Device
	about []gpu.VGPUPlacements
}

func (d reticentDevice) Placements(typ uint32) (gpu.VGPUPlacements, error) {
	if slices.ContainsFunc(d.about, func(p gpu.VGPUPlacements) bool { return p.Type == typ }) {
		return gpu.VGPUPlacements{}, mig.ErrUnknown
	}
	return d.Device.Placements(typ)
}
