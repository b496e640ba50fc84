package sim

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
	"gpuvirt/internal/sysfs"
	"gpuvirt/mig"
)

const (
	flex    = "0000:4d:00.0"
	a2      = "0000:08:00.0"
	rx      = "0000:03:00.0"
	devices = "bus/pci/devices/"
	drivers = "bus/pci/drivers/"
)

func pciHost(t *testing.T) *Host {
	t.Helper()
	return open(t, t.TempDir(), A2(a2, 0), Flex(flex, 1), RX(rx), A100("0000:41:00.0", 0), T4("0000:88:00.0", 1))
}

func driverOf(t *testing.T, h *Host, address string) string {
	t.Helper()
	name, err := sysfs.Base(h.Sysfs, devices+address+"/driver")
	must(t, err)
	return name
}

func reads(t *testing.T, h *Host, name, want string) {
	t.Helper()
	if got, err := h.Sysfs.Read(name); got != want || err != nil {
		t.Errorf("%s is %q, %v; want %q", name, got, err, want)
	}
}

func TestDriversTakeAndLetGo(t *testing.T) {
	h := pciHost(t)
	at := devices + rx
	reads(t, h, at+"/driver_override", "(null)")
	reads(t, h, at+"/boot_vga", "0")
	reads(t, h, at+"/reset_method", "flr bus")
	if ok, err := h.Sysfs.Exists(devices + flex + "/boot_vga"); ok || err != nil {
		t.Error("a display controller that is no VGA has boot_vga", err)
	}
	write(t, h, drivers+"vfio-pci/bind", rx, syscall.ENODEV)
	write(t, h, drivers+"vfio-pci/unbind", rx, syscall.ENODEV)
	write(t, h, drivers+"amdgpu/unbind", "0000:ff:00.0", syscall.ENODEV)
	write(t, h, drivers+"amdgpu/bind", rx, syscall.EBUSY)
	write(t, h, at+"/driver_override", "vfio-pci\n", 0)
	if got := driverOf(t, h, rx); got != "amdgpu" {
		t.Errorf("an override alone has bound it to %q", got)
	}
	write(t, h, "bus/pci/drivers_probe", rx, 0) // it has one
	write(t, h, at+"/driver/unbind", rx+"\n", 0)
	if got := driverOf(t, h, rx); got != "" {
		t.Errorf("bound to %q", got)
	}
	write(t, h, drivers+"amdgpu/bind", rx, syscall.ENODEV) // the override says so
	write(t, h, "bus/pci/drivers_probe", rx, 0)
	if got := driverOf(t, h, rx); got != "vfio-pci" {
		t.Errorf("bound to %q", got)
	}
	names, err := h.Sysfs.List(at + "/vfio-dev")
	if len(names) != 1 || !strings.HasPrefix(names[0], "vfio") || err != nil {
		t.Error(names, err)
	}
	if names, err := h.Sysfs.List(drivers + "vfio-pci"); !slices.Contains(names, rx) || err != nil {
		t.Error(names, err)
	}
	reads(t, h, at+"/power_state", "D3hot")
	// Clearing the override alone lets it be where it is.
	write(t, h, at+"/driver_override", "\n", 0)
	reads(t, h, at+"/driver_override", "(null)")
	write(t, h, drivers+"vfio-pci/unbind", rx, 0)
	write(t, h, "bus/pci/drivers_probe", rx, 0)
	if got := driverOf(t, h, rx); got != "amdgpu" {
		t.Errorf("bound to %q", got)
	}
	// A driver that is not loaded is no error of the probe.
	must(t, h.SetLoaded("vfio-pci", false))
	write(t, h, drivers+"amdgpu/unbind", rx, 0)
	write(t, h, at+"/driver_override", "vfio-pci", 0)
	write(t, h, "bus/pci/drivers_probe", rx, 0)
	if got := driverOf(t, h, rx); got != "" {
		t.Errorf("bound to %q", got)
	}
	write(t, h, "bus/pci/drivers_probe", "0000:ff:00.0", syscall.ENODEV)
	write(t, h, at+"/reset", "1", 0)
	write(t, h, at+"/reset", "2", syscall.EINVAL)

	// Its sound is in its group.
	names, err = h.Sysfs.List(at + "/iommu_group/devices")
	if !slices.Equal(names, []string{rx, "0000:03:00.1"}) || err != nil {
		t.Error(names, err)
	}
	if got := driverOf(t, h, "0000:03:00.1"); got != "snd_hda_intel" {
		t.Error(got)
	}
	must(t, h.Reboot())
	if got := driverOf(t, h, rx); got != "amdgpu" {
		t.Errorf("after a reboot bound to %q", got)
	}
	reads(t, h, at+"/driver_override", "(null)")
}

