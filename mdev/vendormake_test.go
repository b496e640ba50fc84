package mdev_test

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/internal/sysfs"
	"gpuvirt/mdev"
)

const (
	vf0     = "devices/pci0000:00/0000:00:01.0/0000:41:00.4"
	current = "nvidia/current_vgpu_type"
)

// bare fails if any virtual function of the L40S has a vGPU, foreign ones apart.
func bare(t *testing.T, h *sim.Host, foreign ...string) {
	t.Helper()
	all, err := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{}).Partitions(t.Context(), l40s)
	all = slices.DeleteFunc(all, func(p gpu.Partition) bool { return slices.Contains(foreign, p.Slot) })
	if len(all) != 0 || err != nil {
		t.Errorf("something was left behind: %+v, %v", all, err)
	}
}

// A write can fail in any way: what became of it is read. Nothing is left behind.
func TestVendorMakeErrno_T06_T49(t *testing.T) {
	for errno, code := range map[syscall.Errno]gpu.Code{
		syscall.EPERM: gpu.CodeForbidden, syscall.EACCES: gpu.CodeForbidden, syscall.EROFS: gpu.CodeForbidden,
		syscall.EIO: gpu.CodeUnavailable, syscall.EINVAL: gpu.CodeUnavailable, syscall.ENOSPC: gpu.CodeUnavailable,
		syscall.EBUSY: gpu.CodeUnavailable, syscall.ENODEV: gpu.CodeUnavailable, syscall.ENOENT: gpu.CodeUnavailable,
	} {
		card := sim.L40S(string(l40s), 0).WithVGPU(false)
		card.SRIOV.TotalVFs = 2
		h := vfHost(t, card)
		b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
		// The driver lists the type and takes none: whatever it says, it is none of capacity.
		if err := h.Inject(sim.Fault{Op: "write", Path: vf0 + "/" + current, Errno: errno}); err != nil {
			t.Fatal(err)
		}
		_, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q"))
		if gpu.CodeOf(err) != code || !errors.Is(err, errno) || !strings.HasPrefix(err.Error(), `cannot make partition "0000:41:00.0/vgpu/0" on gpu "0000:41:00.0": `) {
			t.Errorf("%s: %s: %v", errno, gpu.CodeOf(err), err)
		}
		bare(t, h)

		// The same answer while somebody takes the card, or the place, or makes this very vGPU.
		raced := &hooked{Sysfs: h.Sysfs}
		v := mdev.NewVendor(raced, mdev.VendorOptions{Types: types(h)})
		for _, tc := range []struct {
			name string
			p    gpu.Partition
			want gpu.Code
		}{
			{"another size", on(l40s, 1, "L40S-48Q"), gpu.CodeNoCapacity},
			{"another type in its place", on(l40s, 0, "L40S-8C"), gpu.CodeConflict},
			{"the same in its place", on(l40s, 0, "L40S-8Q"), ""},
		} {
			raced.beforeWrite = func(string) {
				raced.beforeWrite = nil
				if err := h.Clear(""); err != nil {
					t.Error(err)
				}
				if _, err := b.Make(t.Context(), tc.p); err != nil {
					t.Error(err)
				}
				if err := h.Inject(sim.Fault{Op: "write", Path: vf0 + "/" + current, Errno: errno}); err != nil {
					t.Error(err)
				}
			}
			made, err := v.Make(t.Context(), on(l40s, 0, "L40S-8Q"))
			if tc.want == "" && (err != nil || made.Profile != "L40S-8Q") || tc.want != "" && gpu.CodeOf(err) != tc.want {
				t.Errorf("%s, %s: %+v, %v", errno, tc.name, made, err)
			}
			if err := errors.Join(h.Clear(""), b.Remove(t.Context(), tc.p)); err != nil {
				t.Fatal(err)
			}
			bare(t, h)
		}
	}
}

func TestVendorMakeTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := vfHost(t)
		b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
		if err := h.Inject(sim.Fault{Op: "write", Path: vf0 + "/" + current, Errno: syscall.EAGAIN, Times: 3}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q")); err != nil {
			t.Error(err)
		}
		if err := h.Inject(sim.Fault{Op: "write", Path: vf0[:len(vf0)-1] + "5/" + current, Errno: syscall.EAGAIN}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1100*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := b.Make(ctx, on(l40s, 1, "L40S-8Q"))
		if gpu.CodeOf(err) != gpu.CodeUnavailable || !errors.Is(err, syscall.EAGAIN) || time.Since(start) != 1100*time.Millisecond {
			t.Error(err, time.Since(start))
		}
		bare(t, h, "0")
	})
}

