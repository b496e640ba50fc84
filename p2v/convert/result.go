package convert

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Firmware is what starts a machine.
type Firmware string

// The kinds of firmware.
const (
	FirmwareBIOS Firmware = "bios"
	FirmwareUEFI Firmware = "uefi"
)

// A Result is what is known after a run.
type Result struct {
	// Firmware is what the disks are made for; empty: this version does not say, or only
	// says so of UEFI.
	Firmware Firmware `json:"firmware,omitempty"`
	// System is the guest's in its own words: "Debian GNU/Linux 12 (bookworm)".
	System string `json:"system,omitempty"`
	// Root is the device of its root filesystem, as the appliance named it.
	Root string `json:"root,omitempty"`
	// Warnings are the program's.
	Warnings []string `json:"warnings"`
	// Phases are what took how long.
	Phases []Step `json:"phases"`
	// OverlayBytes is what each overlay takes on the disk.
	OverlayBytes []int64 `json:"overlay_bytes"`
	// Version is of the program.
	Version string `json:"version"`
	// Log is a file of this host.
	Log string `json:"log"`
}

// uefiNote is what virt-v2v says of a guest that needs UEFI. Of BIOS it says nothing.
const uefiNote = "This guest requires UEFI on the target to boot."

func (s *session) result() Result {
	w := s.watch
	r := Result{
		Warnings: slices.Concat([]string{}, s.again, w.warnings), Phases: w.phases, Log: w.log.path,
		System: w.system, Firmware: w.firmware, Version: s.tools.InPlace.Version,
	}
	if s.messages == nil {
		r.Version = s.tools.Customize.Version
	}
	for _, path := range s.job.overlays() {
		var size int64
		if st, err := os.Stat(path); err == nil {
			size = st.Size()
		}
		r.OverlayBytes = append(r.OverlayBytes, size)
	}
	return r
}

// learn takes what a message tells of the guest.
func (w *watch) learn(m message) {
	switch {
	case m.Text == uefiNote:
		w.firmware = FirmwareUEFI
	case strings.HasPrefix(m.Text, "Checking if the guest needs BIOS or UEFI") && w.firmware == "":
		// What follows speaks of UEFI only.
		w.firmware = FirmwareBIOS
	case strings.HasPrefix(m.Text, "Converting ") && strings.HasSuffix(m.Text, " to run on KVM"):
		w.system = strings.TrimSuffix(strings.TrimPrefix(m.Text, "Converting "), " to run on KVM")
	}
}

// output is the document that newer versions write.
type output struct {
	XMLName  xml.Name `xml:"v2v-inspection"`
	Firmware struct {
		Type string `xml:"type,attr"`
	} `xml:"firmware"`
	System struct {
		Product string `xml:"product_name"`
		Root    string `xml:"root"`
	} `xml:"operatingsystem"`
}

// readOutput takes what virt-v2v has written of the guest. An empty document is none.
func (r *Result) readOutput(from io.Reader) error {
	const limit = 1 << 20
	text, err := io.ReadAll(io.LimitReader(from, limit+1))
	switch {
	case err != nil:
		return fmt.Errorf("cannot read what virt-v2v found: %w", err)
	case len(text) > limit:
		return fmt.Errorf("cannot read what virt-v2v found: it has more than %d bytes", limit)
	case len(text) == 0:
		return nil
	}
	var doc output
	if err := xml.Unmarshal(text, &doc); err != nil {
		return fmt.Errorf("cannot read what virt-v2v found: %w", err)
	}
	switch f := Firmware(doc.Firmware.Type); f {
	case FirmwareBIOS, FirmwareUEFI:
		r.Firmware = f
	default:
		return fmt.Errorf("cannot read what virt-v2v found: %q is no firmware", doc.Firmware.Type)
	}
	if doc.System.Product != "" {
		r.System = tidy(doc.System.Product)
	}
	r.Root = tidy(doc.System.Root)
	return nil
}