func TestVirtualFunctions(t *testing.T) {
	h := pciHost(t)
	at := devices + flex
	for name, want := range map[string]string{
		"sriov_totalvfs": "31", "sriov_numvfs": "0", "sriov_offset": "1", "sriov_stride": "1", "sriov_vf_device": "56c0",
		"sriov_drivers_autoprobe": "1",
	} {
		reads(t, h, at+"/"+name, want)
	}
	write(t, h, at+"/sriov_numvfs", "32", syscall.ERANGE)
	write(t, h, at+"/sriov_numvfs", "-1", syscall.EINVAL)
	write(t, h, at+"/sriov_numvfs", "0", 0)
	write(t, h, at+"/sriov_numvfs", "10", 0)
	write(t, h, at+"/sriov_numvfs", "10", 0)
	write(t, h, at+"/sriov_numvfs", "2", syscall.EBUSY)
	// The eighth is on the next slot.
	for link, want := range map[string]string{"virtfn0": "0000:4d:00.1", "virtfn6": "0000:4d:00.7", "virtfn7": "0000:4d:01.0"} {
		if got, err := sysfs.Base(h.Sysfs, at+"/"+link); got != want || err != nil {
			t.Errorf("%s is %q, %v", link, got, err)
		}
	}
	vf := "0000:4d:01.0"
	if got, err := sysfs.Base(h.Sysfs, devices+vf+"/physfn"); got != flex || err != nil {
		t.Error(got, err)
	}
	reads(t, h, devices+vf+"/device", "0x56c0")
	if got := driverOf(t, h, vf); got != "xe" {
		t.Error(got)
	}
	names, err := h.Sysfs.List(devices + vf + "/iommu_group/devices")
	if !slices.Equal(names, []string{vf}) || err != nil {
		t.Error(names, err)
	}
	write(t, h, at+"/sriov_numvfs", "0", 0)
	write(t, h, at+"/sriov_drivers_autoprobe", "x", syscall.EINVAL)
	write(t, h, at+"/sriov_drivers_autoprobe", "0", 0)
	write(t, h, at+"/sriov_numvfs", "1", 0)
	if got := driverOf(t, h, "0000:4d:00.1"); got != "" {
		t.Errorf("nobody was to take it, and %q has", got)
	}
	// Without its driver it has none, and can have none.
	write(t, h, drivers+"xe/unbind", flex, 0)
	reads(t, h, at+"/sriov_numvfs", "0")
	write(t, h, at+"/sriov_numvfs", "1", syscall.ENOENT)
	write(t, h, "bus/pci/drivers_probe", flex, 0)
	write(t, h, at+"/sriov_numvfs", "1", 0)
	must(t, h.Reboot())
	reads(t, h, at+"/sriov_numvfs", "0")
	reads(t, h, at+"/sriov_drivers_autoprobe", "1")
}

