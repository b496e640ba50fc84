package inspect

import (
	"errors"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

// agentCommands are those that a guest agent runs programs by.
var agentCommands = []string{"guest-exec", "guest-exec-status"}

// agentRuns tells whether the settings of QEMU's guest agent let it run programs; nil: one of them
// cannot be read. They are words of a unit, variables of its environment and a file of the agent's
// own; each may forbid commands, or name all that are allowed. Drop-ins of the unit are not looked at.
func (s *scene) agentRuns() *bool {
	var unit string
	for _, dir := range []string{"etc/systemd/system/", "usr/lib/systemd/system/", "lib/systemd/system/"} {
		if unit = s.tree.text(dir + "qemu-guest-agent.service"); unit != "" {
			break
		}
	}
	filter := agentFilter{}
	for line := range strings.Lines(oneLined(unit)) {
		if words, starts := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); starts {
			filter.options(words)
		}
	}
	for _, name := range []string{"etc/sysconfig/qemu-ga", "etc/default/qemu-guest-agent", "etc/qemu/qemu-ga.conf"} {
		text, err := s.tree.read(name, small)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && len(text) == small {
			err = errors.New("it is longer than such a file is")
		}
		if err != nil {
			s.miss("os.guest_agent_runs", "%s", cause(err))
			return nil
		}
		for key, value := range assignments(oneLined(text)) {
			filter.setting(unit, key, value)
		}
	}
	runs := filter.allows(agentCommands)
	return &runs
}

// oneLined makes one line of those that go on.
func oneLined(text string) string { return strings.ReplaceAll(text, "\\\n", " ") }

// An agentFilter is which commands an agent takes. Those that are allowed are all that are, where
// some are named.
type agentFilter struct{ blocked, allowed []string }

// agentOption is one of the agent's that is about commands, with what it names.
var agentOption = regexp.MustCompile(`(?:^|\s)(--block-rpcs|--blacklist|--allow-rpcs|-b|-a)[=\s]?\s*([a-z][a-z0-9,_-]*)`)

func (f *agentFilter) options(words string) {
	for _, g := range agentOption.FindAllStringSubmatch(strings.NewReplacer(`"`, "", "'", "").Replace(words), -1) {
		if g[1] == "--allow-rpcs" || g[1] == "-a" {
			f.allowed = append(f.allowed, strings.Split(g[2], ",")...)
		} else {
			f.blocked = append(f.blocked, strings.Split(g[2], ",")...)
		}
	}
}

// setting takes what a file sets. A variable that the unit does not name has no say, where there is
// a unit.
func (f *agentFilter) setting(unit, key, value string) {
	names := func() []string {
		return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ';' || r == ' ' })
	}
	counts := unit == "" || strings.Contains(unit, "$"+key) || strings.Contains(unit, "${"+key+"}")
	switch key {
	case "block-rpcs", "blacklist":
		f.blocked = append(f.blocked, names()...)
	case "allow-rpcs":
		f.allowed = append(f.allowed, names()...)
	case "BLACKLIST_RPC", "BLOCK_RPCS":
		if counts {
			f.blocked = append(f.blocked, names()...)
		}
	case "FILTER_RPC_ARGS", "DAEMON_ARGS":
		if counts {
			f.options(value)
		}
	}
}

func (f *agentFilter) allows(commands []string) bool {
	return !slices.ContainsFunc(commands, func(c string) bool {
		return slices.Contains(f.blocked, c) || len(f.allowed) > 0 && !slices.Contains(f.allowed, c)
	})
}
