package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"gpuvirt/p2v/report"
)

// Phase is what a program is doing to the guest.
type Phase string

// The phases of a run, in their order. A version of virt-v2v may lack some.
const (
	PhaseSetup    Phase = "setup"    // the disks are offered to the appliance
	PhaseLaunch   Phase = "launch"   // the appliance comes up
	PhaseCheck    Phase = "check"    // filesystems are looked through
	PhaseFirmware Phase = "firmware" // BIOS or UEFI?
	PhaseInspect  Phase = "inspect"  // what system is it?
	PhaseSpace    Phase = "space"    // is there room in it?
	PhaseConvert  Phase = "convert"  // drivers, names, initramfs: most of the time
	PhaseEdit     Phase = "edit"     // edits that were asked for
	PhaseTrim     Phase = "trim"     // what is free is told to the overlay
	PhaseFinish   Phase = "finish"
)

// Progress is what a run says of itself. There is no percentage: virt-v2v knows none.
type Progress struct {
	Phase Phase     `json:"phase"`
	Text  string    `json:"text"` // the program's words, fit to be shown
	Time  time.Time `json:"time"`
}

// starts are how virt-v2v's messages of a phase begin, in versions 2.2 to 2.13. Others,
// also of later versions, belong to the phase that goes on.
var starts = []struct {
	text  string
	phase Phase
}{
	{"Setting up the source", PhaseSetup},
	{"Opening the source", PhaseLaunch},
	{"Checking filesystem integrity before", PhaseCheck},
	{"Detecting if this guest uses BIOS or UEFI", PhaseFirmware},
	{"Inspecting the source", PhaseInspect},
	{"Checking for sufficient free disk space", PhaseSpace},
	{"Converting ", PhaseConvert},
	{"Setting a random seed", PhaseEdit},
	{"SELinux relabelling", PhaseEdit},
	{"Mapping filesystem data", PhaseTrim},
	{"Skipping fstrim", PhaseTrim},
	{"Checking filesystem integrity after", PhaseFinish},
	{"Closing the overlay", PhaseFinish},
	{"Assigning disks to buses", PhaseFinish},
	{"Checking if the guest needs BIOS or UEFI", PhaseFinish},
	{"Finishing off", PhaseFinish},
}

func phaseOf(text string, now Phase) Phase {
	for _, s := range starts {
		if strings.HasPrefix(text, s.text) {
			return s.phase
		}
	}
	return now
}

// A message is one line that virt-v2v writes for programs.
type message struct {
	Text string    `json:"message"`
	Type string    `json:"type"` // message, info, warning, error
	Time time.Time `json:"timestamp"`
}

const (
	maxMessage  = 64 << 10 // bytes of one
	maxMessages = 4 << 20  // bytes of all
)

var errTooMuch = errors.New("it writes more messages than anybody reads")

// A messageReader reads messages from a file that grows.
type messageReader struct {
	from  io.Reader
	begun []byte
	read  int
}

// more returns the messages that were added. What is no message is passed over: the
// program has its log for it.
func (r *messageReader) more() ([]message, error) {
	var all []message
	buf := make([]byte, 32<<10)
	for {
		n, err := r.from.Read(buf)
		r.begun = append(r.begun, buf[:n]...)
		if r.read += n; r.read > maxMessages {
			return all, errTooMuch
		}
		for {
			line, rest, found := bytes.Cut(r.begun, []byte("\n"))
			if !found {
				break
			}
			r.begun = append([]byte(nil), rest...)
			var m message
			if len(line) <= maxMessage && json.Unmarshal(line, &m) == nil && m.Text != "" {
				m.Text = tidy(m.Text)
				all = append(all, m)
			}
		}
		if len(r.begun) > maxMessage {
			return all, errTooMuch
		}
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// tidy makes text of a guest's disk fit to be shown: one line, no control characters.
func tidy(text string) string {
	return report.CleanString(strings.Join(strings.Fields(text), " "))
}