func TestVendorMakeChecksTheWish(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
	for name, tc := range map[string]struct {
		change func(*gpu.Partition)
		code   gpu.Code
	}{
		"no id":            {func(p *gpu.Partition) { p.ID = "" }, gpu.CodeInvalid},
		"a uuid":           {func(p *gpu.Partition) { p.ID = uuid }, gpu.CodeInvalid},
		"of another gpu":   {func(p *gpu.Partition) { p.ID = "0000:42:00.0/vgpu/0" }, gpu.CodeInvalid},
		"of another kind":  {func(p *gpu.Partition) { p.ID = "0000:41:00.0/vf/0" }, gpu.CodeInvalid},
		"zeros in front":   {func(p *gpu.Partition) { p.ID = "0000:41:00.0/vgpu/00" }, gpu.CodeInvalid},
		"negative":         {func(p *gpu.Partition) { p.ID = "0000:41:00.0/vgpu/-1" }, gpu.CodeInvalid},
		"another slot":     {func(p *gpu.Partition) { p.Slot = "1" }, gpu.CodeInvalid},
		"another kind":     {func(p *gpu.Partition) { p.Kind = gpu.KindVF }, gpu.CodeInvalid},
		"no such function": {func(p *gpu.Partition) { p.ID, p.Slot = "0000:41:00.0/vgpu/32", "" }, gpu.CodeNotFound},
		"another parent":   {func(p *gpu.Partition) { p.Parent = "0000:41:00.5" }, gpu.CodeConflict},
		"another address":  {func(p *gpu.Partition) { p.Handle.PCIAddress = "0000:41:00.5" }, gpu.CodeConflict},
		"no profile":       {func(p *gpu.Partition) { p.Profile = "" }, gpu.CodeProfileUnknown},
		"case (R76)":       {func(p *gpu.Partition) { p.Profile = "l40s-8q" }, gpu.CodeProfileUnknown},
		"a path":           {func(p *gpu.Partition) { p.Profile = "../1152" }, gpu.CodeProfileUnknown},
	} {
		p := on(l40s, 0, "L40S-8Q")
		tc.change(&p)
		if _, err := b.Make(t.Context(), p); gpu.CodeOf(err) != tc.code || !strings.HasPrefix(err.Error(), "cannot make partition ") {
			t.Errorf("%s: %s: %v", name, gpu.CodeOf(err), err)
		}
	}
	bare(t, h)
	// However an address is written, it is the same function (T37).
	p := on(l40s, 0, "L40S-8Q")
	p.Parent, p.Handle.PCIAddress = "00000000:41:00.4", "0000:41:00.4"
	if _, err := b.Make(t.Context(), p); err != nil {
		t.Error(err)
	}
}

// Another size is active: that is said, with what is in the way.
func TestVendorOtherSize_T40(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
	if _, err := b.Make(t.Context(), on(l40s, 4, "L40S-8C")); err != nil {
		t.Fatal(err)
	}
	_, err1 := b.Make(t.Context(), on(l40s, 0, "L40S-1Q"))
	_, err2 := b.Place(t.Context(), l40s, "L40S-1Q", nil)
	for _, err := range []error{err1, err2} {
		e, _ := errors.AsType[*gpu.Error](err)
		if gpu.CodeOf(err) != gpu.CodeNoCapacity || !strings.Contains(err.Error(), "another vGPU size is active on this card (L40S-8C)") {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]gpu.Blocker{{Kind: "partition", ID: "0000:41:00.0/vgpu/4", Name: "L40S-8C"}}, e.Blockers); diff != "" {
			t.Error(diff)
		}
	}
	bare(t, h, "4")
}

