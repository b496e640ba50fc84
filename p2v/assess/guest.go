package assess

import (
	"fmt"
	"slices"

	"gpuvirt/p2v/report"
)

// Moment is when a change of the guest is made.
type Moment string

// The moments.
const (
	Live      Moment = "live"       // on the source while it runs, by its owner: gpuvirt never writes there
	Offline   Moment = "offline"    // in the overlay, before the VM starts
	FirstBoot Moment = "first-boot" // in the VM
)

// A GuestChange is something in the guest that has to be otherwise than on the source.
// Changes are in the order in which they are made.
type GuestChange struct {
	ID   string `json:"id"`
	What string `json:"what"`
	Why  string `json:"why"`
	When Moment `json:"when"`
	Undo string `json:"undo"`
	// Automatic is false where a person has to do it, or to bring something.
	Automatic bool `json:"automatic"`
	// Items are what it is about: files, units, devices; as many as there are.
	Items []string `json:"items"`
}

// changes collects the changes for a plan.
type changes struct {
	*look
	list []GuestChange
}

func (c *changes) add(g GuestChange) {
	for i := range g.Items {
		g.Items[i] = shorten(g.Items[i])
	}
	if g.Items == nil {
		g.Items = []string{}
	}
	c.list = append(c.list, g)
}

// guestChanges lists what changes in the guest for what was chosen. All is undone by
// throwing the overlay away; Undo tells how one is taken back alone.
func (l *look) guestChanges(fits []Fitting, w Wish, d Drivers) []GuestChange {
	c := &changes{look: l, list: []GuestChange{}}
	to := target(fits)
	c.boot()
	c.network()
	c.oldDriver(to)
	c.newDriver(to, fits, w, d)
	c.settings(to)
	c.pins(fits)
	c.hardware()
	c.add(GuestChange{
		ID: "identity", What: "Keep machine-id and ssh host keys, as the VM replaces the source.",
		Why: "Others know it by them. A rehearsal, which has them too, is on a network of its own.", When: Offline, Undo: "Put the saved files back.", Automatic: true,
	})
	return c.list
}

// A targetKind is what the guest will see.
type targetKind struct {
	gpu, vgpu, card, nvidia bool
}

func target(fits []Fitting) (t targetKind) {
	for _, f := range fits {
		if f.Choice == nil {
			continue
		}
		t.gpu = true
		switch kind(f.Choice.Sharing) {
		case whole:
			t.card = true
			t.nvidia = t.nvidia || f.Need.Source.Vendor == nvidia
		case migBacked, timeSliced, function, instance:
			t.vgpu = t.vgpu || f.Choice.nvidiaVGPU()
			t.nvidia = t.nvidia || f.Choice.nvidiaVGPU()
		}
	}
	return t
}

// Series is that of a vGPU of NVIDIA: "C"; empty: it is none.
func (c Candidate) Series() string { return c.vgpuSeries }

// nvidiaVGPU tells whether the guest needs NVIDIA's vGPU driver for it.
func (c Candidate) nvidiaVGPU() bool { return c.vgpuSeries != "" }

func (c *changes) boot() {
	c.add(GuestChange{
		ID: "virtio-drivers", What: "Build the initramfs with the virtio drivers, and install the guest agent.",
		Why: "The VM's disk and network are virtio, and the agent answers the checks.", When: Offline,
		Undo: "Build the initramfs of the source again.", Automatic: true, Items: slices.Clone(c.OS.Kernels),
	})
	c.add(GuestChange{
		ID: "serial-console", What: "Send the kernel's and a login's console to the serial port too.",
		Why: "It is what can be read where the network does not come up.", When: Offline, Undo: "Remove the console argument.", Automatic: true,
	})
	if e := c.Firmware.EFI; e != nil && !e.Fallback {
		c.add(GuestChange{
			ID: "boot-fallback", What: "Copy the boot loader to where any UEFI firmware looks for one.",
			Why: "The entry that names it is in the source's firmware, and not in the VM's.", When: Offline,
			Undo: "Remove the copy from EFI/BOOT.", Automatic: true, Items: []string{e.Mount + e.Loader},
		})
	}
	var rows []string
	for _, r := range c.Boot.Fstab {
		if report.KernelName(r.Spec) {
			rows = append(rows, r.Spec+" "+r.Mount)
		}
	}
	for _, r := range c.Boot.CryptRows {
		if r.KernelName {
			rows = append(rows, r.Name+" "+r.Source)
		}
	}
	if len(rows) > 0 {
		c.add(GuestChange{
			ID: "device-names", What: "Name disks in fstab as the VM has them, and in crypttab by their UUID.",
			Why: "The kernel gives virtual disks other names.", When: Offline, Undo: "Put the saved files back.", Automatic: true, Items: rows,
		})
	}
	if c.OS.SELinux == "enforcing" {
		c.add(GuestChange{
			ID: "selinux-relabel", What: "Have all files labelled anew at the first start.",
			Why: "Files that were written from outside have no label.", When: FirstBoot, Undo: "Nothing is left to undo.", Automatic: true,
		})
	}
	if slices.ContainsFunc(c.Volumes, func(v report.Volume) bool { return v.TPM }) {
		c.add(GuestChange{
			ID: "tpm-binding", What: "Bind encrypted volumes to the VM's TPM, after a passphrase was added on the source.",
			Why: "The VM has another TPM.", When: FirstBoot, Undo: "Remove the key slot.", Automatic: false,
		})
	}
}

