package mdev_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mdev"
)

// zeros counts how often the driver was told to remove a vGPU.
func zeros(t *testing.T, h *sim.Host) (n int) {
	t.Helper()
	writes, err := h.Writes()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range writes {
		if strings.HasSuffix(w.Path, current) && w.Value == "0" {
			n++
		}
	}
	return n
}

func attached(t *testing.T, h *sim.Host, vm string, p gpu.Partition) {
	t.Helper()
	dev := gpu.Hostdev{Alias: "ua-gpu", Handle: p.Handle, Model: p.DeviceAPI}
	if err := h.Libvirt.Attach(t.Context(), vm, dev, gpu.Scope{Live: true}); err != nil {
		t.Fatal(err)
	}
}

// The driver lets go of a vGPU some seconds after its VM: it is told again for as long.
func TestVendorRemoveLingers_T20(t *testing.T) {
	for _, tc := range []struct {
		terse   bool
		lingers time.Duration
		writes  int
		took    time.Duration
		code    gpu.Code
	}{
		{false, 0, 1, 0, ""},
		{false, 3500 * time.Millisecond, 5, 4 * time.Second, ""},
		{true, 3500 * time.Millisecond, 5, 4 * time.Second, ""},
		{false, time.Minute, 10, 10 * time.Second, gpu.CodeGPUBusy},
		{true, time.Minute, 10, 10 * time.Second, gpu.CodeGPUBusy},
	} {
		synctest.Test(t, func(t *testing.T) {
			card := sim.L40S(string(l40s), 0).WithVGPU(false)
			card.VGPU.Linger, card.VGPU.Terse, card.SRIOV.TotalVFs = tc.lingers, tc.terse, 2
			h := vfHost(t, card)
			b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
			made, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q"))
			if err != nil {
				t.Fatal(err)
			}
			attached(t, h, sim.Web1, made)
			if err := h.Libvirt.Shutdown("web1"); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			err = b.Remove(t.Context(), made)
			if took := time.Since(start); took != tc.took || tc.code == "" && err != nil || tc.code != "" && gpu.CodeOf(err) != tc.code {
				t.Errorf("%+v: %v after %s", tc, err, took)
			}
			if n := zeros(t, h); n < tc.writes || n > tc.writes+1 {
				t.Errorf("%+v: told %d times", tc, n)
			}
		})
	}
}

// While one waits for the driver, others use the GPU; a cancelled wait ends.
func TestVendorRemoveWaitsWithoutTurn_T20(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card := sim.L40S(string(l40s), 0).WithVGPU(false)
		card.VGPU.Linger = 5 * time.Second
		h := vfHost(t, card)
		b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
		made, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q"))
		if err != nil {
			t.Fatal(err)
		}
		attached(t, h, sim.Web1, made)
		if err := h.Libvirt.Shutdown("web1"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if err := b.Remove(ctx, made); !errors.Is(err, context.DeadlineExceeded) || gpu.CodeOf(err) != gpu.CodeUnavailable {
			t.Error(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.Remove(t.Context(), made); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		start := time.Now()
		if _, err := b.Make(t.Context(), on(l40s, 1, "L40S-8Q")); err != nil || time.Since(start) != 0 {
			t.Error(err, time.Since(start))
		}
		wg.Wait()
		bare(t, h, "1")
	})
}

// What a VM has open stays, whoever asks; and whoever may say so is asked each time.
func TestVendorRemoveHeld_T17_R45(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := vfHost(t)
		asked := 0
		b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Unused: func(_ context.Context, p gpu.Partition) error {
			if asked++; p.Handle.PCIAddress != "0000:41:00.4" || p.Profile != "L40S-8Q" {
				t.Errorf("asked of %+v", p)
			}
			if asked > 3 {
				return gpu.Errorf(gpu.CodeBusy, "vm web1 has it")
			}
			return nil
		}})
		made, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q"))
		if err != nil {
			t.Fatal(err)
		}
		attached(t, h, sim.Web1, made)
		if err := b.Remove(t.Context(), made); gpu.CodeOf(err) != gpu.CodeBusy || !strings.Contains(err.Error(), "vm web1 has it") || zeros(t, h) != 3 {
			t.Error(err, zeros(t, h))
		}
		plain := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{ClearWait: -1})
		start := time.Now()
		if err := plain.Remove(t.Context(), made); gpu.CodeOf(err) != gpu.CodeGPUBusy || time.Since(start) != 0 {
			t.Error(err, time.Since(start))
		}
		// A function without a vGPU is given to nobody.
		dev := gpu.Hostdev{Alias: "ua-gpu2", Handle: gpu.Handle{PCIAddress: "0000:41:00.5"}}
		if err := h.Libvirt.Attach(t.Context(), sim.Web2, dev, gpu.Scope{Live: true}); err == nil || !strings.Contains(err.Error(), "No such device") {
			t.Error(err)
		}
	})
}

