// Package report is the vocabulary of an inspection: what a physical server says of itself
// before its workload moves into a VM. The inspector writes it on the source, the daemon
// reads it, and a file carries it where there is no path between the two; so it is a
// document with a version. It comes from a machine that nobody here trusts: Read checks
// sizes and shapes before anything else looks at it.
//
// What could not be seen is said in Unseen, and is never taken for "there is none".
// Sizes are bytes, addresses of PCI are full ("0000:41:00.0"), times are UTC.
package report

import "time"

// Version is the version of the document that this package reads and writes.
const Version = 1

// Report is one inspection of one server.
type Report struct {
	Version   int       `json:"version"`
	Inspector string    `json:"inspector"` // the version of gpuvirt that looked
	Taken     time.Time `json:"taken"`
	// Privileged is false where the inspector was not root and so saw less.
	Privileged bool     `json:"privileged"`
	Unseen     []Unseen `json:"unseen"`

	Hostname string   `json:"hostname"`
	System   System   `json:"system"`
	OS       OS       `json:"os"`
	Firmware Firmware `json:"firmware"`
	CPU      CPU      `json:"cpu"`
	Memory   Memory   `json:"memory"`

	Disks       []Disk       `json:"disks"`
	Volumes     []Volume     `json:"volumes"`
	Filesystems []Filesystem `json:"filesystems"`
	Boot        Boot         `json:"boot"`
	NICs        []NIC        `json:"nics"`

	GPUs       []GPU      `json:"gpus"`
	Driver     *Driver    `json:"driver,omitempty"` // nil: no driver of NVIDIA is loaded
	Topology   []Link     `json:"topology"`
	Features   Features   `json:"features"`
	Processes  []Process  `json:"processes"`
	Services   []Service  `json:"services"`
	Containers []Workload `json:"containers"`
	Pins       []Pin      `json:"pins"`
	Models     []Models   `json:"models"`
	Configs    []Config   `json:"configs"`

	// Usage is what the GPUs were seen to do over a window; nil: nobody watched.
	Usage *Usage `json:"usage,omitempty"`
}

// Unseen is something that the inspector could not see.
type Unseen struct {
	What   string `json:"what"`   // a JSON path of the report, such as "containers" or "gpus.0.mig"
	Reason string `json:"reason"` // such as "docker: permission denied"
}

// System is the machine as its firmware names it. Its serial numbers are what
// licences may be tied to.
type System struct {
	Vendor  string `json:"vendor"`
	Product string `json:"product"`
	Serial  string `json:"serial,omitempty"`
	UUID    string `json:"uuid,omitempty"` // of SMBIOS
	// Virtual names the hypervisor where the source is a VM itself; empty: it is none.
	Virtual string `json:"virtual,omitempty"`
}

// OS is the operating system that runs.
type OS struct {
	ID         string   `json:"id"`         // of os-release: "debian"
	VersionID  string   `json:"version_id"` // of os-release: "12"
	PrettyName string   `json:"pretty_name"`
	Arch       string   `json:"arch"` // as uname says: "x86_64"
	Kernel     string   `json:"kernel"`
	Kernels    []string `json:"kernels"` // installed, as folders of /lib/modules
	Cmdline    string   `json:"cmdline"`
	// Headers tells whether the headers of the running kernel are there, which a driver's
	// modules are built with.
	Headers   bool      `json:"headers"`
	BootID    string    `json:"boot_id"`
	MachineID string    `json:"machine_id"`
	Started   time.Time `json:"started"`
	SELinux   string    `json:"selinux,omitempty"` // enforcing, permissive, disabled; empty: it has none
	// GuestAgent tells whether QEMU's guest agent is installed; nil: nobody looked.
	GuestAgent *bool `json:"guest_agent,omitempty"`
	// GuestAgentRuns tells whether the agent's settings let it run programs; nil: there is no agent,
	// or they were not read.
	GuestAgentRuns *bool `json:"guest_agent_runs,omitempty"`
}

// Firmware is what started the machine.
type Firmware struct {
	Type       string `json:"type"` // bios, uefi
	SecureBoot *bool  `json:"secure_boot,omitempty"`
	TPM        string `json:"tpm,omitempty"` // "2.0", "1.2"; empty: none
	// EFI is what UEFI started; nil: it is BIOS, or it is not known.
	EFI *EFI `json:"efi,omitempty"`
}

// EFI is the boot loader that an entry in the firmware of this machine names.
type EFI struct {
	Mount    string   `json:"mount"`    // where the partition that it lies on is mounted: "/boot/efi"
	Loader   string   `json:"loader"`   // from there: "/EFI/debian/shimx64.efi"
	Programs []string `json:"programs"` // that lie beside it, and itself: "grubx64.efi"
	// Fallback is set where /EFI/BOOT/BOOTX64.EFI is there, which firmware starts that has
	// no entry.
	Fallback bool `json:"fallback"`
}

// CPU is the processor.
type CPU struct {
	Model   string   `json:"model"`
	Vendor  string   `json:"vendor"` // "GenuineIntel"
	Sockets int      `json:"sockets"`
	Cores   int      `json:"cores"`   // in all
	Threads int      `json:"threads"` // in all
	NUMA    int      `json:"numa_nodes"`
	Flags   []string `json:"flags"` // those that a program may be built for: avx512f, amx_tile, …
}

// Memory is the machine's memory.
type Memory struct {
	TotalBytes     uint64 `json:"total_bytes"`
	AvailableBytes uint64 `json:"available_bytes"`
	HugepagesBytes uint64 `json:"hugepages_bytes"` // reserved
	SwapBytes      uint64 `json:"swap_bytes"`
}

