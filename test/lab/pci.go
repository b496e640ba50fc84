//go:build lab

package lab

import (
	"context"
	"fmt"
	"strings"
)

// The PCI cards of the hypervisor, by their addresses there. None has a GPU on it.
// Each is behind a root port of its own, so that no two share an IOMMU group.
const (
	// SRIOVCard is an NVMe controller with four virtual functions, which play those
	// of a GPU that needs no driver of its own on the host.
	SRIOVCard = "0000:01:00.0"
	// VGPUCard is another one. Once LoadVGPU was called, each of its virtual
	// functions is bound to our module and can be given a vGPU, or be the parent
	// of an mdev.
	VGPUCard = "0000:02:00.0"
	// WholeCard is a display controller with a driver, and WholeCardUSB its second
	// function in the same IOMMU group, with another driver.
	WholeCard    = "0000:03:00.0"
	WholeCardUSB = "0000:03:00.1"
)

// What a guest calls them and their functions.
const (
	SRIOVKind = "1b36:0010"
	VGPUKind  = "8086:5845"
	MdevKind  = "1af4:10f0" // an mdev of a function of VGPUCard
	WholeKind = MBochs      // mbochs plays the same hardware
	USBKind   = "1b36:000d"
)

// VFs is the number of virtual functions that SRIOVCard and VGPUCard can have.
const VFs = 4

// cardArgs put the cards into QEMU's command line. The firmware numbers the buses in
// the order of the root ports. All are PCI Express: libvirt has no slot for another
// kind in a running guest.
func cardArgs() []string {
	port := func(n int) string {
		return fmt.Sprintf("pcie-root-port,id=card%d,chassis=%d,bus=pcie.0,addr=0x%x", n, n, 0x0f+n)
	}
	nvme := func(n int, more string) string {
		return fmt.Sprintf("nvme,bus=card%[1]d,serial=card%[1]d,subsys=nvme%[1]d,sriov_max_vfs=%d,"+
			"sriov_vq_flexible=%d,sriov_vi_flexible=%[3]d,max_ioqpairs=26,msix_qsize=26%[4]s", n, VFs, 2*VFs, more)
	}
	var args []string
	for _, device := range []string{
		port(1), "nvme-subsys,id=nvme1", nvme(1, ""),
		port(2), "nvme-subsys,id=nvme2", nvme(2, ",use-intel-id=on"),
		port(3), "bochs-display,bus=card3,addr=0.0,multifunction=on", "qemu-xhci,bus=card3,addr=0.1",
	} {
		args = append(args, "-device", device)
	}
	return args
}

// VF is the address of a virtual function, counted from 0, whether it is there or not.
func VF(card string, n int) string {
	return fmt.Sprintf("%s.%d", strings.TrimSuffix(card, ".0"), n+1)
}

const pciDevices = "/sys/bus/pci/devices/"

// EnableVFs makes a card have n virtual functions; those that it had are gone first.
// Those of VGPUCard are bound to our module when it returns, if that is loaded. The
// others have no driver: nvme has tried and has not taken them.
func (vm *VM) EnableVFs(ctx context.Context, card string, n int) error {
	numvfs := pciDevices + card + "/sriov_numvfs"
	if _, err := vm.Run(ctx, fmt.Sprintf("echo 0 >%[1]s && echo %[2]d >%[1]s", numvfs, n)); err != nil {
		return fmt.Errorf("cannot make card %s have %d virtual functions: %w", card, n, err)
	}
	return nil
}