func TestVendorPlace_T37(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
	for _, i := range []int{0, 2} {
		if _, err := b.Make(t.Context(), on(l40s, i, "L40S-8Q")); err != nil {
			t.Fatal(err)
		}
	}
	place := func(taken ...gpu.Handle) string {
		t.Helper()
		p, err := b.Place(t.Context(), l40s, "L40S-8Q", taken)
		if err != nil {
			t.Fatal(err)
		}
		want := on(l40s, 0, "L40S-8Q")
		want.ID, want.Slot = p.ID, p.Slot
		want.Native, want.Parent, want.Handle.PCIAddress, want.DeviceAPI = "1152", p.Parent, p.Parent, "vfio-pci"
		if diff := cmp.Diff(want, p); diff != "" || p.ID != "0000:41:00.0/vgpu/"+p.Slot {
			t.Error(p.ID, diff)
		}
		return p.Slot + " " + p.Parent
	}
	if got := place(); got != "1 0000:41:00.5" {
		t.Error(got)
	}
	if got := place(gpu.Handle{MdevUUID: uuid}, gpu.Handle{PCIAddress: "00000000:41:00.5"}, gpu.Handle{PCIAddress: "0000:41:00.7"}); got != "4 0000:41:01.0" {
		t.Error(got)
	}
	var all []gpu.Handle
	for i := range 32 {
		all = append(all, gpu.Handle{PCIAddress: gpu.Address{Bus: 0x41, Slot: uint8((4 + i) / 8), Function: uint8((4 + i) % 8)}.String()})
	}
	_, err := b.Place(t.Context(), l40s, "L40S-8Q", all)
	if gpu.CodeOf(err) != gpu.CodeNoCapacity || !strings.Contains(err.Error(), "definitions of VMs name every free virtual function on which it fits (30)") {
		t.Error(err)
	}
	for id, code := range map[gpu.ID]gpu.Code{l40s: gpu.CodeProfileUnknown, a2: gpu.CodeNotFound} {
		if _, err := b.Place(t.Context(), id, "L40S-9Q", nil); gpu.CodeOf(err) != code {
			t.Error(err)
		}
	}
}

// The driver says yes and does nothing, or something else, or what it did cannot be seen.
func TestVendorReadsBack_T06(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(&hooked{Sysfs: h.Sysfs, swallow: true}, mdev.VendorOptions{})
	if _, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q")); gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "has no vGPU") {
		t.Error(err)
	}
	plain := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
	other := &hooked{Sysfs: h.Sysfs, swallow: true}
	other.beforeWrite = func(string) {
		if _, err := plain.Make(t.Context(), on(l40s, 0, "L40S-1B")); err != nil {
			t.Error(err)
		}
	}
	if _, err := mdev.NewVendor(other, mdev.VendorOptions{}).Make(t.Context(), on(l40s, 0, "L40S-8Q")); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Error(err)
	}
	if err := plain.Remove(t.Context(), on(l40s, 0, "L40S-1B")); err != nil {
		t.Error(err) // it was somebody else's, and was left
	}
	blind := &hooked{Sysfs: h.Sysfs}
	blind.beforeWrite = func(file string) {
		blind.beforeWrite = nil
		if err := h.Inject(sim.Fault{Op: "link", Path: path.Join(vf0, "iommu_group"), Errno: syscall.EIO}); err != nil {
			t.Error(err)
		}
	}
	if _, err := mdev.NewVendor(blind, mdev.VendorOptions{}).Make(t.Context(), on(l40s, 0, "L40S-8Q")); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Error(err)
	}
	if err := h.Clear(""); err != nil {
		t.Fatal(err)
	}
	bare(t, h)
}

// A write that hangs makes its GPU stuck, only that, and only until it comes back.
func TestVendorHangs_T44(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := sim.L40S("0000:c1:00.0", 1).WithVGPU(false)
		h := vfHost(t, sim.L40S(string(l40s), 0).WithVGPU(false), other)
		b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
		if err := h.Inject(sim.Fault{Op: "write", Path: vf0 + "/" + current, Hang: true}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q"))
		if gpu.CodeOf(err) != gpu.CodeStuck || !errors.Is(err, sysfs.ErrTimeout) || time.Since(start) != 30*time.Second {
			t.Fatal(err, time.Since(start))
		}
		now := time.Now()
		_, err = b.Make(t.Context(), on(l40s, 1, "L40S-8Q"))
		for _, err := range []error{err, b.Remove(t.Context(), on(l40s, 0, "L40S-8Q"))} {
			if gpu.CodeOf(err) != gpu.CodeStuck || !strings.Contains(err.Error(), current) {
				t.Error(err)
			}
		}
		if got := condition(t, b, l40s); got != "Stuck WriteHangs" {
			t.Errorf("condition %q", got)
		}
		if _, err := b.Make(t.Context(), on("0000:c1:00.0", 0, "L40S-1Q")); err != nil {
			t.Error(err)
		}
		if _, err := b.Partitions(t.Context(), l40s); err != nil || time.Since(now) != 0 {
			t.Error(err, time.Since(now))
		}
		if err := h.Clear(""); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		// It came back and has done what it was asked for.
		if p, err := b.Partitions(t.Context(), l40s); len(p) != 1 || err != nil {
			t.Error(p, err)
		}
		if err := b.Remove(t.Context(), on(l40s, 0, "L40S-8Q")); err != nil {
			t.Error(err)
		}
		bare(t, h)
	})
}