// The next owner's vGPU is not the one that was meant (R45).
func TestVendorRemoveMeansOne_R45(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
	made, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q"))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*gpu.Partition){
		"another profile": func(p *gpu.Partition) { p.Profile, p.Native = "L40S-8C", "" },
		"another address": func(p *gpu.Partition) { p.Handle.PCIAddress = "0000:41:00.5" },
	} {
		p := made
		change(&p)
		if err := b.Remove(t.Context(), p); gpu.CodeOf(err) != gpu.CodeConflict {
			t.Errorf("%s: %v", name, err)
		}
	}
	if zeros(t, h) != 0 {
		t.Error("it was touched")
	}
	p := made
	p.ID = uuid
	if err := b.Remove(t.Context(), p); gpu.CodeOf(err) != gpu.CodeInvalid {
		t.Error(err)
	}
	// What has gone with its function, its card or the boot is gone.
	for _, p := range []gpu.Partition{on(l40s, 31, "L40S-8Q"), on(l40s, 99, "L40S-8Q"), on("0000:42:00.0", 0, "L40S-8Q")} {
		if err := b.Remove(t.Context(), p); err != nil {
			t.Errorf("%s: %v", p.ID, err)
		}
	}
	if err := h.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(t.Context(), made); err != nil {
		t.Error(err)
	}
}

func TestVendorRemoveErrno(t *testing.T) {
	for errno, code := range map[syscall.Errno]gpu.Code{
		syscall.EPERM: gpu.CodeGPUBusy, syscall.EIO: gpu.CodeGPUBusy, syscall.EBUSY: gpu.CodeGPUBusy, syscall.EINVAL: gpu.CodeGPUBusy,
		syscall.EACCES: gpu.CodeForbidden, syscall.EROFS: gpu.CodeForbidden,
	} {
		synctest.Test(t, func(t *testing.T) {
			card := sim.L40S(string(l40s), 0).WithVGPU(false)
			card.SRIOV.TotalVFs = 2
			h := vfHost(t, card)
			b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
			made, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q"))
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Inject(sim.Fault{Op: "write", Path: vf0 + "/" + current, Errno: errno}); err != nil {
				t.Fatal(err)
			}
			err = b.Remove(t.Context(), made)
			if gpu.CodeOf(err) != code || !errors.Is(err, errno) || !strings.HasPrefix(err.Error(), `cannot remove partition "0000:41:00.0/vgpu/0" from gpu "0000:41:00.0": `) {
				t.Errorf("%s: %v", errno, err)
			}
			// The same answer from a driver that has done it, or has been told by others.
			raced := &hooked{Sysfs: h.Sysfs}
			raced.beforeWrite = func(string) {
				raced.beforeWrite = nil
				if err := errors.Join(h.Clear(""), b.Remove(t.Context(), made), h.Inject(sim.Fault{Op: "write", Path: vf0 + "/" + current, Errno: errno})); err != nil {
					t.Error(err)
				}
			}
			if err := mdev.NewVendor(raced, mdev.VendorOptions{}).Remove(t.Context(), made); err != nil {
				t.Errorf("%s: %v", errno, err)
			}
			bare(t, h)
		})
	}
}

// The driver accepts the removal and the vGPU stays: that is said, not hidden.
func TestVendorRemoveReadsBack_T06(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := vfHost(t)
		made, err := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{}).Make(t.Context(), on(l40s, 0, "L40S-8Q"))
		if err != nil {
			t.Fatal(err)
		}
		b := mdev.NewVendor(&hooked{Sysfs: h.Sysfs, swallow: true}, mdev.VendorOptions{})
		if err := b.Remove(t.Context(), made); gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "still there after 10s") {
			t.Error(err)
		}
	})
}
