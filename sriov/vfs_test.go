package sriov_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/sriov"
)

// num is how many virtual functions a card says that it has.
func num(t *testing.T, h *sim.Host, card string) string {
	t.Helper()
	n, err := h.Sysfs.Read(devices + card + "/sriov_numvfs")
	must(t, err)
	return n
}

// closing is a hook that ends a session of ours.
func closing(end func() error, reopened *bool) func(context.Context) (func(), error) {
	return func(context.Context) (func(), error) { return func() { *reopened = true }, end() }
}

func TestSetVFs(t *testing.T) {
	h := host(t)
	b := sriov.NewFunctions(h.Sysfs, options(h))
	wantCode(t, b.SetVFs(t.Context(), flex, 32), gpu.CodeInvalid)
	wantCode(t, b.SetVFs(t.Context(), flex, -1), gpu.CodeInvalid)
	wantCode(t, b.SetVFs(t.Context(), rx, 1), gpu.CodeInvalid)
	wantCode(t, b.SetVFs(t.Context(), "0000:ff:00.0", 1), gpu.CodeNotFound)
	must(t, b.SetVFs(t.Context(), flex, 4))
	must(t, b.SetVFs(t.Context(), flex, 4))
	must(t, b.SetVFs(t.Context(), flex, 2))
	must(t, b.SetVFs(t.Context(), flex, 0))
	must(t, b.SetVFs(t.Context(), flex, 0))
	var got []string
	for _, w := range writes(t, h) {
		got = append(got, w.Path[strings.LastIndexByte(w.Path, '_')+1:]+"="+w.Value)
	}
	want := []string{
		"numvfs=4",
		"numvfs=0", "numvfs=2",
		"numvfs=0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Whether drivers are found for them is the host's choice.
	write(t, h, devices+flex+"/sriov_drivers_autoprobe", "0")
	must(t, b.SetVFs(t.Context(), flex, 1))
	if got, err := h.Sysfs.Read(devices + flex + "/sriov_drivers_autoprobe"); got != "0" || err != nil {
		t.Error(got, err)
	}
	all, err := b.Functions(t.Context(), flex)
	if diff := cmp.Diff([]gpu.Function{{PCIAddress: "0000:4d:00.1", IOMMUGroup: "1000"}}, all); diff != "" || err != nil {
		t.Error(diff, err)
	}
	// One that VFIO has keeps the others.
	p := next(t, b, flex, vfProfile)
	_, err = b.Make(t.Context(), p)
	must(t, err)
	wantCode(t, b.SetVFs(t.Context(), flex, 2), gpu.CodeGPUBusy)
	wantCode(t, b.SetVFs(t.Context(), flex, 0), gpu.CodeGPUBusy)
	must(t, b.SetVFs(t.Context(), flex, 1))
	state{"vfio-pci", "vfio-pci"}.want(t, h, "0000:4d:00.1")
}

// What is refused is refused in advance, and asking changes nothing.
func TestCheckVFs(t *testing.T) {
	for name, tc := range map[string]struct {
		card   gpu.ID
		n      int
		before func(*testing.T, *sim.Host)
		code   gpu.Code // empty: it can be
	}{
		"some":             {card: flex, n: 4},
		"all of NVIDIA's":  {card: a2, n: 16},
		"some of NVIDIA's": {card: a2, n: 3, code: gpu.CodeInvalid},
		"too many":         {card: flex, n: 32, code: gpu.CodeInvalid},
		"below none":       {card: flex, n: -1, code: gpu.CodeInvalid},
		"no SR-IOV":        {card: rx, n: 1, code: gpu.CodeInvalid},
		"no such":          {card: "0000:ff:00.0", n: 1, code: gpu.CodeNotFound},
		"none, as it has":  {card: flex, n: 0},
		"no driver": {card: flex, n: 4, code: gpu.CodeUnavailable, before: func(t *testing.T, h *sim.Host) {
			must(t, h.SetLoaded("xe", false))
		}},
		"given away": {card: flex, n: 4, code: gpu.CodeGPUBusy, before: func(t *testing.T, h *sim.Host) { toVFIO(t, h, flex) }},
		"one taken": {card: flex, n: 0, code: gpu.CodeGPUBusy, before: func(t *testing.T, h *sim.Host) {
			on(flex, "2")(t, h)
			toVFIO(t, h, "0000:4d:00.2")
		}},
		"none taken": {card: flex, n: 0, before: on(flex, "2")},
	} {
		t.Run(name, func(t *testing.T) {
			h := host(t)
			if tc.before != nil {
				tc.before(t, h)
			}
			b := sriov.NewFunctions(h.Sysfs, options(h))
			before := len(writes(t, h))
			err := b.CheckVFs(t.Context(), tc.card, tc.n)
			if after := writes(t, h); len(after) != before {
				t.Errorf("%q", after[before:])
			}
			if tc.code != "" {
				wantCode(t, err, tc.code)
			} else if err != nil {
				t.Error(err)
			}
			if serr := b.SetVFs(t.Context(), tc.card, tc.n); fmt.Sprint(serr) != fmt.Sprint(err) {
				t.Errorf("planned %v, and it is %v", err, serr)
			}
		})
	}
}

func TestSetVFsOfAGivenCard_R72(t *testing.T) {
	h := host(t)
	for _, card := range []string{flex, a2} {
		toVFIO(t, h, card)
		b := sriov.NewFunctions(h.Sysfs, options(h))
		wantCode(t, b.SetVFs(t.Context(), gpu.ID(card), 16), gpu.CodeGPUBusy)
	}
	_, profiles, err := sriov.NewFunctions(h.Sysfs, options(h)).Look(t.Context(), flex)
	if err != nil || !strings.Contains(profiles[0].NotCreatable, "taken for VMs, whole") {
		t.Error(profiles, err)
	}
}

// The driver of functions with vGPUs is itself their VFIO driver. They go unless one has a
// vGPU, whoever's the card is.
func TestSetVFsOfVGPUs(t *testing.T) {
	card := sim.L40S(flex, 0).WithVGPU(false)
	card.PCI.Vendor, card.Driver, card.SRIOV.VFDriver, card.SRIOV.ToolOnly = "0x1b36", "other", "other", false
	card.PCI.Class = "0x010802"
	h := host(t, card)
	o := options(h)
	o.Devices = []string{"1b36:26b9"}
	b := sriov.NewFunctions(h.Sysfs, o)
	must(t, b.SetVFs(t.Context(), flex, 4))
	all, err := b.Functions(t.Context(), flex)
	must(t, err)
	typ := "bus/pci/devices/" + all[1].PCIAddress + "/nvidia/current_vgpu_type"
	write(t, h, typ, "1152")
	wantCode(t, b.SetVFs(t.Context(), flex, 0), gpu.CodeGPUBusy)
	write(t, h, typ, "0")
	must(t, b.SetVFs(t.Context(), flex, 0))
	if got := num(t, h, flex); got != "0" {
		t.Error(got)
	}
}

// It has as many as it had, or none.
func TestEachWriteOfSetVFsFails(t *testing.T) {
	for at := 1; at <= 3; at++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d, after %t", at, after), func(t *testing.T) {
				h := host(t)
				functions(t, h, flex, 3)
				b := sriov.NewFunctions(&broken{Sysfs: h.Sysfs, at: at, after: after}, options(h))
				err := b.SetVFs(t.Context(), flex, 5)
				got := num(t, h, flex)
				if ok := err == nil && got == "5" || err != nil && (got == "3" || got == "0"); !ok {
					t.Errorf("%s are on, %v", got, err)
				}
				if driver(t, h, flex) != "xe" {
					t.Error("the driver has gone")
				}
				must(t, sriov.NewFunctions(h.Sysfs, options(h)).SetVFs(t.Context(), flex, 5))
			})
		}
	}
}

