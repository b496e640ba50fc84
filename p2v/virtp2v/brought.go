package virtp2v

import (
	"bufio"
	"bytes"
	"regexp"
	"slices"
	"strings"
	"time"

	"gpuvirt/p2v/inspect"
	"gpuvirt/p2v/report"
)

// What virt-p2v brings and is looked at; more of a file than this is not.
const (
	filePhysical = "physical.xml"
	fileLSPCI    = "lspci"
	fileDmesg    = "dmesg"
	fileVersion  = "p2v-version"
)

// Bytes of what is kept of a file. That of lspci is some 4 KiB for a device.
func wanted() map[string]int {
	return map[string]int{filePhysical: maxPhysical, fileLSPCI: 2 << 20, fileDmesg: 1 << 20, fileVersion: 256}
}

const (
	typeESP      = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" // of GPT: what UEFI starts from
	typeProtects = "0xee"                                 // of an MBR before a GPT
	typeBIOSBoot = "21686148-6449-6e6f-744e-656564454649" // what GRUB is put in for BIOS
)

var efiInDmesg = regexp.MustCompile(`\befi: EFI v[0-9]`)

// reportOf is the inspection of a server of which virt-p2v runs and not its own system: what is
// only known there is unseen.
func reportOf(p physical, files map[string][]byte, disks []Disk, now time.Time) report.Report {
	r := report.Report{
		Version: report.Version, Inspector: firstLine(files[fileVersion]), Taken: now.UTC(), Privileged: true, Hostname: p.Name,
		OS:     report.OS{Arch: p.OS.Type.Arch},
		CPU:    report.CPU{Vendor: p.CPU.Vendor, Model: p.CPU.Model, Sockets: max(p.CPU.Topology.Sockets, 0), Threads: p.VCPUs},
		Memory: report.Memory{TotalBytes: p.Memory.KiB << 10},
		GPUs:   gpusIn(string(files[fileLSPCI])),
	}
	r.NICs, _ = p.nics()
	for _, d := range disks {
		table, block, types := d.table()
		first := !slices.ContainsFunc(r.Disks, func(o report.Disk) bool { return o.Boots })
		r.Disks = append(r.Disks, report.Disk{
			Name: d.Name, SizeBytes: uint64(d.Size), BlockBytes: block, Table: table, Boots: table != "" && first, //nolint:gosec // nbd bounds it
		})
		if r.Firmware.Type != "uefi" {
			r.Firmware.Type = firmware(types, efiInDmesg.Match(files[fileDmesg]))
		}
	}
	for _, what := range []string{"os", "boot", "filesystems", "volumes", "driver", "processes", "services", "containers", "pins", "models", "configs"} {
		r.Unseen = append(r.Unseen, report.Unseen{What: what, Reason: "the server was started from virt-p2v, and its own system does not run"})
	}
	if len(files[fileLSPCI]) == 0 {
		r.Unseen = append(r.Unseen, report.Unseen{What: "gpus", Reason: "virt-p2v brought no list of PCI devices"})
	}
	r.Clean()
	return r
}

// firmware is what starts a disk with such partitions. Where there is what both take, it is as
// virt-p2v itself was started.
func firmware(types []string, efi bool) string {
	esp, bios := slices.Contains(types, typeESP), slices.Contains(types, typeBIOSBoot)
	if esp && (efi || !bios) {
		return "uefi"
	}
	return "bios"
}

// table is which partition table a disk has, and of what types its partitions are. A disk of
// blocks of 4096 bytes has it elsewhere.
func (d Disk) table() (table string, block uint32, types []string) {
	for _, block = range []uint32{512, 4096} {
		found, parts := inspect.Table(d.head, int(block))
		types = nil
		for _, p := range parts {
			types = append(types, p.Type)
		}
		if found == "gpt" || found == "mbr" && !slices.Contains(types, typeProtects) {
			return found, block, types
		}
	}
	return "", 512, nil
}

func firstLine(b []byte) string {
	in := bufio.NewScanner(bytes.NewReader(b))
	in.Scan()
	return strings.TrimSpace(in.Text())
}
