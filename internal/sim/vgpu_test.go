package sim

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/mig"
)

const l40s = "0000:41:00.0"

// vgpuHost has a card whose virtual functions are on.
func vgpuHost(t *testing.T, c Card) *Host {
	t.Helper()
	h := open(t, t.TempDir(), c)
	manage(t, h, 0, "", "-e", c.Name)
	return h
}

func ofVF(vf, name string) string { return devices + "0000:41:00." + vf + "/nvidia/" + name }

// listed is how many types a virtual function lists as creatable, and of which size.
func listed(t *testing.T, h *Host, vf string) (n int, text string) {
	t.Helper()
	text, err := h.Sysfs.Read(ofVF(vf, "creatable_vgpu_types"))
	must(t, err)
	return strings.Count(text, "NVIDIA"), text
}

func TestVGPUOnFunction(t *testing.T) {
	for _, terse := range []bool{false, true} {
		c := L40S(l40s, 0).WithVGPU(false)
		c.VGPU.Terse = terse
		h := vgpuHost(t, c)
		or := func(usual, upstream syscall.Errno) syscall.Errno {
			if terse {
				return upstream
			}
			return usual
		}
		first, second := ofVF("4", "current_vgpu_type"), ofVF("5", "current_vgpu_type")
		reads(t, h, first, "0")
		if n, text := listed(t, h, "4"); n != len(c.VGPU.Types) || !strings.Contains(text, "\n1150  : NVIDIA L40S-4Q") {
			t.Errorf("%d of %d: %q", n, len(c.VGPU.Types), text)
		}
		for _, name := range []string{"gpu_instance_id", "placement_id"} {
			if _, err := h.Sysfs.Read(ofVF("4", name)); !errors.Is(err, syscall.ENXIO) {
				t.Errorf("%s: %v", name, err)
			}
		}
		write(t, h, first, "0x47e", syscall.EINVAL)
		write(t, h, first, "-1", syscall.EINVAL)
		write(t, h, first, "0", or(syscall.EPERM, syscall.EINVAL))
		write(t, h, first, "7", or(syscall.EIO, syscall.ENODEV))
		write(t, h, first, "1154\n", 0) // 16Q, of which three fit
		reads(t, h, first, "1154")
		reads(t, h, ofVF("4", "gpu_instance_id"), "0")
		write(t, h, first, "1154", or(syscall.EPERM, syscall.EINVAL))
		write(t, h, first, "1147", or(syscall.EPERM, syscall.EINVAL))
		write(t, h, second, "1147", or(syscall.EIO, syscall.ENOSPC))
		if n, text := listed(t, h, "5"); n != 2 || !strings.Contains(text, "L40S-16C") {
			t.Errorf("%q", text)
		}
		write(t, h, second, "1154", 0)
		write(t, h, ofVF("6", "current_vgpu_type"), "1154", 0)
		// Full: functions that are free list nothing, and one with a vGPU never did.
		for _, vf := range []string{"4", "7"} {
			if n, text := listed(t, h, vf); n != 0 || (text == "") != terse {
				t.Errorf("%q", text)
			}
		}
		write(t, h, ofVF("7", "current_vgpu_type"), "1154", or(syscall.EIO, syscall.ENOSPC))
		if out, err := h.RunTool(t.Context(), "sriov-manage", "-d", l40s); err == nil {
			t.Error("functions with vGPUs were turned off", out)
		}
		write(t, h, second, "0", 0)
		if n, _ := listed(t, h, "7"); n != 2 {
			t.Error(n)
		}
		// Nothing of it outlives a boot.
		must(t, h.Reboot())
		manage(t, h, 0, "", "-e", l40s)
		reads(t, h, first, "0")
	}
}

