package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
)

// tools is what this host makes VMs' disks with and starts VMs with. Nothing is run for it. A
// simulated host has all of it.
func tools(simulated bool, c *convert.Converter) assess.HostTools {
	if simulated {
		there := assess.Found(nil)
		return assess.HostTools{Converter: there, UEFI: there, SecureBoot: there, TPM: there}
	}
	out := assess.HostTools{
		Converter: assess.Found(c.Look()),
		TPM:       emulatedTPM("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"),
	}
	out.UEFI, out.SecureBoot = firmware("/usr/share/qemu/firmware", "/etc/qemu/firmware")
	return out
}

// emulatedTPM looks for the programs by which libvirt gives a VM a TPM.
func emulatedTPM(path ...string) assess.Presence {
	var lacks []string
	for _, name := range []string{"swtpm", "swtpm_setup"} {
		there := func(dir string) bool {
			st, err := os.Stat(filepath.Join(dir, name))
			return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
		}
		if !slices.ContainsFunc(path, there) {
			lacks = append(lacks, name)
		}
	}
	if len(lacks) == 0 {
		return assess.Found(nil)
	}
	return assess.Found(fmt.Errorf("no TPM can be emulated: %s is missing: install swtpm and swtpm-tools", strings.Join(lacks, ", ")))
}

// A descriptor is what QEMU's packages tell libvirt of an image of firmware, as far as it is asked
// for here (QEMU's docs/interop/firmware.json).
type descriptor struct {
	Interfaces []string `json:"interface-types"`
	Mapping    struct {
		Filename   string `json:"filename"` // of what lies in the VM's memory
		Executable struct {
			Filename string `json:"filename"`
		} `json:"executable"`
	} `json:"mapping"`
	Targets []struct {
		Architecture string   `json:"architecture"`
		Machines     []string `json:"machines"`
	} `json:"targets"`
	Features []string `json:"features"`
}

// firmware looks for the images that libvirt would take: one that refuses what is not signed, with
// the usual keys in it, and one that does neither. Of descriptors of one name that of the last folder
// counts, and an empty one hides it.
func firmware(folders ...string) (plain, secure assess.Presence) {
	files := map[string]string{}
	for _, dir := range folders {
		all, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return assess.Presence{}, assess.Presence{}
		}
		for _, e := range all {
			if filepath.Ext(e.Name()) == ".json" {
				files[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	const install = ": install ovmf (Debian, Ubuntu), edk2-ovmf (RHEL, Fedora) or qemu-ovmf-x86_64 (SUSE)"
	plain = assess.Found(errors.New("there is no UEFI firmware" + install))
	secure = assess.Found(errors.New("there is no UEFI firmware with Secure Boot and keys" + install))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text, err := os.ReadFile(files[name])
		if err != nil {
			return assess.Presence{}, assess.Presence{}
		}
		var d descriptor
		if json.Unmarshal(text, &d) != nil || !d.fits() {
			continue
		}
		switch signed, keys := slices.Contains(d.Features, "secure-boot"), slices.Contains(d.Features, "enrolled-keys"); {
		case signed && keys:
			secure = assess.Found(nil)
		case !signed && !keys:
			plain = assess.Found(nil)
		}
	}
	return plain, secure
}

// fits tells whether a VM as ours can have it, and its image is there.
func (d descriptor) fits() bool {
	q35 := func(machine string) bool { return strings.Contains(machine, "q35") }
	image := d.Mapping.Executable.Filename
	if image == "" {
		image = d.Mapping.Filename
	}
	if _, err := os.Stat(image); err != nil || !slices.Contains(d.Interfaces, "uefi") {
		return false
	}
	for _, t := range d.Targets {
		if t.Architecture == "x86_64" && slices.ContainsFunc(t.Machines, q35) {
			return true
		}
	}
	return false
}
