package run

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Unit has systemd start a confined program, as a service of its own. Its user, its bounds
// and what it sees are set up by systemd, so this process needs no right to do that; what it
// takes counts for itself, and where memory runs out it ends alone. It sees no network and no
// device, writes nowhere but where it is told, and ends with all that it has started.
//
// It takes a host with systemd and a D-Bus: see Booted.
type Unit struct {
	// Prefix begins its name, such as "gpuvirt-p2v". StopUnits ends what has it.
	Prefix string
	// BindsTo is the unit that it ends with, this process's own; empty: none. A stop of that
	// asks this process first, which then ends what it runs itself.
	BindsTo string
	// MemoryBytes bounds what it takes in all, where the host's control groups do that; 0:
	// nothing does.
	MemoryBytes uint64
	// Hidden are folders of which it sees only what Reads and Writes name.
	Hidden []string
	// Reads and Writes are files and folders. Who it runs as has to have the right as well.
	Reads, Writes []string
	// Closed are files that it may not use, if they are there.
	Closed []string
	// Devices are what it may use beside /dev/null and its like, if they are there.
	Devices []string
}

// Booted tells whether systemd runs this host, and can be asked for units.
func Booted() bool {
	for _, path := range []string{"/run/systemd/system", "/run/dbus/system_bus_socket"} {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}

// OwnUnit returns the service of systemd that this process is in: "gpuvirtd.service"; empty
// where it is in none.
func OwnUnit() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("cannot tell what unit this is: %w", err)
	}
	return serviceOf(string(text)), nil
}

// serviceOf reads /proc/PID/cgroup: "0::/system.slice/x.service", and, of the older
// hierarchies, "1:name=systemd:/system.slice/x.service".
func serviceOf(text string) string {
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 || fields[1] != "" && fields[1] != "name=systemd" {
			continue
		}
		if name := path.Base(fields[2]); strings.HasSuffix(name, ".service") {
			return name
		}
	}
	return ""
}

// StopUnits ends all units with a prefix, such as those that a process left behind which
// was not in a unit itself. None is fine.
func StopUnits(ctx context.Context, prefix string) error {
	if err := stopUnits(ctx, prefix+"-*.service"); err != nil {
		return fmt.Errorf("cannot end the units %s-*: %w", prefix, err)
	}
	return nil
}

// stopUnits ends units and has systemd forget how they ended.
func stopUnits(ctx context.Context, pattern string) error {
	var errs []error
	for _, verb := range []string{"stop", "reset-failed"} {
		_, err := Program{}.Run(ctx, "systemctl", "--quiet", verb, "--", pattern)
		// A name that systemd does not know, any more or yet.
		if exit, said := errors.AsType[*ExitError](err); said && (exit.Code == 5 || verb == "reset-failed") {
			err = nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// settleTime is for systemd to do what it is asked, beside the grace of the program itself.
const settleTime = 20 * time.Second

// A service is one program in a unit.
type service struct {
	unit  *Unit
	name  string
	grace time.Duration
}

func (u *Unit) service(grace time.Duration) *service {
	return &service{u, u.Prefix + "-" + strings.ToLower(rand.Text()[:16]) + ".service", grace}
}

// end ends all of it. It is not bound to a context that may have ended: somebody has to.
func (s *service) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.grace+settleTime)
	defer cancel()
	return stopUnits(ctx, s.name)
}

// ended tells how it ended: an *ExitError of its own is returned with what systemd knows.
func (s *service) ended(ctx context.Context, err error) error {
	exit, said := errors.AsType[*ExitError](err)
	if !said {
		return err
	}
	out, asked := Program{}.Run(ctx, "systemctl", "show", "--property=Result", "--property=ExecMainStatus", "--", s.name)
	if asked != nil {
		return errors.Join(err, asked)
	}
	status := 0
	result := ""
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "Result":
			result = value
		case "ExecMainStatus":
			status, _ = strconv.Atoi(value)
		}
	}
	switch result {
	case "signal", "core-dump", "timeout", "watchdog":
		exit.Code = -1
	case "oom-kill":
		exit.Code, exit.OutOfMemory = -1, true
	case "exit-code":
		// systemd's own, of what it does before the program is there.
		if exit.Code = status; status >= 200 && status <= 250 {
			return fmt.Errorf("cannot run %q: systemd cannot set its unit up (status %d of systemd.exec(5)): %s", exit.Name, status, lastLine(exit.Output))
		}
	default:
		return fmt.Errorf("cannot run %q in a unit: %s (%s)", exit.Name, lastLine(exit.Output), result)
	}
	return exit
}