func TestVMHoldsVF_T44_R61(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := pciHost(t)
		write(t, h, devices+flex+"/sriov_numvfs", "2", 0)
		const vf = "0000:4d:00.2"
		dev := gpu.Hostdev{Alias: "ua-gpu", Handle: gpu.Handle{PCIAddress: vf}}
		attach := func(vm string, code gpu.Code, text string) {
			t.Helper()
			err := h.Libvirt.Attach(t.Context(), vm, dev, gpu.Scope{Live: true})
			if code == "" && err != nil || code != "" && (gpu.CodeOf(err) != code || !strings.Contains(err.Error(), text)) {
				t.Errorf("%v, want %s", err, code)
			}
		}
		attach(Web1, gpu.CodeConflict, "Unmanaged PCI device 0000:4d:00.2 must be manually detached from the host")
		write(t, h, devices+vf+"/driver_override", "vfio-pci", 0)
		write(t, h, drivers+"xe/unbind", vf, 0)
		write(t, h, "bus/pci/drivers_probe", vf, 0)
		attach(Web1, "", "")
		attach(Web2, gpu.CodeBusy, "in use by driver QEMU")
		p := gpu.Partition{Handle: gpu.Handle{PCIAddress: vf}}
		if got, err := h.Holders(t.Context(), p); len(got) != 1 || err != nil {
			t.Error(got, err)
		}
		// Both ways of taking it away wait, and so does whatever else is asked of it.
		hang := func(name, value string) *sysfs.HungError {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := h.Sysfs.Write(ctx, name, value)
			hung, ok := errors.AsType[*sysfs.HungError](err)
			if !ok {
				t.Fatalf("%s: %v", name, err)
			}
			return hung
		}
		fewer := hang(devices+flex+"/sriov_numvfs", "0")
		unbind := hang(drivers+"vfio-pci/unbind", vf)
		if got := driverOf(t, h, vf); got != "" {
			t.Errorf("its driver waits, and the kernel says it is %q", got)
		}
		hang(devices+vf+"/driver_override", "\n")
		must(t, h.Libvirt.Shutdown(Web1))
		<-fewer.Done()
		<-unbind.Done()
		reads(t, h, devices+flex+"/sriov_numvfs", "0")
		synctest.Wait()
	})
}

func TestGroupMustBeViable(t *testing.T) {
	h := pciHost(t)
	dev := gpu.Hostdev{Alias: "ua-gpu", Handle: gpu.Handle{PCIAddress: rx}}
	write(t, h, devices+rx+"/driver_override", "vfio-pci", 0)
	write(t, h, drivers+"amdgpu/unbind", rx, 0)
	write(t, h, "bus/pci/drivers_probe", rx, 0)
	err := h.Libvirt.Attach(t.Context(), Web1, dev, gpu.Scope{Live: true})
	if err == nil || !strings.Contains(err.Error(), "group 70 is not viable: 0000:03:00.1 is bound to snd_hda_intel") {
		t.Error(err)
	}
	write(t, h, drivers+"snd_hda_intel/unbind", "0000:03:00.1", 0)
	must(t, h.Libvirt.Attach(t.Context(), Web1, dev, gpu.Scope{Live: true}))
	if got, err := h.GPUHolders(t.Context(), rx); len(got) != 1 || err != nil {
		t.Error(got, err)
	}
}

// Without its driver a card of NVIDIA's has neither vGPUs nor a place in its library.
func TestNVIDIAWithoutItsDriver(t *testing.T) {
	h := pciHost(t)
	const t4 = "0000:88:00.0"
	for _, card := range []string{t4, "0000:41:00.0"} {
		write(t, h, drivers+"nvidia/unbind", card, 0)
	}
	if ok, err := h.Sysfs.Exists("class/mdev_bus/" + t4); ok || err != nil {
		t.Error("it has types", err)
	}
	addresses := func() (out []string) {
		s, err := h.NVML.Open()
		must(t, err)
		defer s.Close()
		all, err := s.Addresses()
		must(t, err)
		for _, a := range all {
			out = append(out, a.String())
		}
		return out
	}
	if got := addresses(); !slices.Equal(got, []string{a2}) {
		t.Error(got)
	}
	write(t, h, drivers+"nvidia/bind", t4, 0)
	write(t, h, "bus/pci/drivers_probe", "0000:41:00.0", 0)
	if got := addresses(); len(got) != 3 {
		t.Error(got)
	}
	if ok, err := h.Sysfs.Exists("class/mdev_bus/" + t4); !ok || err != nil {
		t.Error("it has no types", err)
	}
}

