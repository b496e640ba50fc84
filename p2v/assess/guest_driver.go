package assess

import (
	"cmp"
	"slices"
)

// oldDriver takes away what is for the source's driver and cards only.
func (c *changes) oldDriver(t targetKind) {
	if t.nvidia && (len(c.gpusOf("nouveau")) > 0 || c.Driver == nil || t.vgpu) {
		c.add(GuestChange{
			ID: "nouveau", What: "Put nouveau on a deny list (blacklist nouveau, options nouveau modeset=0), and build the initramfs anew.",
			Why: "It takes the GPU before NVIDIA's driver does.", When: Offline, Undo: "Remove /etc/modprobe.d/gpuvirt-nouveau.conf.", Automatic: true,
		})
	}
	if c.Driver == nil {
		return
	}
	switch {
	case t.vgpu && !c.Driver.Guest, t.vgpu && t.card:
		c.addIf(c.files("modules-load", "modprobe"), GuestChange{
			ID: "driver-modules", What: "Take away what loads the old driver's modules at boot, and their options.",
			Why: "The old driver does not know the vGPU, and options may be wrong for the new one.", When: Offline, Undo: "Put the saved files back.", Automatic: true,
		})
	case !t.gpu:
		c.addIf(c.files("modules-load"), GuestChange{
			ID: "driver-modules", What: "Take away what loads the driver's modules at boot.",
			Why: "The VM has no GPU.", When: Offline, Undo: "Put the saved files back.", Automatic: true,
		})
	}
}

// gpusOf lists what shows that a kernel driver is in use.
func (c *changes) gpusOf(driver string) []string {
	var out []string
	for _, g := range c.GPUs {
		if g.Driver == driver {
			out = append(out, g.PCI)
		}
	}
	if c.Driver != nil && slices.Contains(c.Driver.Modules, driver) {
		out = append(out, driver)
	}
	return out
}

// newDriver says which driver the guest has.
func (c *changes) newDriver(t targetKind, fits []Fitting, w Wish, d Drivers) {
	switch {
	case !t.nvidia:
		return
	case t.vgpu:
		c.vgpuDriver(t, w)
		return
	}
	if c.Driver == nil {
		c.add(GuestChange{
			ID: "driver-install", What: "Install NVIDIA's data-centre driver.", Why: "The source has none, and the VM has a card.",
			When: FirstBoot, Undo: "Remove its packages.", Automatic: false,
		})
		return
	}
	c.add(GuestChange{
		ID: "driver-keep", What: "Keep the data-centre driver.", Why: "A whole card is the same to a VM as to a server, and takes no vGPU licence.",
		When: Offline, Undo: "There is nothing to undo.", Automatic: true, Items: []string{c.Driver.Version},
	})
	for _, f := range Chosen(fits) {
		i := slices.IndexFunc(d.Architectures, func(a Architecture) bool { return a.Capability == f.capability() })
		if i < 0 {
			continue
		}
		if m := d.Architectures[i].Modules; m != "" && m != c.Driver.Flavour {
			c.add(GuestChange{
				ID: "driver-flavour", What: "Install the " + m + " kernel modules of the driver.", Why: "The card takes no other flavour.",
				When: FirstBoot, Undo: "Install the other flavour's packages.", Automatic: false,
			})
			break
		}
	}
}

func (f Fitting) capability() string { return cardOf(f.Choice.Model).Capability }

