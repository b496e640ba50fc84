package inspect

import (
	"strings"
	"testing"
)

// Units as distributions have them. That of before RHEL 9 names BLACKLIST_RPC.
const (
	olderUnit = `
-- usr/lib/systemd/system/qemu-guest-agent.service --
[Service]
EnvironmentFile=/etc/sysconfig/qemu-ga
ExecStart=/usr/bin/qemu-ga \
  --method=virtio-serial \
  --blacklist=${BLACKLIST_RPC} \
  -F${FSFREEZE_HOOK_PATHNAME}
`
	newerUnit = `
-- usr/lib/systemd/system/qemu-guest-agent.service --
[Service]
EnvironmentFile=/etc/sysconfig/qemu-ga
ExecStart=/usr/bin/qemu-ga --method=virtio-serial $FILTER_RPC_ARGS -F${FSFREEZE_HOOK_PATHNAME}
`
	debianUnit = `
-- usr/lib/systemd/system/qemu-guest-agent.service --
[Service]
EnvironmentFile=-/etc/default/qemu-guest-agent
ExecStart=/usr/sbin/qemu-ga $DAEMON_ARGS
`
)

// Whether the guest agent may run programs is read from all that it is set by.
func TestAgentRuns(t *testing.T) {
	for name, c := range map[string]struct {
		files string
		want  string
	}{
		"nothing is set":         {debianUnit, "true"},
		"RHEL 8":                 {olderUnit + "-- etc/sysconfig/qemu-ga --\n# guest-exec\nBLACKLIST_RPC=guest-file-open,guest-exec,guest-exec-status\n", "false"},
		"RHEL 8, allowed":        {olderUnit + "-- etc/sysconfig/qemu-ga --\n#BLACKLIST_RPC=guest-exec\nBLACKLIST_RPC=guest-file-open\n", "true"},
		"RHEL 9.0":               {strings.ReplaceAll(olderUnit, "BLACKLIST_RPC", "BLOCK_RPCS") + "-- etc/sysconfig/qemu-ga --\nBLOCK_RPCS=guest-exec-status\n", "false"},
		"RHEL 9.4":               {newerUnit + "-- etc/sysconfig/qemu-ga --\nFILTER_RPC_ARGS=\"--allow-rpcs=guest-sync,guest-ping,guest-info\"\n", "false"},
		"RHEL 9.4, allowed":      {newerUnit + "-- etc/sysconfig/qemu-ga --\nFILTER_RPC_ARGS=\"--allow-rpcs=guest-ping,guest-exec,guest-exec-status\"\n", "true"},
		"half of it":             {newerUnit + "-- etc/sysconfig/qemu-ga --\nFILTER_RPC_ARGS=\"--allow-rpcs=guest-ping,guest-exec\"\n", "false"},
		"nothing filtered":       {newerUnit + "-- etc/sysconfig/qemu-ga --\nFILTER_RPC_ARGS=\"\"\n", "true"},
		"what is left of before": {newerUnit + "-- etc/sysconfig/qemu-ga --\nBLACKLIST_RPC=guest-exec\nFILTER_RPC_ARGS=--block-rpcs=guest-file-open\n", "true"},
		"a short option":         {debianUnit + "-- etc/default/qemu-guest-agent --\nDAEMON_ARGS='-v -b guest-exec,guest-ping'\n", "false"},
		"the unit itself":        {strings.ReplaceAll(debianUnit, "$DAEMON_ARGS", "--block-rpcs guest-exec"), "false"},
		"a unit of one's own":    {newerUnit + "-- etc/systemd/system/qemu-guest-agent.service --\n[Service]\nExecStart=/usr/bin/qemu-ga\n-- etc/sysconfig/qemu-ga --\nFILTER_RPC_ARGS=--block-rpcs=guest-exec\n", "true"},
		"no unit":                {"\n-- etc/sysconfig/qemu-ga --\nBLACKLIST_RPC=guest-exec\n", "false"},
		"its own file":           {debianUnit + "-- etc/qemu/qemu-ga.conf --\n[general]\nblock-rpcs = guest-exec\n", "false"},
		"its own file, of old":   {debianUnit + "-- etc/qemu/qemu-ga.conf --\n[general]\nblacklist=guest-shutdown,guest-exec-status\n", "false"},
		"its own file, allowed":  {debianUnit + "-- etc/qemu/qemu-ga.conf --\n[general]\nallow-rpcs=guest-ping\n", "false"},
		"a file without end":     {debianUnit + "-- etc/qemu/qemu-ga.conf --\n" + strings.Repeat("block-rpcs=guest-ping\n", 100_000) + "block-rpcs=guest-exec\n", "nil"},
		"a folder":               {debianUnit + "-- etc/qemu/qemu-ga.conf/x --\n", "nil"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.files("-- usr/sbin/qemu-ga --" + c.files)
			r := s.inspect()
			got := "nil"
			if v := r.OS.GuestAgentRuns; v != nil {
				got = map[bool]string{false: "false", true: "true"}[*v]
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			told := false
			for _, u := range r.Unseen {
				told = told || u.What == "os.guest_agent_runs"
			}
			if told != (c.want == "nil") {
				t.Errorf("%+v", r.Unseen)
			}
		})
	}
	s := newServer(t)
	s.files("-- etc/sysconfig/qemu-ga --\nBLACKLIST_RPC=guest-exec\n")
	if r := s.inspect(); r.OS.GuestAgent == nil || *r.OS.GuestAgent || r.OS.GuestAgentRuns != nil {
		t.Errorf("without an agent: %+v", r.OS)
	}
}