// In a card that may have several sizes each begins at certain slots of its memory. That
// the sum of the sizes fits is not enough.
func TestVGPUMixed(t *testing.T) {
	h := vgpuHost(t, L40S(l40s, 0).WithVGPU(false))
	session, err := h.NVML.Open()
	must(t, err)
	a, err := gpu.ParseAddress(l40s)
	must(t, err)
	d, err := session.Device(a)
	must(t, err)
	places := func(typ uint32) gpu.VGPUPlacements {
		t.Helper()
		p, err := d.Placements(typ)
		must(t, err)
		return p
	}
	if _, err := d.Placements(1155); !errors.Is(err, mig.ErrNotSupported) {
		t.Error(err)
	}
	must(t, d.SetMixedSize(true))
	for typ, want := range map[uint32][]int{
		1156: {0}, 1155: {0, 24}, 1154: {0, 32}, 1153: {0, 12, 24, 36}, 1152: {0, 16, 24, 40},
	} {
		if got := places(typ); !slices.Equal(got.Starts, want) {
			t.Errorf("%d: %+v", typ, got)
		}
	}
	write(t, h, ofVF("4", "current_vgpu_type"), "1155", 0) // 24 of 48 GB, at 0
	write(t, h, ofVF("5", "current_vgpu_type"), "1154", 0) // 16, at 32
	reads(t, h, ofVF("5", "placement_id"), "32")
	if got := places(1154); len(got.Free) != 0 {
		t.Errorf("%+v", got)
	}
	write(t, h, ofVF("6", "current_vgpu_type"), "1153", syscall.EIO) // 12, and 8 are left
	write(t, h, ofVF("6", "current_vgpu_type"), "1152", 0)           // 8, at 24
	if n, text := listed(t, h, "7"); n != 0 {
		t.Error(text)
	}
	if err := d.SetMixedSize(false); !errors.Is(err, mig.ErrInUse) {
		t.Error(err)
	}
	for _, vf := range []string{"4", "5", "6"} {
		write(t, h, ofVF(vf, "current_vgpu_type"), "0", 0)
	}
	// Two of 16 GB leave 16 between them, and no third fits there.
	write(t, h, ofVF("4", "current_vgpu_type"), "1154", 0)
	write(t, h, ofVF("5", "current_vgpu_type"), "1154", 0)
	write(t, h, ofVF("6", "current_vgpu_type"), "1154", syscall.EIO)
	write(t, h, ofVF("6", "current_vgpu_type"), "1152", 0)
	for _, vf := range []string{"4", "5", "6"} {
		write(t, h, ofVF(vf, "current_vgpu_type"), "0", 0)
	}
	// The driver forgets it when it is bound anew.
	must(t, session.Close())
	manage(t, h, 0, "", "-d", l40s)
	if _, err := d.MixedSize(); !errors.Is(err, mig.ErrNotSupported) {
		t.Error(err)
	}
	manage(t, h, 0, "", "-e", l40s)
	if m, err := d.MixedSize(); err != nil || !m.Supported || m.On {
		t.Errorf("%+v, %v", m, err)
	}
}

// A VM keeps its vGPU, and for a while after it has stopped the driver does. A function
// without one is given to no VM.
func TestVGPUInVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := L40S(l40s, 0).WithVGPU(false)
		c.VGPU.Linger = 5 * time.Second
		h := vgpuHost(t, c)
		dev := gpu.Hostdev{Alias: "ua-gpu", Handle: gpu.Handle{PCIAddress: "0000:41:00.4"}}
		err := h.Libvirt.Attach(t.Context(), Web1, dev, gpu.Scope{Live: true})
		if err == nil || !strings.Contains(err.Error(), "No such device") {
			t.Error(err)
		}
		file := ofVF("4", "current_vgpu_type")
		write(t, h, file, "1147", 0)
		must(t, h.Libvirt.Attach(t.Context(), Web1, dev, gpu.Scope{Live: true}))
		write(t, h, file, "0", syscall.EIO)
		must(t, h.Libvirt.Shutdown(Web1))
		write(t, h, file, "0", syscall.EIO)
		<-time.After(4999 * time.Millisecond)
		write(t, h, file, "0", syscall.EIO)
		<-time.After(time.Millisecond)
		write(t, h, file, "0", 0)
		reads(t, h, file, "0")
	})
}

