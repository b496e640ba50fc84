package guest

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
)

// settings turns off the units among the items, and takes what sets the server's cards out
// of the files.
func (m *maker) settings() {
	for _, item := range m.change.Items {
		if strings.HasPrefix(item, "/") {
			m.settingsFile(item)
		} else {
			m.unitOff(item, item)
		}
	}
}

func (m *maker) unitOff(unit, item string) {
	m.add(convert.Edit{
		Kind: convert.EditUnitOff, Unit: unit, What: "Keep " + unit + " from starting.",
		Undo: "Remove /etc/systemd/system/" + unit + ".d/90-gpuvirt-off.conf.",
	}, item)
}

const unitFolder = "/etc/systemd/system/"

var (
	// A line of a unit that can be left out of it: what runs beside its program.
	beside = regexp.MustCompile(`^\s*Exec(StartPre|StartPost|StopPost)\s*=`)
	// A line of a shell script that is a command of its own.
	command = regexp.MustCompile(`^\s*(?:/usr/bin/)?nvidia-smi(?:\s+[A-Za-z0-9,.=_/:-]+)+\s*$`)
	setting = regexp.MustCompile(`\bnvidia-(?:smi|mig-parted)\b|\bmig-parted\b`)
	// A line of /etc/crontab that runs nothing else.
	cron = regexp.MustCompile(`^\s*(?:@\w+|(?:\S+\s+){4}\S+)\s+\S+\s+(?:/usr/bin/)?nvidia-smi(?:\s+[A-Za-z0-9,.=_/:-]+)+\s*$`)
	// The program of a unit that does nothing else.
	onlySets = regexp.MustCompile(`^[-@:+!]*(?:/[A-Za-z0-9._/-]+/)?(?:nvidia-smi|nvidia-mig-parted|mig-parted)(?:\s+[A-Za-z0-9,.=_/:-]+)*\s*$`)
)

// settingsFile does what has to be done to one file that sets the server's cards.
func (m *maker) settingsFile(file string) {
	i := slices.IndexFunc(m.Configs, func(c report.Config) bool {
		return c.Path == file && slices.Contains([]string{"mig", "power", "persistence"}, c.Kind)
	})
	if i < 0 {
		m.leave(ByPerson, "the inspection does not have its lines", file)
		return
	}
	c := m.Configs[i]
	name, inUnits := strings.CutPrefix(file, unitFolder)
	unit, dropIn, isDropIn := strings.Cut(name, ".d/")
	switch {
	case c.Kind == "persistence":
		m.leave(ByNobody, "it only matters to nvidia-persistenced, which is turned off", file)
	case file == "/etc/nvidia-mig-manager/config.yaml":
		m.leave(ByNobody, "it only matters to NVIDIA's MIG manager, which is turned off", file)
	case inUnits && isDropIn && !strings.Contains(dropIn, "/"):
		m.without(c, beside, "#", file)
	case inUnits && strings.HasSuffix(unit, ".service") && !strings.Contains(unit, "/"):
		if m.onlySettings(unit) {
			m.unitOff(unit, file)
		} else {
			m.without(c, beside, "#", file)
		}
	case path.Base(file) == "rc.local":
		m.without(c, command, ": #", file) // which stands for a command, where a shell needs one
	case file == "/etc/crontab":
		m.without(c, cron, "#", file)
	default:
		m.leave(ByPerson, "it is no file of a kind that is changed", file)
	}
}

// onlySettings tells whether a unit is not there for anything that uses a GPU.
func (m *maker) onlySettings(unit string) bool {
	uses := func(p report.Process) bool { return p.Unit == unit && p.Framework != "monitor" }
	return !slices.ContainsFunc(m.Processes, uses) && slices.ContainsFunc(m.Services, func(s report.Service) bool {
		return s.Unit == unit && (s.Role == "settings" && onlySets.MatchString(s.Exec) || s.Role == "mig-manager" || s.Role == "powerd")
	})
}

// without makes comments of the lines that set cards, where all of them can be left out.
func (m *maker) without(c report.Config, can *regexp.Regexp, mark, item string) {
	if slices.ContainsFunc(c.Lines, func(l string) bool {
		return setting.MatchString(l) && (!can.MatchString(l) || strings.HasSuffix(l, `\`))
	}) {
		m.leave(ByPerson, "what sets the cards is part of something else there", item)
		return
	}
	m.comment(c, setting.MatchString, mark, item)
}

// maxLines is how many lines of a file an inspection tells.
const maxLines = 40

// comment makes comments of the lines of a file that are wanted, where the inspection has
// them as they stand.
func (m *maker) comment(c report.Config, want func(line string) bool, mark, item string) {
	have, all := map[string]bool{}, map[string]bool{}
	for _, line := range c.Exact {
		twice := all[line] // an edit is of all that are just so
		have[strings.TrimSpace(line)], all[line] = true, true
		if want(line) && !twice {
			m.line(c.Path, line, mark+" not in a VM: "+strings.TrimSpace(line), item)
		}
	}
	for _, line := range c.Lines {
		if want(line) && !have[strings.TrimSpace(line)] {
			m.leave(ByPerson, "the inspection does not have one of its lines as it stands", item)
			break
		}
	}
	if len(c.Lines) >= maxLines {
		m.leave(ByPerson, "it has more lines than the inspection tells: see to the others", item)
	}
}

// line rewrites one.
func (m *maker) line(file, from, to string, items ...string) {
	m.add(convert.Edit{
		Kind: convert.EditLine, Path: file, Old: from, New: to,
		What: "In " + file + " make " + quote(from) + " into " + quote(to) + ".", Undo: "Write the line as it was: " + quote(from) + ".",
	}, items...)
}

// xorg takes the addresses of GPUs out: without any, X takes the one that is there.
func (m *maker) xorg() {
	bus := regexp.MustCompile(`(?i)^\s*BusID\s`)
	for _, item := range m.change.Items {
		for _, c := range m.Configs {
			if c.Path == item && c.Kind == "xorg" {
				m.comment(c, bus.MatchString, "#", item)
			}
		}
	}
}

// cdi is done by a unit of NVIDIA's container toolkit, where it is there.
func (m *maker) cdi() {
	if slices.ContainsFunc(m.change.Items, func(item string) bool { return strings.HasPrefix(item, "nvidia-cdi-refresh.") }) {
		m.leave(ByGuest, "nvidia-cdi-refresh writes them anew when the VM starts")
		return
	}
	m.leave(ByPerson, "nvidia-ctk cdi generate has to be run in the VM when its driver runs")
}
