package vmapi

import (
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

func trial() Trial {
	return Trial{
		Disks:   map[string]string{"/srv/final/0.qcow2": "/srv/trial/0.qcow2", "/dev/vg/data": "/dev/vg/data-trial"},
		Network: "gpuvirt-trial",
	}
}

func TestTrialXML(t *testing.T) {
	efi := readFile(t, "testdata/made-efi.xml")
	got, err := trialXML(efi, "M1", trial())
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/made-efi-trial.xml"
	if *update {
		if err := os.WriteFile(golden, []byte(got+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(readFile(t, golden), got+"\n"); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever firmware a VM has, a trial does not write the variables that are the VM's.
func TestTrialNVRAM(t *testing.T) {
	efi := readFile(t, "testdata/made-efi.xml")
	const auto = "<os firmware='efi'>"
	for _, tc := range []struct {
		name, os, file string
		want           string // part of the trial
		without        string // what is not in it
	}{
		{name: "chosen by libvirt", os: auto, want: "<nvram>/srv/trial/0.qcow2.nvram</nvram>"},
		{name: "asked for", os: auto, file: "/srv/trial/vars", want: "<nvram>/srv/trial/vars</nvram>"},
		{
			name: "named", os: "<os><loader readonly='yes' type='pflash'>/usr/share/CODE.fd</loader>" +
				"<nvram template='/usr/share/VARS.fd'>/var/lib/libvirt/qemu/nvram/moved_VARS.fd</nvram>",
			want: `<nvram template="/usr/share/VARS.fd">/srv/trial/0.qcow2.nvram</nvram>`, without: "moved_VARS",
		},
		{
			name: "not named", os: "<os><loader readonly='yes' type='pflash'>/usr/share/CODE.fd</loader>",
			want: "<nvram>/srv/trial/0.qcow2.nvram</nvram>",
		},
		{
			name: "with a source", os: auto + "<nvram type='file' templateFormat='raw' format='qcow2'><source file='/var/lib/libvirt/qemu/nvram/moved_VARS.qcow2'/></nvram>",
			want: `<nvram format="qcow2" templateFormat="raw">/srv/trial/0.qcow2.nvram</nvram>`, without: "moved_VARS",
		},
		{name: "without variables", os: "<os><loader type='pflash' stateless='yes'>/usr/share/OVMF.fd</loader>", want: "stateless", without: "<nvram"},
		{name: "BIOS", os: "<os>", want: "hvm", without: "<nvram"},
	} {
		tr := trial()
		tr.NVRAM = tc.file
		got, err := trialXML(strings.Replace(efi, auto, tc.os, 1), "M1", tr)
		if err != nil || !strings.Contains(got, tc.want) || tc.without != "" && strings.Contains(got, tc.without) {
			t.Errorf("%s: %v; want %s in\n%s", tc.name, err, tc.want, got)
		}
	}
}

func TestTrialRefuses(t *testing.T) {
	efi := readFile(t, "testdata/made-efi.xml")
	const auto, disk = "<os firmware='efi'>", "<disk type='file' device='disk'>"
	vars := auto + "<nvram>/srv/trial/0.qcow2.nvram</nvram>"
	for _, tc := range []struct {
		name     string
		old, new string // in the definition
		change   func(*Trial)
		code     gpu.Code
		part     string
	}{
		{name: "no network", change: func(tr *Trial) { tr.Network = "" }, part: "no network"},
		{name: "a disk not named", change: func(tr *Trial) { delete(tr.Disks, "/dev/vg/data") }, part: `instead of the disk "/dev/vg/data"`},
		{name: "a disk of the VM", change: func(tr *Trial) { tr.Disks["/srv/final/0.qcow2"] = "/dev/vg/data" }, part: `would write the VM's disk "/dev/vg/data"`},
		{name: "the disk itself", change: func(tr *Trial) { tr.Disks["/dev/vg/data"] = "/dev/vg/data" }, part: "would write the VM's disk"},
		{name: "the disk, in other words", change: func(tr *Trial) { tr.Disks["/dev/vg/data"] = "/dev/vg/../vg/data" }, part: "not the path of a file"},
		{name: "no path", change: func(tr *Trial) { tr.Disks["/dev/vg/data"] = "data" }, part: "not the path of a file"},
		{name: "variables of the VM", old: auto, new: vars, part: "would write the VM's variables"},
		{name: "no file for variables", change: func(tr *Trial) { tr.NVRAM = "vars" }, part: "no file for the variables"},
		{
			name: "only devices", change: func(tr *Trial) { tr.Disks["/srv/final/0.qcow2"] = "/dev/vg/root-trial" },
			part: "no file for the variables",
		},
		{
			name: "variables kept otherwise", old: auto, new: auto + "<varstore template='/usr/share/vars.json'/>",
			part: "in a way that is not known",
		},
		{
			name: "a disk elsewhere", old: disk, part: "neither in a file nor on a block device",
			new: "<disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vdz'/></disk>" + disk,
		},
		{
			name: "an encrypted disk", old: disk, part: "encrypted",
			new: "<disk type='file' device='disk'><source file='/x'><encryption format='luks'/></source><target dev='vdz'/></disk>" + disk,
		},
		{
			name: "a folder", old: disk, part: "a folder of the host",
			new: "<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>" + disk,
		},
		{
			name: "memory in a file", old: disk, part: `memory in "/srv/pmem"`,
			new: "<memory model='nvdimm'><source><path>/srv/pmem</path></source><target><size unit='MiB'>64</size></target></memory>" + disk,
		},
		{
			name: "a disk of the host", old: disk, part: "a disk of the host",
			new: "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/><address bus='0' target='0' unit='0'/></source></hostdev>" + disk,
		},
		{
			name: "arguments for QEMU", old: "</devices>", part: "arguments for QEMU",
			new: "</devices><commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-snapshot'/></commandline>",
		},
		{name: "another's", old: `by="M1"`, new: `by="M2"`, code: gpu.CodeConflict, part: `"M2"`},
	} {
		tr := trial()
		tr.Disks = maps.Clone(tr.Disks)
		if tc.change != nil {
			tc.change(&tr)
		}
		doc := efi
		if tc.old != "" {
			doc = strings.Replace(efi, tc.old, tc.new, 1)
			if doc == efi {
				t.Fatalf("%s: nothing replaced", tc.name)
			}
		}
		if tc.code == "" {
			tc.code = gpu.CodeInvalid
		}
		got, err := trialXML(doc, "M1", tr)
		if err == nil {
			t.Errorf("%s: %s", tc.name, got)
			continue
		}
		wantCode(t, err, tc.code, tc.part)
	}
}

// A medium that is only read may be the VM's own.
func TestTrialSharesWhatIsRead(t *testing.T) {
	iso := "<disk type='file' device='cdrom'><source file='/srv/drivers.iso'/><target dev='sdb' bus='sata'/><readonly/></disk>"
	doc := strings.Replace(readFile(t, "testdata/made-efi.xml"), "<disk ", iso+"<disk ", 1)
	tr := trial()
	tr.Disks["/srv/drivers.iso"] = "/srv/drivers.iso"
	got, err := trialXML(doc, "M1", tr)
	if err != nil || !strings.Contains(got, `<source file="/srv/drivers.iso"></source>`) {
		t.Errorf("%v\n%s", err, got)
	}
}