func (c *changes) vgpuDriver(t targetKind, w Wish) {
	if c.Driver != nil && !c.Driver.Guest {
		how := "Purge its packages."
		if c.Driver.Origin == "runfile" {
			how = "Run nvidia-uninstall --silent."
		}
		c.add(GuestChange{
			ID: "driver-remove", What: "Remove the data-centre driver. " + how,
			Why: "It says that the vGPU is not supported, and keeps the right driver away.", When: FirstBoot,
			Undo: "Install the same packages again.", Automatic: c.Driver.Origin != "unknown", Items: slices.Clone(c.Driver.Packages),
		})
	}
	if c.Driver == nil || !c.Driver.Guest || w.GuestDriver != "" {
		c.add(GuestChange{
			ID: "driver-vgpu", What: "Install NVIDIA's vGPU guest driver, which the operator brings.",
			Why: "Only it knows vGPUs. Its licence does not allow that gpuvirt brings it.", When: FirstBoot,
			Undo: "Remove it with its own program or package.", Automatic: w.GuestDriver != "", Items: named(w.GuestDriver),
		})
	}
	c.add(GuestChange{
		ID: "driver-headers", What: "See that the headers of the VM's kernel are there, and DKMS.",
		Why: "The driver's modules are built in the VM.", When: Live, Undo: "Remove the packages.", Automatic: false, Items: named(c.OS.Kernel),
	})
	lays := FirstBoot // a person does
	if w.LicenceToken {
		lays = Offline
	}
	c.add(GuestChange{
		ID: "licence", What: "Lay gridd.conf with the feature type of the vGPU, and the client token (mode 0744), and start nvidia-gridd.",
		Why: "Without a licence a vGPU is slowed down after a while.", When: lays, Undo: "Remove the token and put gridd.conf back.",
		Automatic: w.LicenceToken, Items: c.files("gridd", "licence-token"),
	})
	if t.card {
		c.add(GuestChange{
			ID: "driver-both", What: "Decide on one driver: the VM gets a vGPU and a whole card.",
			Why: "A guest has one driver of NVIDIA; the vGPU guest driver serves both only where its notes say so.", When: FirstBoot,
			Undo: "There is nothing to undo.", Automatic: false,
		})
	}
}

func named(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// settings turns off what sets the source's cards.
func (c *changes) settings(t targetKind) {
	keep := t.card && !t.vgpu
	off := func(id, what, why string, items []string) {
		c.addIf(items, GuestChange{ID: id, What: what, Why: why, When: Offline, Undo: "Unmask the units and put the saved files back.", Automatic: true})
	}
	if !keep {
		off("persistence-daemon", "Turn nvidia-persistenced off while the driver is changed.", "It holds the device, and a vGPU does not need it.",
			append(c.units("persistence"), c.files("persistence")...))
		off("mig-scripts", "Turn off what makes MIG instances at boot.", "A vGPU is not cut by its guest that way.", append(c.units("mig-manager"), c.files("mig")...))
	}
	off("gpu-settings", "Turn off what sets clocks and power.", "They belong to the host's card; set them there.", append(c.units("powerd"), c.files("power")...))
	off("fabric-manager", "Turn the Fabric Manager off.", "The VM has no NVSwitch, or the host runs it.", c.units("fabric-manager"))
	if !keep {
		off("data-centre-agents", "Turn off agents that watch data-centre GPUs, until they are known to work on the vGPU.",
			"DCGM has few metrics of a vGPU, and waits for a GPU that it knows.", c.units("dcgm"))
	}
	c.addIf(c.files("xorg"), GuestChange{
		ID: "xorg-busid", What: "Take the BusID out of Xorg's configuration.", Why: "The GPU has another address in the VM.",
		When: Offline, Undo: "Put the saved file back.", Automatic: true,
	})
	c.addIf(append(c.files("cdi"), c.units("cdi")...), GuestChange{
		ID: "cdi-files", What: "Write container device files anew (nvidia-ctk cdi generate).", Why: "They hold device numbers and paths of the source's driver.",
		When: FirstBoot, Undo: "Put the saved files back.", Automatic: true,
	})
	engines := 0
	var paths []string
	for _, m := range c.Models {
		if engines += max(0, m.Engines); m.Engines > 0 || m.Kind == "tensorrt" {
			paths = append(paths, m.Path)
		}
	}
	if len(paths) > 0 {
		c.add(GuestChange{
			ID: "engines", What: "Build TensorRT engines anew, " + cmp.Or(Count(engines, "file", "files"), "files") + ", where the model of GPU is another.",
			Why: "They run on the model that they were built for.", When: FirstBoot, Undo: "Keep the old files beside the new.", Automatic: false, Items: paths,
		})
	}
	if c.Memory.HugepagesBytes > 0 {
		c.add(GuestChange{
			ID: "hugepages", What: "Set the number of huge pages for the VM's memory.", Why: "The source's number may be more than the VM has.",
			When: Live, Undo: "Put the kernel argument or sysctl file back.", Automatic: false,
		})
	}
	if c.Firmware.SecureBoot != nil && *c.Firmware.SecureBoot {
		c.add(GuestChange{
			ID: "module-key", What: "Enrol the key of the driver's modules (MOK) in the VM's firmware.", Why: "Secure Boot loads no module whose key it does not know.",
			When: FirstBoot, Undo: "Delete the key with mokutil.", Automatic: false,
		})
	}
}
