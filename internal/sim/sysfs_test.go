package sim

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sysfs"
)

const (
	uuid   = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
	uuid2  = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002"
	mbochs = "class/mdev_bus/mbochs/mdev_supported_types/mbochs-"
	t4     = "class/mdev_bus/0000:08:00.0/mdev_supported_types/nvidia-"
	gvtg   = "class/mdev_bus/0000:00:02.0/mdev_supported_types/i915-GVTg_V5_"
	remove = "bus/mdev/devices/" + uuid + "/remove"
)

func open(t *testing.T, dir string, cards ...Card) *Host {
	t.Helper()
	h, err := Open(dir, cards...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func free(t *testing.T, h *Host, types ...string) (out []uint64) {
	t.Helper()
	for _, typ := range types {
		n, err := h.Sysfs.ReadUint(typ + "/available_instances")
		must(t, err)
		out = append(out, n)
	}
	return out
}

func write(t *testing.T, h *Host, name, value string, want syscall.Errno) {
	t.Helper()
	err := h.Sysfs.Write(t.Context(), name, value)
	if (want == 0 && err != nil) || (want != 0 && !errors.Is(err, want)) {
		t.Errorf("write of %q to %q: %v, want %v", value, name, err, want)
	}
}

func TestCreateAndRemove(t *testing.T) {
	h := open(t, t.TempDir())
	if got := free(t, h, mbochs+"small", mbochs+"medium", mbochs+"large"); !slices.Equal(got, []uint64{64, 16, 4}) {
		t.Error(got)
	}
	for value, errno := range map[string]syscall.Errno{
		"": syscall.EINVAL, uuid[1:]: syscall.EINVAL, uuid + "\n\n": syscall.EINVAL, strings.Repeat("x", 36): syscall.EINVAL,
		strings.ToUpper(uuid) + "\n": 0,
	} {
		write(t, h, mbochs+"large/create", value, errno)
	}
	// Taken on the whole host.
	write(t, h, mbochs+"large/create", uuid, syscall.EEXIST)
	write(t, h, t4+"230/create", uuid, syscall.EEXIST)
	if got := free(t, h, mbochs+"small", mbochs+"medium", mbochs+"large"); !slices.Equal(got, []uint64{48, 12, 3}) {
		t.Error(got)
	}
	const bus = "bus/mdev/devices/"
	target, err := h.Sysfs.Readlink(bus + uuid)
	dir := path.Join(bus, target)
	if dir != "devices/virtual/mbochs/mbochs/"+uuid || err != nil {
		t.Error(dir, err)
	}
	for name, base := range map[string]string{"mdev_type": "mbochs-large", "iommu_group": "101", "subsystem": "mdev"} {
		if target, err := h.Sysfs.Readlink(path.Join(dir, name)); path.Base(target) != base || err != nil {
			t.Error(name, target, err)
		}
	}
	write(t, h, remove, "x", syscall.EINVAL)
	write(t, h, remove, "0", 0)
	write(t, h, remove, "1", 0)
	write(t, h, remove, "1", syscall.ENOENT)
	if got := free(t, h, mbochs+"small", mbochs+"medium", mbochs+"large"); !slices.Equal(got, []uint64{64, 16, 4}) {
		t.Error(got)
	}
}

func TestDriversRules_T40(t *testing.T) {
	h := open(t, t.TempDir())
	// NVIDIA: one size; letters mix; EIO for the rest.
	before := free(t, h, t4+"230", t4+"231", t4+"232", t4+"233", t4+"234")
	if !slices.Equal(before, []uint64{16, 8, 4, 2, 1}) {
		t.Error(before)
	}
	write(t, h, t4+"230/create", uuid, 0)
	if got := free(t, h, t4+"230", t4+"225", t4+"222", t4+"231", t4+"234", t4+"319"); !slices.Equal(got, []uint64{15, 15, 15, 0, 0, 0}) {
		t.Error(got)
	}
	write(t, h, t4+"231/create", uuid2, syscall.EIO)
	write(t, h, t4+"222/create", uuid2, 0)
	// Intel: two budgets, the smaller one decides.
	if got := free(t, h, gvtg+"2", gvtg+"4", gvtg+"8"); !slices.Equal(got, []uint64{1, 3, 7}) {
		t.Error(got)
	}
	write(t, h, gvtg+"2/create", strings.Replace(uuid, "8", "a", 1), 0)
	if got := free(t, h, gvtg+"2", gvtg+"4", gvtg+"8"); !slices.Equal(got, []uint64{0, 1, 3}) {
		t.Error(got)
	}
	write(t, h, gvtg+"2/create", strings.Replace(uuid, "8", "b", 1), syscall.ENOSPC)
}

func TestErrors(t *testing.T) {
	h := open(t, t.TempDir())
	s := h.Sysfs
	for what, tc := range map[string]struct {
		err  error
		want error
	}{
		"read nothing":       {second(s.Read("class/mdev_bus/x/vendor")), fs.ErrNotExist},
		"read a directory":   {second(s.Read("class/mdev_bus")), syscall.EISDIR},
		"read write-only":    {second(s.Read(mbochs + "large/create")), syscall.EACCES},
		"read below a file":  {second(s.Read(mbochs + "large/name/x")), syscall.ENOTDIR},
		"list a file":        {second(s.List(mbochs + "large/name")), syscall.ENOTDIR},
		"list nothing":       {second(s.List("class/x")), fs.ErrNotExist},
		"link of a file":     {second(s.Readlink(mbochs + "large/name")), syscall.EINVAL},
		"link of nothing":    {second(s.Readlink("class/x")), fs.ErrNotExist},
		"write read-only":    {s.Write(t.Context(), mbochs+"large/name", "x"), syscall.EACCES},
		"write nothing":      {s.Write(t.Context(), mbochs+"large/new", "x"), fs.ErrNotExist},
		"write a directory":  {s.Write(t.Context(), "class", "x"), syscall.EISDIR},
		"write after cancel": {s.Write(cancelled(t), mbochs+"large/create", uuid), context.Canceled},
	} {
		if !errors.Is(tc.err, tc.want) || !strings.HasPrefix(tc.err.Error(), "cannot ") {
			t.Errorf("%s: %v, want %v", what, tc.err, tc.want)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func cancelled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// What the simulated sysfs answers, the real one answers over the same tree.
func TestSameAsRealSysfs(t *testing.T) {
	h := open(t, t.TempDir(), append(DefaultCards(), Flex("0000:4d:00.0", 1), RX("0000:03:00.0"))...)
	write(t, h, mbochs+"large/create", uuid, 0)
	write(t, h, t4+"232/create", uuid2, 0)
	write(t, h, devices+"0000:4d:00.0/sriov_numvfs", "9", 0)
	write(t, h, devices+"0000:4d:00.1/driver_override", "vfio-pci", 0)
	write(t, h, drivers+"xe/unbind", "0000:4d:00.1", 0)
	write(t, h, "bus/pci/drivers_probe", "0000:4d:00.1", 0)
	must(t, h.view(func(s *state) error { h.tree = h.build(s); return nil }))
	dir := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(h.tree.nodes)) {
		n, full := h.tree.nodes[name], filepath.Join(dir, name)
		switch {
		case n.dir:
			must(t, os.MkdirAll(full, 0o755))
		case n.link != "":
			must(t, os.Symlink(n.link, full))
		default:
			must(t, os.WriteFile(full, []byte(n.text), 0o644))
		}
	}
	root, err := sysfs.Open(dir)
	must(t, err)
	defer root.Close()
	same := func(what, name string, a, b any, aerr, berr error) {
		t.Helper()
		ae, _ := errors.AsType[syscall.Errno](aerr)
		be, _ := errors.AsType[syscall.Errno](berr)
		if diff := cmp.Diff(a, b); diff != "" || ae != be || (aerr == nil) != (berr == nil) {
			t.Errorf("%s of %q: sim says %v, %v; the kernel %v, %v", what, name, a, aerr, b, berr)
		}
	}
	for name, n := range h.tree.nodes {
		if n.unread || name == "" {
			continue
		}
		a, aerr := h.Sysfs.Read(name)
		b, berr := root.Read(name)
		same("Read", name, a, b, aerr, berr)
		a, aerr = h.Sysfs.Readlink(name)
		b, berr = root.Readlink(name)
		same("Readlink", name, a, b, aerr, berr)
		if n.dir || n.link != "" {
			a, aerr := h.Sysfs.List(name)
			b, berr := root.List(name)
			same("List", name, a, b, aerr, berr)
		}
		c, cerr := h.Sysfs.Exists(name + "x")
		d, derr := root.Exists(name + "x")
		same("Exists", name+"x", c, d, cerr, derr)
	}
}

func TestStateOutlivesTheDaemon(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	boot, err := h.BootID()
	must(t, err)
	write(t, h, mbochs+"large/create", uuid, 0)

	// Another process, at the same time, sees and changes the same host.
	other := open(t, dir, Mbochs())
	if again, err := other.BootID(); again != boot || err != nil {
		t.Error(again, boot, err)
	}
	if got := free(t, other, mbochs+"large", t4+"230"); !slices.Equal(got, []uint64{3, 16}) {
		t.Error(got)
	}
	write(t, other, remove, "1", 0)
	if got := free(t, h, mbochs+"large"); got[0] != 4 {
		t.Error(got)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			id := strings.Replace(uuid, "83", "8"+string(rune('a'+i%6)), 1)[:35] + string(rune('0'+i))
			if err := []*Host{h, other}[i%2].Sysfs.Write(t.Context(), mbochs+"small/create", id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if names, err := h.Sysfs.List("bus/mdev/devices"); len(names) != 8 || err != nil {
		t.Error(names, err)
	}

	must(t, h.Reboot())
	if again, err := other.BootID(); again == boot || err != nil {
		t.Error("the same boot", err)
	}
	if names, err := other.Sysfs.List("bus/mdev/devices"); len(names) != 0 || err != nil {
		t.Error(names, err)
	}
	if w, err := h.Writes(); len(w) != 10 || err != nil {
		t.Errorf("%d, %v", len(w), err)
	}
}

func TestRemoveBlocks_T44(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, t.TempDir())
		write(t, h, mbochs+"large/create", uuid, 0)
		must(t, h.Hold(uuid, 77, "vfio-test"))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		err := h.Sysfs.Write(ctx, remove, "1")
		hung, ok := errors.AsType[*sysfs.HungError](err)
		if !ok || time.Since(start) != 3*time.Second || h.Sysfs.Hung() != 1 {
			t.Fatal(err, time.Since(start))
		}
		write(t, h, "devices/virtual/mbochs/mbochs/"+uuid+"/remove", "1", syscall.EAGAIN)
		if ok, err := h.Sysfs.Exists("bus/mdev/devices/" + uuid); !ok || err != nil {
			t.Error(ok, err)
		}
		must(t, h.Release(uuid))
		<-hung.Done()
		if ok, err := h.Sysfs.Exists("bus/mdev/devices/" + uuid); ok || err != nil {
			t.Error(ok, err)
		}
	})
}

func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, t.TempDir())
		must(t, h.Inject(Fault{Path: "devices/virtual/mbochs/*/*/mbochs-*/available_instances", Op: "read", Errno: syscall.EIO, Times: 1}))
		if _, err := h.Sysfs.Read(mbochs + "large/available_instances"); !errors.Is(err, syscall.EIO) {
			t.Error(err)
		}
		free(t, h, mbochs+"large")

		must(t, h.Inject(Fault{Path: "class/mdev_bus", Hang: true}))
		start := time.Now()
		if _, err := h.Sysfs.List("class/mdev_bus"); !errors.Is(err, sysfs.ErrTimeout) || time.Since(start) != 10*time.Second {
			t.Error(err, time.Since(start))
		}
		free(t, h, mbochs+"large")
		must(t, h.Clear("class/mdev_bus"))
		synctest.Wait()
		if names, err := h.Sysfs.List("class/mdev_bus"); len(names) != 4 || err != nil {
			t.Error(names, err)
		}

		if h.Inject(Fault{Path: "["}) == nil {
			t.Error("a bad pattern was taken")
		}
		// What hangs for ever ends with the host.
		must(t, h.Inject(Fault{Path: mbochs + "large/create", Hang: true}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.Sysfs.Write(ctx, mbochs+"large/create", uuid); !errors.Is(err, sysfs.ErrTimeout) {
			t.Error(err)
		}
		must(t, h.Close())
		synctest.Wait()
		if h.Sysfs.Hung() != 0 {
			t.Error("it still hangs")
		}
	})
}

func TestTimeBringsAndTakes_T05_T19(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t, t.TempDir())
		devices := h.Devices()
		write(t, h, mbochs+"large/create", uuid, 0)
		if name := <-devices; name != uuid {
			t.Error(name)
		}
		must(t, h.Vanish(uuid, 12*time.Second))
		must(t, h.Appear("0000:08:00.0", 30*time.Second))
		for _, at := range []struct {
			wait       time.Duration
			mdev, card bool
		}{{0, true, false}, {12 * time.Second, false, false}, {18 * time.Second, false, true}} {
			<-time.After(at.wait)
			mdev, err := h.Sysfs.Exists("bus/mdev/devices/" + uuid)
			must(t, err)
			card, err := h.Sysfs.Exists("class/mdev_bus/0000:08:00.0")
			must(t, err)
			if mdev != at.mdev || card != at.card {
				t.Errorf("after %s: device %t, card %t", at.wait, mdev, card)
			}
			if ok, err := h.Sysfs.Exists("bus/pci/devices/0000:08:00.0"); !ok || err != nil {
				t.Error("the card has left its slot", err)
			}
		}
		if p := h.Vanish("none", 0); p == nil {
			t.Error("what is not there cannot vanish")
		}
	})
}