func TestSetVFsWaitsForNothing_T05(t *testing.T) {
	for _, after := range []time.Duration{0, time.Second, 30 * time.Second, 90 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			h := host(t)
			for _, card := range []string{flex, a2} {
				must(t, h.Appear(card, after))
			}
			b := sriov.NewFunctions(h.Sysfs, options(h))
			for _, card := range []gpu.ID{flex, a2} {
				// Its driver is not there yet: whoever asks may ask again.
				if after > 0 {
					wantCode(t, b.SetVFs(t.Context(), card, 16), gpu.CodeUnavailable)
				}
			}
			<-time.After(after)
			for _, card := range []gpu.ID{flex, a2} {
				must(t, b.SetVFs(t.Context(), card, 16))
			}
		})
	}
}

// The driver says yes and makes them later, or says yes and makes none.
func TestDriverIsSlow_T05_T06(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		late := &lateNum{Sysfs: h.Sysfs, until: time.Now().Add(12 * time.Second)}
		b := sriov.NewFunctions(late, options(h))
		must(t, b.SetVFs(t.Context(), flex, 2))
		if time.Since(late.until) < 0 {
			t.Error("it did not wait")
		}
		late.until = time.Now().Add(time.Hour)
		late.was = "2"
		wantCode(t, b.SetVFs(t.Context(), flex, 0), gpu.CodeUnavailable)
	})
}

// lateNum shows an old number of virtual functions until some time.
type lateNum struct {
	*sim.Sysfs
	until time.Time
	was   string
}

func (l *lateNum) List(dir string) ([]string, error) {
	names, err := l.Sysfs.List(dir)
	if time.Now().Before(l.until) && strings.HasSuffix(dir, flex) && l.was == "" {
		kept := names[:0]
		for _, n := range names {
			if !strings.HasPrefix(n, "virtfn") {
				kept = append(kept, n)
			}
		}
		names = kept
	}
	if time.Now().Before(l.until) && strings.HasSuffix(dir, flex) && l.was != "" {
		names = append(names, "virtfn0")
	}
	return names, err
}

