package mig_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/test/lab/nvml"
)

func ptr[T any](v T) *T { return &v }

// What the library's own functions tell of vGPUs, through the real binding.
func TestRunningVGPUsOfTheLibrary_R115(t *testing.T) {
	lib, f := lookAlike(t, nvml.GPU{Address: target, Model: model(t, "A100-PCIE-40GB")}, nvml.GPU{Address: gpu.Address{Bus: 8}})
	h := simulated(t, sim.A100(target.String(), 0), sim.T4("0000:08:00.0", 0))
	b := mig.NewBackend(lib, h.Sysfs, mig.Options{})
	now := time.Now().Truncate(time.Microsecond)
	sample := func(vgpu uint32, ago time.Duration, sm, memory int) mig.VGPUSample {
		return mig.VGPUSample{VGPU: vgpu, Time: now.Add(-ago), SM: sm, Memory: memory, Encoder: 0, Decoder: 1 << 20}
	}
	expires := time.Date(2027, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := f.Monitor(target, nvml.Modes{ECC: &gpu.ECC{Pending: true}, Compute: 3},
		[]mig.VGPUSample{sample(11, 0, 30, 10), sample(11, time.Second, 50, 10), sample(11, time.Minute, 100, 100), sample(12, time.Hour, 1, 2)},
		nvml.VGPU{ID: 11, VM: "3F6D1A52-7C1E-4A55-9B0E-5D1F0A6B7C01", Type: 463, Instance: -1, Memory: 1 << 30, Driver: "550.90.07", License: 5, Expires: expires},
		nvml.VGPU{ID: 12, VM: "vm-2", Mdev: "AAAAAAAA-0000-4000-8000-000000000001", Type: 464, Instance: 3, Driver: "535.1", License: 3},
		nvml.VGPU{ID: 13, VM: "7", Domain: true, Type: 464, Instance: -1}, // its driver has not loaded
		nvml.VGPU{ID: 14, VM: "vm-4", Gone: true},
		nvml.VGPU{ID: 15, VM: "vm-5", Type: 465, Instance: -1, Driver: "9", License: 0},
	); err != nil {
		t.Fatal(err)
	}
	used := func(n uint64) *gpu.Usage { return &gpu.Usage{MemoryUsedBytes: &n} }
	want := []gpu.RunningVGPU{
		{VM: "3f6d1a52-7c1e-4a55-9b0e-5d1f0a6b7c01", Type: 463, Observed: gpu.Observed{
			GuestDriver: "550.90.07", License: &gpu.License{State: gpu.LicenseHeld, Expires: expires},
			Usage: &gpu.Usage{MemoryUsedBytes: ptr(uint64(1 << 30)), SM: ptr(0.4), Memory: ptr(0.1), Encoder: ptr(0.0), Sampled: now},
		}},
		{VM: "vm-2", MdevUUID: "aaaaaaaa-0000-4000-8000-000000000001", Type: 464, Instance: "3", Observed: gpu.Observed{
			GuestDriver: "535.1", License: &gpu.License{State: gpu.LicenseRestricted},
			Usage: &gpu.Usage{MemoryUsedBytes: ptr(uint64(0)), SM: ptr(0.01), Memory: ptr(0.02), Encoder: ptr(0.0), Sampled: now.Add(-time.Hour)},
		}},
		{Type: 464, Observed: gpu.Observed{Usage: used(0)}},
		{VM: "vm-5", Type: 465, Observed: gpu.Observed{GuestDriver: "9", Usage: used(0)}},
	}
	got, err := b.RunningVGPUs(t.Context(), gpu.ID(target.String()))
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if got, err := b.RunningVGPUs(t.Context(), "0000:08:00.0"); err != nil || len(got) != 0 {
		t.Errorf("another card: %+v, %v", got, err)
	}
	modes, err := b.Modes(t.Context(), gpu.ID(target.String()), "0000:08:00.0")
	if diff := cmp.Diff(map[gpu.ID]gpu.Modes{
		gpu.ID(target.String()): {ECC: &gpu.ECC{Pending: true}, Compute: gpu.ComputeExclusive}, "0000:08:00.0": {},
	}, modes); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

// A library without a function leaves out what that tells, and is of use for the rest. Without
// those that say whose a vGPU is it says so.
func TestRunningVGPUsOfAnOldLibrary(t *testing.T) {
	h := simulated(t, sim.A100(target.String(), 0))
	for _, c := range []struct {
		lacks string
		want  gpu.Observed
	}{
		{"nvmlVgpuInstanceGetLicenseInfo_v2", gpu.Observed{GuestDriver: "1", Usage: &gpu.Usage{MemoryUsedBytes: ptr(uint64(7))}}},
		{"nvmlVgpuInstanceGetFbUsage", gpu.Observed{GuestDriver: "1", License: &gpu.License{State: gpu.LicenseNone}}},
		{"nvmlVgpuInstanceGetVmDriverVersion", gpu.Observed{License: &gpu.License{State: gpu.LicenseNone}, Usage: &gpu.Usage{MemoryUsedBytes: ptr(uint64(7))}}},
		{"nvmlVgpuInstanceGetType", gpu.Observed{}},
	} {
		lib, err := nvml.Build(t.TempDir(), c.lacks, "nvmlDeviceGetVgpuUtilization", "nvmlVgpuInstanceGetMdevUUID", "nvmlVgpuInstanceGetGpuInstanceId")
		if err != nil {
			t.Fatal(err)
		}
		_, f := lookAlike(t, nvml.GPU{Address: target, Model: model(t, "A30")})
		if err := f.Monitor(target, nvml.Modes{}, nil, nvml.VGPU{ID: 1, VM: "vm", Type: 2, Memory: 7, Driver: "1", License: 4}); err != nil {
			t.Fatal(err)
		}
		got, err := mig.NewBackend(mig.New(lib), h.Sysfs, mig.Options{}).RunningVGPUs(t.Context(), gpu.ID(target.String()))
		if c.want == (gpu.Observed{}) {
			if gpu.CodeOf(err) != gpu.CodeUnavailable {
				t.Errorf("without %s: %+v, %v", c.lacks, got, err)
			}
			continue
		}
		if diff := cmp.Diff([]gpu.RunningVGPU{{VM: "vm", Type: 2, Observed: c.want}}, got); diff != "" || err != nil {
			t.Errorf("without %s: %v, %s", c.lacks, err, diff)
		}
	}
}

// On the simulator they come and go with their VM.
func TestRunningVGPUsSimulated(t *testing.T) {
	h := simulated(t, sim.L40S("0000:61:00.0", 0).WithVGPU(false), sim.GVTg("0000:00:02.0"), sim.Mbochs())
	counted := &countingLibrary{Library: h.NVML}
	b := mig.NewBackend(counted, h.Sysfs, mig.Options{})
	if got, err := b.RunningVGPUs(t.Context(), "0000:61:00.0"); err != nil || len(got) != 0 || counted.opened.Load() != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, id := range []gpu.ID{"0000:00:02.0", "mbochs", "0000:99:00.0", ""} {
		_, err := b.RunningVGPUs(t.Context(), id)
		wantCode(t, err, gpu.CodeNotFound)
	}
	if n := counted.opened.Load(); n != 1 {
		t.Errorf("the library was asked %d times", n)
	}
	for _, call := range []string{"GetActiveVgpus", "Init"} {
		h.NVML.Fail(call, mig.ErrUnknown, 1)
		_, err := b.RunningVGPUs(t.Context(), "0000:61:00.0")
		wantCode(t, err, gpu.CodeUnavailable)
	}
	if n := h.NVML.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}