func TestHolders_T17_T23(t *testing.T) {
	h := open(t, t.TempDir())
	write(t, h, mbochs+"large/create", uuid, 0)
	p := gpu.Partition{ID: uuid, Handle: gpu.Handle{MdevUUID: uuid}}
	want := func(n int, code gpu.Code) {
		t.Helper()
		got, err := h.Holders(t.Context(), p)
		if len(got) != n || (code == "") != (err == nil) || (code != "" && gpu.CodeOf(err) != code) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	want(0, "")
	must(t, h.Hold(uuid, 77, "vfio-test"))
	must(t, h.Libvirt.Attach(t.Context(), Web1, gpu.Hostdev{Alias: gpu.Alias(uuid), Handle: p.Handle}, gpu.Scope{Live: true}))
	want(2, "")
	must(t, h.Libvirt.SetDown(true)) // libvirt may be down: its VMs run on
	want(2, "")
	must(t, h.SetBlind(true))
	want(0, gpu.CodeUnavailable)
}

func TestSlowListener(t *testing.T) {
	h := open(t, t.TempDir())
	devices := h.Devices()
	for range cap(devices) + 1 {
		h.mu.Lock()
		h.tell("x")
		h.mu.Unlock()
	}
	missed := false
	for range cap(devices) {
		missed = missed || <-devices == ""
	}
	if !missed {
		t.Error("a loss was not told")
	}
	must(t, h.Close())
	if _, open := <-devices; open {
		t.Error("still open")
	}
}