func manage(t *testing.T, h *Host, code int, text string, args ...string) {
	t.Helper()
	out, err := h.RunTool(t.Context(), "/usr/lib/nvidia/sriov-manage", args...)
	exit, _ := errors.AsType[*run.ExitError](err)
	if code == 0 && err != nil || code != 0 && (exit == nil || exit.Code != code) || !strings.Contains(out, text) {
		t.Errorf("%q: %q, %v", args, out, err)
	}
}

func TestSRIOVManage_T06_T07_T33(t *testing.T) {
	h := pciHost(t)
	at := devices + a2
	write(t, h, at+"/sriov_numvfs", "16", syscall.EPERM)
	manage(t, h, 1, "Usage")
	manage(t, h, 1, "no NVIDIA GPU", "-e", flex)
	manage(t, h, 0, "Enabling", "-e", a2)
	manage(t, h, 0, "", "-e", a2)
	reads(t, h, at+"/sriov_numvfs", "16")
	if got := driverOf(t, h, a2); got != "nvidia" {
		t.Error(got)
	}
	if got := driverOf(t, h, "0000:08:01.7"); got != "nvidia" {
		t.Error(got)
	}
	manage(t, h, 0, "Disabling", "-d", a2)
	reads(t, h, at+"/sriov_numvfs", "0")

	must(t, h.FailTool(ToolIdle, 1))
	manage(t, h, 0, "Enabling", "-e", a2)
	reads(t, h, at+"/sriov_numvfs", "0")
	must(t, h.FailTool(ToolLies, 1))
	manage(t, h, 1, "Enabling", "-e", a2)
	reads(t, h, at+"/sriov_numvfs", "16")
	must(t, h.FailTool(ToolHalf, 1))
	manage(t, h, 1, "Disabling", "-d", a2)
	if got := driverOf(t, h, a2); got != "" {
		t.Error(got)
	}
	write(t, h, "bus/pci/drivers_probe", a2, 0)
	must(t, h.FailTool(ToolGone, 1))
	if _, err := h.RunTool(t.Context(), "sriov-manage", "-e", a2); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// Nobody may have it open: neither we nor others.
	lock := path.Join("driver/nvidia/gpus", a2, "unbindLock")
	locked := func(want string) {
		t.Helper()
		if err := h.Proc.Write(t.Context(), lock, "1"); err != nil {
			t.Error(err)
		}
		if got, err := h.Proc.Read(lock); got != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	s, err := h.NVML.Open()
	must(t, err)
	manage(t, h, 1, "Cannot obtain unbindLock for "+a2, "-e", a2)
	locked("0")
	must(t, s.Close())
	must(t, h.Watch(a2, 812, "nv-hostengine"))
	manage(t, h, 1, "Cannot obtain unbindLock", "-e", a2)
	locked("0")
	must(t, h.Idle(a2))
	locked("1")
	manage(t, h, 0, "", "-e", a2)
}

// What was cut of a card is gone when it has been off its driver.
func TestSRIOVManageWipesMIG(t *testing.T) {
	card := A100("0000:41:00.0", 0)
	card.SRIOV = A2("0000:41:00.0", 0).SRIOV
	h := open(t, t.TempDir(), card)
	must(t, h.changeMIG(card.Name, func(m *migState) { m.Current, m.Pending = true, true }))
	device := func() mig.Device {
		s, err := h.NVML.Open()
		must(t, err)
		defer s.Close()
		d, err := s.Device(gpu.Address{Bus: 0x41})
		must(t, err)
		return d
	}
	if _, err := device().Create(0, 0); err != nil {
		t.Fatal(err)
	}
	manage(t, h, 0, "", "-e", card.Name)
	mode, err := device().Mode()
	if !mode.Current || err != nil {
		t.Errorf("%+v, %v", mode, err)
	}
	if all, err := device().Instances(); len(all) != 0 || err != nil {
		t.Error(all, err)
	}
}