// command returns the command line that has systemd run a program confined.
func (s *service) command(p Program, path string, args []string) []string {
	out := []string{"systemd-run", "--quiet", "--wait", "--pipe", "--service-type=exec", "--unit=" + s.name}
	if p.Dir != "" {
		out = append(out, "--working-directory="+p.Dir)
	}
	for _, value := range slices.Concat(environment, p.Env) {
		out = append(out, "--setenv="+value)
	}
	for _, property := range s.properties(*p.Confine) {
		out = append(out, "--property="+property)
	}
	out = append(out, "--", path)
	for _, arg := range args {
		// systemd puts variables in the place of names.
		out = append(out, strings.ReplaceAll(arg, "$", "$$"))
	}
	return out
}

// properties are what systemd is told of the unit, besides what it runs.
func (s *service) properties(c Confine) []string {
	u := s.unit
	out := []string{
		"KillMode=control-group", fmt.Sprintf("TimeoutStopSec=%dms", s.grace.Milliseconds()), "OOMScoreAdjust=500",
		"NoNewPrivileges=yes", "UMask=0077", "LimitCORE=0", "KeyringMode=private",
		// What is mounted below is an exception from this. Modules stay readable: libguestfs puts
		// them into its appliance.
		"ProtectSystem=strict", "ProtectHome=tmpfs", "PrivateTmp=yes", "PrivateNetwork=yes", "PrivateIPC=yes", "DevicePolicy=closed",
		"ProtectProc=invisible", "ProtectKernelTunables=yes", "ProtectKernelLogs=yes", "ProtectControlGroups=yes", "ProtectClock=yes", "ProtectHostname=yes",
		"LockPersonality=yes", "RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes", "RestrictAddressFamilies=AF_UNIX",
		"SystemCallArchitectures=native", "SystemCallFilter=@system-service", "SystemCallErrorNumber=EPERM",
	}
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if u.BindsTo != "" {
		add("BindsTo=%s", u.BindsTo)
		add("Before=%s", u.BindsTo)
	}
	if c.UID != 0 || c.GID != 0 {
		add("User=%d", c.UID)
		add("Group=%d", c.GID)
		add("CapabilityBoundingSet=")
		for _, g := range c.Groups {
			add("SupplementaryGroups=%d", g)
		}
	}
	for _, limit := range []struct {
		name  string
		value uint64
	}{
		{"LimitFSIZE", c.FileBytes},
		{"LimitNOFILE", c.OpenFiles},
		{"TasksMax", c.Processes},
		{"LimitCPU", uint64(max(0, c.CPU/time.Second))},
		{"MemoryMax", u.MemoryBytes},
	} {
		if limit.value != 0 {
			add("%s=%d", limit.name, limit.value)
		}
	}
	if c.Idle {
		out = append(out, "Nice=19", "IOSchedulingClass=idle")
	}
	for _, d := range u.Devices {
		add("DeviceAllow=%s rw", d)
	}
	for _, path := range u.Hidden {
		if _, err := os.Lstat(path); err == nil { // else systemd would make it
			add("TemporaryFileSystem=%s:ro", quoted(path))
		}
	}
	for _, path := range u.Closed {
		add("InaccessiblePaths=%s", quoted("-"+path))
	}
	for _, path := range u.Reads {
		add("BindReadOnlyPaths=%s", quoted(path))
	}
	for _, path := range u.Writes {
		add("BindPaths=%s", quoted(path))
	}
	return out
}

// quoted is a path as systemd reads it in a list.
func quoted(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(path) + `"`
}