// BindPCI binds a PCI device to a driver, without a look at whether it is in use. The
// empty name gives it back to the driver that the kernel chooses.
func (vm *VM) BindPCI(ctx context.Context, device, driver string) error {
	_, err := vm.Run(ctx, fmt.Sprintf(`
set -e
cd %s%s
[ -z '%[3]s' ] || modprobe '%[3]s'
echo '%[3]s' >driver_override
[ ! -e driver ] || echo %[2]s >driver/unbind
echo %[2]s >/sys/bus/pci/drivers_probe`, pciDevices, device, driver))
	if err == nil && driver != "" {
		var is string
		if is, err = vm.PCIDriver(ctx, device); err == nil && is != driver {
			err = fmt.Errorf("its driver is %q", is)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot bind %s to driver %q: %w", device, driver, err)
	}
	return nil
}

// PCIDriver is the driver that a PCI device is bound to, empty for none.
func (vm *VM) PCIDriver(ctx context.Context, device string) (string, error) {
	out, err := vm.Run(ctx, "cd "+pciDevices+device+" && [ ! -e driver ] || basename $(readlink driver)")
	return strings.TrimSpace(out), err
}

// HostdevPCI is the XML of a PCI device for a guest, of which libvirt leaves the driver
// alone. With an empty alias libvirt chooses one.
func HostdevPCI(device, alias string) string {
	if alias != "" {
		alias = "<alias name='" + alias + "'/>"
	}
	return fmt.Sprintf("<hostdev mode='subsystem' type='pci' managed='no'><source>"+
		"<address domain='0x%s' bus='0x%s' slot='0x%s' function='0x%s'/></source>%s</hostdev>",
		device[:4], device[5:7], device[8:10], device[11:], alias)
}

// vgpuModule plays the driver on the host of a card with vGPUs; see module/ and README.md.
const vgpuModule = "gpuvirt_vgpu"

// LoadVGPU loads our module anew, now and at every boot until Reset, as an installed
// driver would be. params are written mixed=1. There may be no virtual functions yet:
// nvme is loaded anew, too, to be asked after it. Of Linux 6.1 nvme takes a function and
// lets it go later, and then no other driver is asked.
func (vm *VM) LoadVGPU(ctx context.Context, params ...string) error {
	if err := vm.InstallVGPU(ctx, params...); err != nil {
		return err
	}
	_, err := vm.Run(ctx, fmt.Sprintf("modprobe -r %[1]s nvme && modprobe -a %[1]s nvme", vgpuModule))
	if err != nil {
		return fmt.Errorf("cannot load the module with the vGPUs: %w", err)
	}
	return nil
}

// InstallVGPU is LoadVGPU for the next boot: what is loaded stays.
func (vm *VM) InstallVGPU(ctx context.Context, params ...string) error {
	_, err := vm.Run(ctx, fmt.Sprintf(`
set -e
echo options %[1]s %[2]s >/etc/modprobe.d/%[1]s.conf
echo %[1]s >/etc/modules-load.d/%[1]s.conf
sync -f /etc/modprobe.d /etc/modules-load.d`, vgpuModule, strings.Join(params, " ")))
	if err != nil {
		return fmt.Errorf("cannot install the module with the vGPUs: %w", err)
	}
	return nil
}

// SetVGPU changes a parameter of the loaded module.
func (vm *VM) SetVGPU(ctx context.Context, param, value string) error {
	_, err := vm.Run(ctx, "echo "+quote(value)+" >/sys/module/"+vgpuModule+"/parameters/"+param)
	return err
}

// resetCards is the part of Reset that is about the cards; guests are gone by then.
const resetCards = `
for card in ` + SRIOVCard + ` ` + VGPUCard + `; do
	cd ` + pciDevices + `$card
	read -r vfs <sriov_numvfs
	[ "$vfs" = 0 ] || echo 0 >sriov_numvfs || exit 1
done
rm -f /etc/modprobe.d/` + vgpuModule + `.conf /etc/modules-load.d/` + vgpuModule + `.conf
[ ! -e /sys/module/` + vgpuModule + ` ] || modprobe -r ` + vgpuModule + ` || exit 1
for device in ` + SRIOVCard + ` ` + VGPUCard + ` ` + WholeCard + ` ` + WholeCardUSB + `; do
	cd ` + pciDevices + `$device
	read -r driver <driver_override
	if [ "$driver" != "(null)" ]; then
		echo >driver_override
		[ ! -e driver ] || echo $device >driver/unbind
	fi
	[ -e driver ] || echo $device >/sys/bus/pci/drivers_probe || exit 1
done
cd /
`
