package verify

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

const (
	consoleLines = 40
	consoleWidth = 200
)

// control is what a console has in it for a terminal: colours, cursors, titles.
var control = regexp.MustCompile(`\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[()][A-Za-z0-9]|[=>A-Za-z])`)

// consoleText makes the end of a console fit to be shown.
func consoleText(raw []string) (lines []string) {
	for _, line := range raw[max(0, len(raw)-4*consoleLines):] {
		line = line[:min(len(line), 4096)]
		if line = oneLine(control.ReplaceAllString(line, ""), consoleWidth); line != "" {
			lines = append(lines, line)
		}
	}
	return lines[max(0, len(lines)-consoleLines):]
}

// A sign on a console tells how a boot went.
type sign struct {
	text  string // in lower case
	state State
	means string
}

var signs = []sign{
	{"kernel panic", StateFailed, "the kernel has stopped: it panicked"},
	{"no bootable device", StateFailed, "the firmware found no disk to start from"},
	{"no bootable option or device", StateFailed, "the firmware found no disk to start from"},
	{"grub rescue>", StateFailed, "the boot loader does not find its files"},
	{"minimal bash-like line editing", StateFailed, "the boot loader waits for a command"},
	{"(initramfs)", StateFailed, "the root filesystem was not found"},
	{"gave up waiting for root", StateFailed, "the root filesystem was not found"},
	{"entering emergency mode", StateFailed, "the system is in its emergency mode"},
	{"you are in emergency mode", StateFailed, "the system is in its emergency mode"},
	{"you are in rescue mode", StateFailed, "the system is in its rescue mode"},
	{"please enter passphrase", StateFailed, "a disk waits for its passphrase"},
	{"please unlock disk", StateFailed, "a disk waits for its passphrase"},
	{" login:", StateOK, "the console asks for a login"},
}

// judge reads how far a boot came: the last sign counts, as a VM may have started twice.
func judge(lines []string) (sign, bool) {
	for i := len(lines) - 1; i >= 0; i-- {
		line := " " + strings.ToLower(lines[i])
		for _, s := range signs {
			if strings.Contains(line, s.text) {
				return s, true
			}
		}
	}
	return sign{}, false
}

// silent tells what there is to tell of a VM whose agent does not answer, and returns the
// end of its console.
func (v *verification) silent(boot, agent *thing, console func() []string, why error) []string {
	var lines []string
	if console != nil {
		lines = consoleText(console())
	}
	after := time.Since(boot.first).Round(time.Second)
	s, found := judge(lines)
	switch {
	case found:
		boot.seen = seen{state: s.state, text: fmt.Sprintf("%s, %s after the start", s.means, after)}
	case len(lines) == 0:
		boot.seen = seen{state: StateUnknown, text: "neither its agent nor its serial console says anything"}
	default:
		boot.seen = seen{state: StateUnknown, text: "its console does not tell how far it is; its last line: " + lines[len(lines)-1]}
	}
	agent.seen = seen{state: StateUnknown, text: oneLine(why.Error(), 400)}
	if found && s.state == StateOK && v.expect.Network {
		agent.seen.text += ": see that qemu-guest-agent is installed and enabled in the VM"
	} else if found && s.state == StateOK {
		agent.seen.text += ": see that qemu-guest-agent is installed and enabled on the server, or bring its packages, and rehearse again"
	}
	for _, t := range v.things {
		if t != boot && t != agent {
			t.seen = seen{state: StateUnknown, text: "the agent does not answer"}
		}
		v.settle(t)
	}
	return lines
}
