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
	"gpuvirt/internal/sysfs"
	"gpuvirt/mdev"
)

func removals(t *testing.T, h *sim.Host) (n int) {
	t.Helper()
	writes, err := h.Writes()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range writes {
		if strings.HasSuffix(w.Path, "/remove") {
			n++
		}
	}
	return n
}

// NVIDIA's driver may remove a device by itself: it is given the time, and told
// only after that, and only once.
func TestRemoveVanishes_T19(t *testing.T) {
	for _, tc := range []struct {
		after  time.Duration
		writes int
		took   time.Duration
	}{{0, 0, 0}, {3 * time.Second, 0, 3 * time.Second}, {12 * time.Second, 1, 10 * time.Second}, {time.Hour, 1, 10 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			h := host(t)
			b := mdev.New(h.Sysfs, mdev.Options{})
			made := mustMake(t, b, gpu.Partition{ID: uuid, GPU: t4, Profile: "T4-1Q"})
			if err := h.Vanish(uuid, tc.after); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := b.Remove(t.Context(), made); err != nil {
				t.Fatal(err)
			}
			if n, took := removals(t, h), time.Since(start); n != tc.writes || took != tc.took {
				t.Errorf("it vanishes after %s: %d writes in %s, want %d in %s", tc.after, n, took, tc.writes, tc.took)
			}
			nothingThere(t, h, b, t4)
		})
	}
}

// While one waits for the driver, others use the GPU.
func TestRemoveWaitsWithoutTurn_T20(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		b := mdev.New(h.Sysfs, mdev.Options{})
		made := mustMake(t, b, gpu.Partition{ID: uuid, GPU: t4, Profile: "T4-1Q"})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.Remove(t.Context(), made); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		start := time.Now()
		mustMake(t, b, gpu.Partition{ID: uuid2, GPU: t4, Profile: "T4-1Q"})
		if d := time.Since(start); d != 0 {
			t.Errorf("making waited %s for removing", d)
		}
		wg.Wait()
	})
}

// A cancelled wait has removed nothing.
func TestRemoveCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		b := mdev.New(h.Sysfs, mdev.Options{})
		made := mustMake(t, b, gpu.Partition{ID: uuid, GPU: t4, Profile: "T4-1Q"})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Remove(ctx, made); !errors.Is(err, context.DeadlineExceeded) || gpu.CodeOf(err) != gpu.CodeUnavailable {
			t.Error(err)
		}
		if n := removals(t, h); n != 0 {
			t.Errorf("%d writes", n)
		}
	})
}

func TestRemoveErrno(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for errno, code := range map[syscall.Errno]gpu.Code{
			syscall.EBUSY: gpu.CodeBusy, syscall.EIO: gpu.CodeUnavailable, syscall.EACCES: gpu.CodeForbidden, syscall.EINVAL: gpu.CodeInvalid,
		} {
			h := host(t)
			b := mdev.New(h.Sysfs, mdev.Options{})
			made := mustMake(t, b, want("mbochs", "mbochs-large"))
			if err := h.Inject(sim.Fault{Op: "write", Path: remove, Errno: errno}); err != nil {
				t.Fatal(err)
			}
			err := b.Remove(t.Context(), made)
			if gpu.CodeOf(err) != code || !strings.HasPrefix(err.Error(), `cannot remove partition "`+uuid+`" from gpu "mbochs": `) {
				t.Errorf("%s: %v", errno, err)
			}
			if err := h.Clear(""); err != nil {
				t.Fatal(err)
			}
			// EAGAIN means: ask again.
			if err := h.Inject(sim.Fault{Op: "write", Path: remove, Errno: syscall.EAGAIN, Times: 2}); err != nil {
				t.Fatal(err)
			}
			if err := b.Remove(t.Context(), made); err != nil {
				t.Error(err)
			}
			nothingThere(t, h, b, "mbochs")
		}
	})
}

// The driver accepts the removal and the device stays: that is said, not hidden.
func TestRemoveReadsBack_T06(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		made := mustMake(t, mdev.New(h.Sysfs, mdev.Options{}), want("mbochs", "mbochs-large"))
		b := mdev.New(&hooked{Sysfs: h.Sysfs, swallow: true}, mdev.Options{})
		if err := b.Remove(t.Context(), made); gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "still there after 30s") {
			t.Error(err)
		}
	})
}