func (c *changes) network() {
	var nics, built []string
	for _, n := range c.NICs {
		switch n.Kind {
		case "physical":
			nics = append(nics, n.Name+" "+n.MAC)
		case "bond", "vlan", "bridge":
			built = append(built, n.Name)
		}
	}
	if len(nics) > 0 {
		c.add(GuestChange{
			ID: "nic-names", What: "Lay a .link file for each network device that gives its MAC address the name from before.",
			Why: "Names come from the slot, which is another in the VM.", When: Offline, Undo: "Remove /etc/systemd/network/10-gpuvirt-*.link.", Automatic: true, Items: nics,
		})
	}
	if len(built) > 0 {
		c.add(GuestChange{
			ID: "built-networks", What: "Map bonds, VLANs and bridges to the VM's networks.",
			Why: "A bond of virtual adapters has no use, and a VLAN needs a network that carries it.", When: FirstBoot,
			Undo: "Put the saved configuration back.", Automatic: false, Items: built,
		})
	}
}

// files are the configuration files of a kind.
func (c *changes) files(kinds ...string) []string {
	var out []string
	for _, f := range c.Configs {
		if slices.Contains(kinds, f.Kind) {
			out = append(out, f.Path)
		}
	}
	return out
}

// units are the services with a role that start by themselves.
func (c *changes) units(roles ...string) []string {
	var out []string
	for _, s := range c.Services {
		if slices.Contains(roles, s.Role) && s.Enabled != "masked" && (s.State == "active" || s.Enabled != "disabled") {
			out = append(out, s.Unit)
		}
	}
	return out
}

func (c *changes) addIf(items []string, g GuestChange) {
	if len(items) > 0 {
		g.Items = items
		c.add(g)
	}
}

// pins are places that name GPUs: those that are rewritten, and those that a person sees to.
func (c *changes) pins(fits []Fitting) {
	lines, left := Repin(c.Report, fits, func(file, _ string) bool { return slices.Contains(c.files("xorg"), file) })
	var files, items, places, byHand []string
	for _, l := range lines {
		if !slices.Contains(files, l.File) {
			files = append(files, l.File)
		}
		items = append(items, l.Items...)
	}
	for _, p := range left {
		if !p.Person {
			continue
		}
		byHand = append(byHand, p.Item)
		if !slices.Contains(places, p.Where) {
			places = append(places, p.Where)
		}
	}
	const why = "UUIDs, addresses and MIG devices are others in the VM."
	what := fmt.Sprintf("Rewrite the GPUs that are named to their numbers in the VM, in %s of %s.", Count(len(lines), "line", "lines"), quotes(files))
	if len(Chosen(fits)) > 1 {
		what += " The partitions are counted in the order of the GPUs that they stand for."
	}
	to := "Name GPUs as the VM has them"
	if len(Chosen(fits)) == 0 {
		to = "Take out the GPUs that are named, as the VM has none"
	}
	c.addIf(items, GuestChange{ID: "pins", What: what, Why: why, When: Offline, Undo: "Put the saved files back.", Automatic: true})
	c.addIf(byHand, GuestChange{
		ID: "pins-by-hand",
		What: fmt.Sprintf("%s, in %s: %s. Change files on the server before the cut-over, or in the VM after it; start processes and containers with the new value.",
			to, Count(len(places), "place that gpuvirt does not rewrite", "places that gpuvirt does not rewrite"), quotes(places)),
		Why: why, When: FirstBoot, Undo: "Put the old values back.", Automatic: false,
	})
}

// Chosen are the fittings that have a choice.
func Chosen(fits []Fitting) []Fitting {
	return slices.DeleteFunc(slices.Clone(fits), func(f Fitting) bool { return f.Choice == nil })
}

// hardware turns off what has no use without the source's hardware.
func (c *changes) hardware() {
	var items []string
	if len(c.volumeHits("md")) > 0 {
		items = append(items, "mdmonitor.service")
	}
	if len(c.volumeHits("multipath")) > 0 {
		items = append(items, "multipathd.service")
	}
	items = append(items, "smartd.service", "ipmievd.service", "lldpad.service", "mcelog.service")
	c.add(GuestChange{
		ID: "hardware-services", What: "Mask services that watch or set hardware, where they are installed.",
		Why: "They find none in the VM and fail at every start.", When: Offline, Undo: "Unmask them.", Automatic: true, Items: items,
	})
}