// Disk is a disk of the machine: no partition, no volume, no loop device.
type Disk struct {
	Name       string      `json:"name"` // of the kernel: "nvme0n1"
	SizeBytes  uint64      `json:"size_bytes"`
	BlockBytes uint32      `json:"block_bytes"` // logical
	Model      string      `json:"model,omitempty"`
	Serial     string      `json:"serial,omitempty"`
	WWN        string      `json:"wwn,omitempty"`
	Transport  string      `json:"transport,omitempty"` // nvme, sata, sas, usb, iscsi, fc, virtio
	Rotational bool        `json:"rotational"`
	ReadOnly   bool        `json:"read_only"`
	Removable  bool        `json:"removable"`
	Table      string      `json:"table,omitempty"` // gpt, mbr; empty: none
	Partitions []Partition `json:"partitions"`
	// Content is what lies on the disk itself where it has no table: a filesystem's type,
	// "LVM2_member", "linux_raid_member", "crypto_LUKS"; empty: nothing known.
	Content string `json:"content,omitempty"`
	// Boots is set where the machine started from it, as far as can be told.
	Boots bool `json:"boots"`
}

// Partition is a part of a disk.
type Partition struct {
	Name       string `json:"name"` // "nvme0n1p2"
	Number     int    `json:"number"`
	StartBytes uint64 `json:"start_bytes"`
	SizeBytes  uint64 `json:"size_bytes"`
	Type       string `json:"type,omitempty"` // GUID, or "0x83"
	UUID       string `json:"uuid,omitempty"`
	Label      string `json:"label,omitempty"`
	Content    string `json:"content,omitempty"` // as Disk.Content
}

// Volume is a block device made of others: LVM, md, LUKS, multipath.
type Volume struct {
	Name      string   `json:"name"`  // "dm-0", "md127"
	Label     string   `json:"label"` // "vg0-root"
	Kind      string   `json:"kind"`  // lvm, md, crypt, multipath, dm
	Level     string   `json:"level,omitempty"`
	SizeBytes uint64   `json:"size_bytes"`
	On        []string `json:"on"` // names of disks, partitions and volumes
	// TPM is set where its key is bound to the machine's TPM.
	TPM bool `json:"tpm,omitempty"`
}

// Filesystem is one that is mounted from a block device, or from the network.
type Filesystem struct {
	Source     string `json:"source"` // "nvme0n1p2", "dm-0", "nas:/models"
	Type       string `json:"type"`
	Mount      string `json:"mount"`
	Options    string `json:"options"`
	UUID       string `json:"uuid,omitempty"`
	SizeBytes  uint64 `json:"size_bytes"`
	UsedBytes  uint64 `json:"used_bytes"`
	Inodes     uint64 `json:"inodes"`
	FreeInodes uint64 `json:"free_inodes"`
}

// Boot is how the system is brought up, and what names devices while it is.
type Boot struct {
	Loader    string `json:"loader,omitempty"`    // grub, systemd-boot; empty: not known
	Initramfs string `json:"initramfs,omitempty"` // initramfs-tools, dracut, mkinitcpio
	// Modules is what the initramfs is built to hold: "most" or "all", or "dep" or
	// "hostonly": only what this machine needs.
	Modules  string     `json:"modules,omitempty"`
	Fstab    []FstabRow `json:"fstab"`
	Crypttab []string   `json:"crypttab"` // names of the volumes; no keys
	// CryptRows are the same volumes with what they lie on; an older inspection has only their names.
	CryptRows []CryptRow `json:"crypttab_rows,omitempty"`
}

// CryptRow is a row of crypttab; it has no key.
type CryptRow struct {
	Name   string `json:"name"`   // of the volume
	Source string `json:"source"` // "UUID=…", "/dev/sda3"
	// KernelName is set where the source is a name that only this machine gives, by the order or
	// the place of its disks: /dev/sda3, /dev/nvme0n1p3. The VM has another.
	KernelName bool `json:"kernel_name,omitempty"`
	// Stable is what the same is called wherever the disk is, where the source is such a name:
	// "UUID=…" of LUKS, else "PARTUUID=…"; empty: it is not known.
	Stable string `json:"stable_source,omitempty"`
	// Line is the line of the file as it stands, as that of a Pin, where the source is such a name.
	Line string `json:"line,omitempty"`
}

// FstabRow is a row of fstab.
type FstabRow struct {
	Spec    string `json:"spec"` // "UUID=…", "/dev/sda1"
	Mount   string `json:"mount"`
	Type    string `json:"type"`
	Options string `json:"options"`
}

// NIC is a network device with hardware behind it, or one built of such.
type NIC struct {
	Name      string   `json:"name"`
	MAC       string   `json:"mac"`
	Kind      string   `json:"kind"` // physical, bond, bridge, vlan, other
	Driver    string   `json:"driver,omitempty"`
	PCI       string   `json:"pci_address,omitempty"`
	MTU       int      `json:"mtu"`
	Up        bool     `json:"up"`
	SpeedMbit int      `json:"speed_mbit,omitempty"`
	On        []string `json:"on,omitempty"` // NICs it is built of
	Addresses []string `json:"addresses"`    // "10.1.2.3/24"
	// Learned are those of them, of IPv6, that it has from routers or from DHCP for a while: a VM gets
	// them on the same network only, if at all.
	Learned []string `json:"learned_addresses,omitempty"`
	// Config names who sets it up: ifupdown, netplan, networkmanager, networkd, ifcfg.
	Config string `json:"config,omitempty"`
	RDMA   bool   `json:"rdma"`
}
