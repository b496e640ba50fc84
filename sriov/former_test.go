package sriov_test

import (
	"strings"
	"syscall"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/sriov"
)

// What a record says of former drivers may be older than the last boot: a card gets a
// driver that is there, and nothing is left that names one that is not.
func TestFormerDriverOfBeforeTheBoot(t *testing.T) {
	const other = "amdgpu-pro"
	fresh := func(c *sim.Card) { c.Driver = other }
	for name, tc := range map[string]struct {
		was   string
		since func(*testing.T, *sim.Host)
		want  state
	}{
		"it had none":         {"", nil, state{"amdgpu", "(null)"}},
		"none knows it":       {"", func(t *testing.T, h *sim.Host) { must(t, h.SetLoaded("amdgpu", false)) }, state{"", "(null)"}},
		"another since":       {"amdgpu", func(t *testing.T, h *sim.Host) { must(t, h.Change(rx, fresh)) }, state{other, "(null)"}},
		"it is unloaded":      {"amdgpu", func(t *testing.T, h *sim.Host) { must(t, h.SetLoaded("amdgpu", false)) }, state{"", "(null)"}},
		"it is not the usual": {"xe", nil, state{"xe", "xe"}},
		"it does not take it": {"xe", func(t *testing.T, h *sim.Host) {
			must(t, h.Inject(sim.Fault{Op: "write", Path: "bus/pci/drivers/xe/bind", Errno: syscall.EIO}))
		}, state{"amdgpu", "(null)"}},
		"nor by force": {"xe", func(t *testing.T, h *sim.Host) {
			must(t, h.Inject(sim.Fault{Op: "write", Path: "bus/pci/drivers_probe", Errno: syscall.EIO, Times: 1}))
		}, state{"amdgpu", "(null)"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := host(t)
			b := sriov.NewCards(h.Sysfs, options(h))
			want := next(t, b, rx, rxProfile)
			want.FormerDrivers[rx] = tc.was
			_, err := b.Make(t.Context(), want)
			must(t, err)
			if tc.since != nil {
				tc.since(t, h)
			}
			must(t, b.Remove(t.Context(), want))
			tc.want.want(t, h, rx)
			state{"snd_hda_intel", "(null)"}.want(t, h, sound)
			must(t, b.Remove(t.Context(), want))
			tc.want.want(t, h, rx)
		})
	}
}

// A driver that does not take the card, where the kernel has no other: that is tried again.
func TestFormerDriverFails(t *testing.T) {
	h := host(t)
	b := sriov.NewCards(h.Sysfs, options(h))
	want := next(t, b, rx, rxProfile)
	_, err := b.Make(t.Context(), want)
	must(t, err)
	must(t, h.Inject(sim.Fault{Op: "write", Path: "bus/pci/drivers/amdgpu/bind", Errno: syscall.EIO, Times: 1}))
	must(t, h.Inject(sim.Fault{Op: "write", Path: "bus/pci/drivers_probe", Errno: syscall.EIO, Times: 1}))
	err = b.Remove(t.Context(), want)
	wantCode(t, err, gpu.CodeUnavailable)
	if err == nil || !strings.Contains(err.Error(), `driver "amdgpu" does not take it`) {
		t.Error(err)
	}
	state{"", "(null)"}.want(t, h, rx)
	must(t, b.Remove(t.Context(), want))
	state{"amdgpu", "(null)"}.want(t, h, rx)
}

// Removal was broken off, and somebody has given the card another driver since.
func TestDriverThatWorksStays(t *testing.T) {
	h := host(t)
	b := sriov.NewCards(h.Sysfs, options(h))
	want := next(t, b, rx, rxProfile)
	want.FormerDrivers[rx] = "xe"
	write(t, h, devices+rx+"/driver_override", "vfio-pci")
	before := len(writes(t, h))
	must(t, b.Remove(t.Context(), want))
	state{"amdgpu", "(null)"}.want(t, h, rx)
	if n := len(writes(t, h)) - before; n != 1 {
		t.Errorf("%d writes", n)
	}
}

// A virtual function that had none gets none, whatever driver would take it.
func TestVFThatHadNoDriver(t *testing.T) {
	const vf = "0000:4d:00.1"
	h := host(t)
	b := functions(t, h, flex, 1)
	write(t, h, "bus/pci/drivers/xe/unbind", vf)
	want := next(t, b, flex, vfProfile)
	_, err := b.Make(t.Context(), want)
	must(t, err)
	must(t, b.Remove(t.Context(), want))
	state{"", "(null)"}.want(t, h, vf)
}
