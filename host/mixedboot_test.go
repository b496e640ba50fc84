package host_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

// After a reboot sizes are mixed again before the first vGPU, and these come back in an
// order in which all of them find a place; twice is no write (T10).
func TestMixedSizeAfterReboot_T10(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newMixedLab(t, mdev)
		addVMs(t, l, 8)
		if op := l.apply("a=vm1:L40S-2Q", "b=vm2:L40S-4C", "c=vm3:L40S-16Q", "d=vm4:L40S-24Q"); op.Status != operation.Done {
			t.Fatalf("%+v", op.Problem)
		}
		want := l.vgpusOn(l40s)
		if err := l.sim.Reboot(); err != nil {
			t.Fatal(err)
		}
		n := l.sets()
		done, err := l.restore(time.Minute)
		if err != nil || len(done) != 4 || l.sets() != n+1 {
			t.Fatalf("%+v, %v, %d calls", done, err, l.sets()-n)
		}
		if got := l.vgpusOn(l40s); !slices.Equal(got, want) || l.degraded(l40s) != "" {
			t.Errorf("%q, %q", got, l.degraded(l40s))
		}
		writes := l.wrote()
		if _, err := l.restore(time.Minute); err != nil || l.sets() != n+1 || l.wrote() != writes {
			t.Errorf("the second restore: %v, %d calls", err, l.sets()-n)
		}
	}
}

// Where sizes cannot be mixed at boot no vGPU is made: the first would decide which of the
// others get none.
func TestMixedSizeFailsAtBoot(t *testing.T) {
	l := newMixedLab(t, false)
	addVMs(t, l, 8)
	if op := l.apply("a=vm1:L40S-4Q", "b=vm2:L40S-24Q"); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Change(string(l40s), func(c *sim.Card) { c.VGPU.OneSize = true }); err != nil { // another driver
		t.Fatal(err)
	}
	const wait = 8 * time.Second
	began := time.Now()
	done, err := l.restore(wait)
	if err == nil || !strings.Contains(err.Error(), "cannot restore mixed sizes of vGPUs of gpu "+string(l40s)) || time.Since(began) >= wait {
		t.Errorf("%v, after %s", err, time.Since(began))
	}
	for _, d := range done {
		if d.Made || d.Err == nil {
			t.Errorf("%+v", d)
		}
	}
	if why := l.degraded(l40s); !strings.Contains(why, "asked for mixed sizes on, but NVIDIA's driver has no mixed sizes") {
		t.Errorf("%q", why)
	}
}

// Where all vGPUs of a GPU have one size they come back without the mode that the driver does
// not have any more, and the boot goes on long before its limit.
func TestOneSizeWithoutMixedAtBoot(t *testing.T) {
	l := newMixedLab(t, false)
	addVMs(t, l, 8)
	if op := l.apply("a=vm1:L40S-24Q", "b=vm2:L40S-24C"); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Change(string(l40s), func(c *sim.Card) { c.VGPU.OneSize = true }); err != nil { // another driver
		t.Fatal(err)
	}
	const wait = 8 * time.Second
	began := time.Now()
	done, err := l.restore(wait)
	if err == nil || !strings.Contains(err.Error(), "cannot restore mixed sizes of vGPUs of gpu "+string(l40s)) || time.Since(began) >= wait {
		t.Errorf("%v, after %s", err, time.Since(began))
	}
	for _, d := range done {
		if !d.Made || d.Err != nil {
			t.Errorf("%+v", d)
		}
	}
}

// Those behind one that does not come have their turn before a limit that is near.
func TestMixedSizeOrderBeforeTheLimit(t *testing.T) {
	l := newMixedLab(t, false)
	addVMs(t, l, 8)
	if op := l.apply("a=vm1:L40S-24Q", "b=vm2:L40S-2Q", "c=vm3:L40S-2B"); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	first, err := l.Assignment(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Partition(t.Context(), first.Partition)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	l.mustSetVFs(l40s, shareVFs)
	l.inject(sim.Fault{Op: "write", Path: "devices/*/*/" + p.Parent + "/nvidia/current_vgpu_type", Errno: syscall.EIO})
	_, err = l.restore(8 * time.Second)
	got := slices.Sorted(slices.Values(l.vgpusOn(l40s)))
	if err == nil || !slices.Equal(got, []string{"L40S-2B", "L40S-2Q"}) {
		t.Errorf("%q, %v", got, err)
	}
}

// Somebody else's vGPU that is there at boot does not go by being waited for: that is told
// at once, and what the driver still makes beside it comes back.
func TestMixedSizeBehindForeignAtBoot(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newMixedLab(t, mdev)
		addVMs(t, l, 8)
		if op := l.apply("a=vm1:L40S-4Q", "b=vm2:L40S-24Q"); op.Status != operation.Done {
			t.Fatalf("%+v", op.Problem)
		}
		if err := l.sim.Reboot(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.sim.RunTool(t.Context(), "sriov-manage", "-e", string(l40s)); err != nil {
			t.Fatal(err)
		}
		file, text := typeFile("0000:61:01.0"), "1150"
		if mdev {
			file, text = "bus/pci/devices/0000:61:01.0/mdev_supported_types/nvidia-1150/create", "0b6e5c5e-9f3d-4c62-8f0e-111111111111"
		}
		if err := l.sim.Sysfs.Write(t.Context(), file, text); err != nil { // an L40S-4Q
			t.Fatal(err)
		}
		began, n := time.Now(), l.sets()
		done, err := l.restore(time.Minute)
		if err == nil || !strings.Contains(err.Error(), "cannot restore mixed sizes of vGPUs of gpu "+string(l40s)) ||
			!strings.Contains(err.Error(), "a vGPU is on it (") || l.sets() != n || time.Since(began) > 30*time.Second {
			t.Errorf("%v, after %s", err, time.Since(began))
		}
		for _, d := range done {
			if fits := d.Record.Profile == "L40S-4Q"; d.Made != fits || (d.Err == nil) != fits {
				t.Errorf("%+v", d)
			}
		}
		if got := l.vgpusOn(l40s); !slices.Equal(got, []string{"L40S-4Q", "L40S-4Q"}) {
			t.Errorf("%q", got)
		}
	}
}

// Where one in the order is not taken at first, those behind it do not take its place
// meanwhile; one that does not come keeps the others no longer than need be.
func TestMixedSizeOrderAtBoot(t *testing.T) {
	l := newMixedLab(t, false)
	addVMs(t, l, 8)
	if op := l.apply("a=vm1:L40S-2Q", "b=vm2:L40S-4C", "c=vm3:L40S-16Q", "d=vm4:L40S-24Q", "e=vm5:L40S-2B"); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	middle, err := l.Assignment(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Partition(t.Context(), middle.Partition)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(times int) {
		t.Helper()
		if err := l.sim.Reboot(); err != nil {
			t.Fatal(err)
		}
		l.inject(sim.Fault{Op: "write", Path: "devices/*/*/" + p.Parent + "/nvidia/current_vgpu_type", Errno: syscall.EIO, Times: times})
	}
	refuse(1)
	if _, err := l.restore(time.Minute); err != nil || len(l.vgpusOn(l40s)) != 5 {
		t.Errorf("%q, %v", l.vgpusOn(l40s), err)
	}
	refuse(0)
	_, err = l.restore(9 * time.Second)
	got := slices.Sorted(slices.Values(l.vgpusOn(l40s)))
	if err == nil || !slices.Equal(got, []string{"L40S-16Q", "L40S-24Q", "L40S-2B", "L40S-2Q"}) {
		t.Errorf("%q, %v", got, err)
	}
}