func TestVGPUOnMdevBus(t *testing.T) {
	h := vgpuHost(t, A2(l40s, 0).WithVGPU(true))
	at := func(vf, name string) string {
		return devices + "0000:41:00." + vf + "/mdev_supported_types/nvidia-" + name
	}
	if got := free(t, h, at("4", "746"), at("5", "746"), at("4", "742")); got[0] != 1 || got[1] != 1 || got[2] != 1 {
		t.Error(got)
	}
	reads(t, h, at("4", "746/description"), "num_heads=4, frl_config=60, framebuffer=4096M, max_resolution=7680x4320, max_instance=4")
	write(t, h, at("4", "746/create"), uuid, 0)
	write(t, h, at("4", "746/create"), uuid2, syscall.EIO)
	write(t, h, at("5", "746/create"), uuid, syscall.EEXIST)
	write(t, h, at("5", "742/create"), uuid2, syscall.EIO)
	if got := free(t, h, at("4", "746"), at("5", "746"), at("5", "742"), at("5", "754")); got[0] != 0 || got[1] != 1 || got[2] != 0 || got[3] != 1 {
		t.Error(got)
	}
	if got, err := h.Sysfs.Readlink("bus/mdev/devices/" + uuid); !strings.HasSuffix(got, "/0000:41:00.4/"+uuid) || err != nil {
		t.Error(got, err)
	}
	if ok, err := h.Sysfs.Exists(ofVF("4", "current_vgpu_type")); ok || err != nil {
		t.Error("of both generations", err)
	}
	dev := gpu.Hostdev{Alias: "ua-gpu", Handle: gpu.Handle{PCIAddress: "0000:41:00.5"}}
	if err := h.Libvirt.Attach(t.Context(), Web1, dev, gpu.Scope{Live: true}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Error("a function of the mdev generation was given to a VM itself", err)
	}
	write(t, h, remove, "1", 0)
	if got := free(t, h, at("5", "742")); got[0] != 1 {
		t.Error(got)
	}
	write(t, h, at("4", "746/create"), uuid, 0)
	write(t, h, drivers+"nvidia/unbind", "0000:41:00.4", 0)
	if ok, err := h.Sysfs.Exists("bus/mdev/devices/" + uuid); ok || err != nil {
		t.Error("it has outlived its parent", err)
	}
}

// Several share one GPU instance by time, of one size; as many as the card's totals say.
func TestVGPUOnInstances(t *testing.T) {
	h := vgpuHost(t, RTXPro6000(l40s, 0).WithVGPU(false))
	if n, _ := listed(t, h, "4"); n != 10 {
		t.Errorf("%d types share the card by time", n)
	}
	t.Run("the mode changes without functions alone", func(t *testing.T) {
		d := nvmlDevice(t, h, l40s)
		if waits, err := d.SetMode(true); !errors.Is(waits, mig.ErrInUse) || err != nil {
			t.Error(waits, err)
		}
		_, err := d.SetMode(false) // which takes back what waits
		must(t, err)
	})
	manage(t, h, 0, "", "-d", l40s)
	t.Run("mode", func(t *testing.T) {
		_, err := nvmlDevice(t, h, l40s).SetMode(true)
		must(t, err)
	})
	manage(t, h, 0, "", "-e", l40s)
	d := nvmlDevice(t, h, l40s)
	if n, text := listed(t, h, "4"); n != 0 {
		t.Error(text)
	}
	all, err := d.Profiles()
	must(t, err)
	for _, p := range all {
		if p.Name == "1g.24gb+gfx" || p.Name == "1g.24gb" {
			_, err := d.Create(p.Index, p.Starts[p.ID/40])
			must(t, err)
		}
	}
	n, text := listed(t, h, "4")
	if n != 7 || !strings.Contains(text, "DC-1-12QGFX") {
		t.Errorf("%d: %q", n, text)
	}
	types, err := d.VGPUTypes()
	must(t, err)
	number := map[string]string{}
	for _, x := range types {
		name := x.Name[strings.LastIndexByte(x.Name, ' ')+1:]
		number[name] = text[max(0, strings.Index(text, x.Name)-8):max(0, strings.Index(text, x.Name)-4)]
		if on := strings.HasPrefix(name, "DC-1-"); on && (x.GPUInstanceProfile == nil || *x.GPUInstanceProfile != 47) {
			t.Errorf("%+v", x)
		}
	}
	// Two of 12 GB on one instance, and then none of another size.
	write(t, h, ofVF("4", "current_vgpu_type"), number["DC-1-12QGFX"], 0)
	if n, text := listed(t, h, "5"); n != 1 {
		t.Errorf("%q", text)
	}
	write(t, h, ofVF("5", "current_vgpu_type"), number["DC-1-12QGFX"], 0)
	write(t, h, ofVF("6", "current_vgpu_type"), number["DC-1-12QGFX"], syscall.EIO)
}

func nvmlDevice(t *testing.T, h *Host, address string) mig.Device {
	t.Helper()
	s, err := h.NVML.Open()
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	a, err := gpu.ParseAddress(address)
	must(t, err)
	d, err := s.Device(a)
	must(t, err)
	return d
}