func TestSRIOVManage(t *testing.T) {
	h := host(t)
	b := sriov.NewFunctions(h.Sysfs, options(h))
	wantCode(t, b.SetVFs(t.Context(), a2, 3), gpu.CodeInvalid)
	must(t, b.SetVFs(t.Context(), a2, 16))
	must(t, b.SetVFs(t.Context(), a2, 16))
	must(t, b.SetVFs(t.Context(), a2, 0))
	want := []sim.Write{
		{Path: "run", Value: sriov.DefaultTool + " -e " + a2}, {Path: "run", Value: sriov.DefaultTool + " -d " + a2},
	}
	if diff := cmp.Diff(want, writes(t, h)); diff != "" {
		t.Error(diff)
	}
	must(t, h.FailTool(sim.ToolGone, 1))
	wantCode(t, b.SetVFs(t.Context(), a2, 16), gpu.CodeDriverMissing)
}

func TestSRIOVManageLies_T06(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		o := options(h)
		var log bytes.Buffer
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
		b := sriov.NewFunctions(h.Sysfs, o)
		must(t, h.FailTool(sim.ToolIdle, 1))
		err := b.SetVFs(t.Context(), a2, 16)
		wantCode(t, err, gpu.CodeUnavailable)
		if !strings.Contains(err.Error(), "reported success, and it is not so") || num(t, h, a2) != "0" {
			t.Error(err)
		}
		must(t, h.FailTool(sim.ToolLies, 1))
		must(t, b.SetVFs(t.Context(), a2, 16))
		if num(t, h, a2) != "16" || !strings.Contains(log.String(), "level=WARN") {
			t.Error(log.String())
		}
	})
}

func TestSRIOVManageLosesTheDriver_T07_R71(t *testing.T) {
	h := host(t)
	b := sriov.NewFunctions(h.Sysfs, options(h))
	must(t, h.FailTool(sim.ToolHalf, 1))
	err := b.SetVFs(t.Context(), a2, 16)
	wantCode(t, err, gpu.CodeUnavailable)
	if !strings.Contains(err.Error(), `it left the gpu without its driver "nvidia", which is bound again`) {
		t.Error(err)
	}
	state{"nvidia", "(null)"}.want(t, h, a2)
	must(t, b.SetVFs(t.Context(), a2, 16))
	// And where it cannot be bound, the error says that.
	must(t, h.FailTool(sim.ToolHalf, 1))
	must(t, h.Inject(sim.Fault{Op: "write", Path: "bus/pci/drivers*", Errno: syscall.EIO}))
	must(t, h.Inject(sim.Fault{Op: "write", Path: "bus/pci/drivers/*/bind", Errno: syscall.EIO}))
	if err = b.SetVFs(t.Context(), a2, 0); err == nil || !strings.Contains(err.Error(), "cannot be bound again") {
		t.Error(err)
	}
}

func TestSRIOVManageWaitsForOthers_T33_R65(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		o := options(h)
		s, err := h.NVML.Open()
		must(t, err)
		reopened := false
		o.CloseNVML = closing(s.Close, &reopened)
		b := sriov.NewFunctions(h.Sysfs, o)
		must(t, h.FailTool(sim.ToolLocked, 5))
		start := time.Now()
		must(t, b.SetVFs(t.Context(), a2, 16))
		if d := time.Since(start); d != 5*time.Second || !reopened || h.NVML.Sessions() != 0 {
			t.Error(d, reopened, h.NVML.Sessions())
		}
		o.CloseNVML = nil
		b = sriov.NewFunctions(h.Sysfs, o)
		must(t, h.Watch(a2, 812, "dcgm"))
		tries := len(writes(t, h))
		wantCode(t, b.SetVFs(t.Context(), a2, 0), gpu.CodeGPUBusy)
		if n := len(writes(t, h)) - tries; n != 6 {
			t.Errorf("%d tries", n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		wantCode(t, b.SetVFs(ctx, a2, 0), gpu.CodeUnavailable)
		state{"nvidia", "(null)"}.want(t, h, a2)
	})
}

// A VM starts with one just when they are turned off: the write hangs.
func TestSetVFsHangs_T44(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		b := functions(t, h, flex, 2)
		must(t, h.Hold("0000:4d:00.1", 99, "qemu"))
		wantCode(t, b.SetVFs(t.Context(), flex, 0), gpu.CodeStuck)
		wantCode(t, b.CheckVFs(t.Context(), flex, 0), gpu.CodeStuck)
		g, _, err := b.Look(t.Context(), flex)
		if err != nil || len(g.Conditions) != 1 || g.Conditions[0].Type != gpu.Stuck {
			t.Error(g, err)
		}
		must(t, h.Release("0000:4d:00.1"))
		synctest.Wait()
		must(t, b.SetVFs(t.Context(), flex, 2))
	})
}