// stuckness returns the Stuck conditions of all GPUs, by GPU.
func stuckness(t *testing.T, b *mdev.Backend) map[gpu.ID]gpu.Condition {
	t.Helper()
	gpus, err := gpus(t, b)
	if err != nil {
		t.Fatal(err)
	}
	out := map[gpu.ID]gpu.Condition{}
	for _, g := range gpus {
		for _, c := range g.Conditions {
			if c.Type == gpu.Stuck {
				out[g.ID] = c
			}
		}
	}
	return out
}

// A write that hangs makes its GPU stuck: at once for everybody who comes later,
// only for that GPU, and only until the write comes back.
func TestMakeHangs_T44(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		b := mdev.New(h.Sysfs, mdev.Options{})
		if err := h.Inject(sim.Fault{Op: "write", Path: create, Hang: true}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err := b.Make(t.Context(), want("mbochs", "mbochs-large"))
		if gpu.CodeOf(err) != gpu.CodeStuck || !errors.Is(err, sysfs.ErrTimeout) || !strings.Contains(err.Error(), create) || time.Since(start) != 30*time.Second {
			t.Fatal(err, time.Since(start))
		}
		now := time.Now()
		for _, err := range []error{
			func() error {
				_, err := b.Make(t.Context(), gpu.Partition{ID: uuid2, GPU: "mbochs", Profile: "mbochs-small"})
				return err
			}(),
			b.Remove(t.Context(), want("mbochs", "mbochs-large")),
		} {
			if gpu.CodeOf(err) != gpu.CodeStuck || !strings.Contains(err.Error(), create) || !strings.Contains(err.Error(), start.UTC().Format(time.RFC3339)) {
				t.Error(err)
			}
		}
		mustMake(t, b, gpu.Partition{ID: uuid2, GPU: t4, Profile: "T4-1Q"})
		if _, err := b.Partitions(t.Context(), "mbochs"); err != nil {
			t.Error(err)
		}
		if c, n := stuckness(t, b), h.Sysfs.Hung(); len(c) != 1 || c["mbochs"].Since != start || n != 1 {
			t.Errorf("%+v, %d hang", c, n)
		}
		if d := time.Since(now); d != 0 {
			t.Errorf("others waited %s", d)
		}

		// It comes back, and has done what it was asked for: the device is ours.
		if err := h.Clear(""); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c := stuckness(t, b); len(c) != 0 || h.Sysfs.Hung() != 0 {
			t.Errorf("%+v", c)
		}
		mustMake(t, b, want("mbochs", "mbochs-large"))
		if err := b.Remove(t.Context(), want("mbochs", "mbochs-large")); err != nil {
			t.Error(err)
		}
		nothing := func() []gpu.Partition { p, _ := b.Partitions(t.Context(), "mbochs"); return p }
		if p := nothing(); len(p) != 0 {
			t.Errorf("%+v", p)
		}
	})
}

// Removing what a VM holds blocks in the kernel until the VM lets go.
func TestRemoveHeld_T17_T44(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		b := mdev.New(h.Sysfs, mdev.Options{})
		made := mustMake(t, b, want("mbochs", "mbochs-large"))
		dev := gpu.Hostdev{Alias: gpu.Alias(uuid), Handle: made.Handle, Model: made.DeviceAPI}
		if err := h.Libvirt.Attach(t.Context(), sim.Web1, dev, gpu.Scope{Live: true}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := b.Remove(ctx, made); gpu.CodeOf(err) != gpu.CodeStuck {
			t.Fatal(err)
		}
		if c := stuckness(t, b); len(c) != 1 {
			t.Errorf("%+v", c)
		}
		if p, err := b.Partitions(t.Context(), "mbochs"); len(p) != 1 || err != nil {
			t.Errorf("%+v, %v", p, err)
		}
		if err := h.Libvirt.Shutdown("web1"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := b.Remove(t.Context(), made); err != nil {
			t.Error(err)
		}
		nothingThere(t, h, b, "mbochs")
		if n := removals(t, h); n != 1 {
			t.Errorf("%d writes", n)
		}
	})
}
