// Package inspect looks at a physical server, on that server, and says what its workload
// needs of a VM: GPUs and who uses them, disks, boot, network, and what the GPUs do over a
// time. It runs as one program that brings nothing with it and leaves nothing behind.
//
// It only reads: nothing is opened for writing, no module is loaded, no device file made, no
// network file system mounted, and programs of the server are called only where they, too,
// only read. What could block has a time limit; what could be long has a size limit. The
// server is not trusted: its files, names and programs may hold anything. What cannot be
// seen is said in the report's Unseen.
package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"gpuvirt/p2v/report"
)

// Options is what an Inspector needs to know. The zero value inspects the machine it runs on.
type Options struct {
	// Root is where the server's file system begins. Default "/".
	Root string
	// Bin is where programs of the server are looked for. Default: the usual folders.
	Bin []string
	// Version is of gpuvirt, for the report.
	Version string
	// Log is told of what was slow or could not be seen; nil: nobody.
	Log *slog.Logger
	// Now tells the time. Default time.Now.
	Now func() time.Time
	// CallLimit is how long one call of a program may take, PartLimit how long one part of
	// the inspection, such as all disks. Defaults 15 s and 30 s.
	CallLimit, PartLimit time.Duration
	// Addresses tells the addresses of a network device. Default: the kernel's.
	Addresses func(nic string) ([]string, error)
	// Unprivileged is set where a report has to say that it was not made by root.
	Unprivileged bool
}

// An Inspector looks at one server.
type Inspector struct {
	tree  *tree
	tools *tools
	o     Options
	log   *slog.Logger

	profiled bool // a profiler was seen to run
}

const nobody = 65534

// New returns an Inspector. It has to be closed.
func New(o Options) (*Inspector, error) {
	o.Root = cmp.Or(o.Root, "/")
	o.CallLimit = cmp.Or(o.CallLimit, 15*time.Second)
	o.PartLimit = cmp.Or(o.PartLimit, 30*time.Second)
	if o.Bin == nil {
		o.Bin = folders
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Addresses == nil {
		o.Addresses = addresses
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if os.Geteuid() != 0 {
		o.Unprivileged = true
	}
	t, err := openTree(o.Root)
	if err != nil {
		return nil, fmt.Errorf("cannot inspect: %w", err)
	}
	i := &Inspector{tree: t, o: o, log: o.Log, tools: &tools{bin: o.Bin, limit: o.CallLimit, stuck: map[string]bool{}}}
	if os.Geteuid() == 0 {
		i.tools.plain = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return i, nil
}

// Close ends it. Calls that hang in the kernel are left behind.
func (i *Inspector) Close() error { return i.tree.close() }

func addresses(nic string) ([]string, error) {
	dev, err := net.InterfaceByName(nic)
	if err != nil {
		return nil, err
	}
	all, err := dev.Addrs()
	out := make([]string, 0, len(all))
	for _, a := range all {
		out = append(out, a.String())
	}
	return out, err
}

// A scene is one part of an inspection: what it may use, and what it could not see.
type scene struct {
	*Inspector
	ctx    context.Context
	unseen []report.Unseen
}

// miss notes what could not be seen.
func (s *scene) miss(what, format string, args ...any) {
	s.unseen = append(s.unseen, report.Unseen{What: what, Reason: fmt.Sprintf(format, args...)})
}

// part makes one part of the report. It comes whole or not at all.
func part[T any](ctx context.Context, i *Inspector, r *report.Report, what string, look func(*scene) T) T {
	type answer struct {
		value  T
		unseen []report.Unseen
	}
	start := time.Now()
	a, err := within(ctx, i.o.PartLimit, func(ctx context.Context) (answer, error) {
		s := &scene{Inspector: i, ctx: ctx}
		v := look(s)
		return answer{v, s.unseen}, nil
	})
	if err != nil {
		a.unseen = append(a.unseen, report.Unseen{What: what, Reason: err.Error()})
	}
	i.log.DebugContext(ctx, "inspected", "part", what, "seconds", time.Since(start).Seconds(), "unseen", len(a.unseen))
	for _, u := range a.unseen {
		u.Reason = maskLine(u.Reason) // a program may have said it
		r.Unseen = append(r.Unseen, u)
	}
	return a.value
}

// Inspect looks at the server once. Its usage is for Watch. Where ctx ends before, what was
// seen by then is returned with the error.
func (i *Inspector) Inspect(ctx context.Context) (report.Report, error) {
	r := report.Report{
		Version: report.Version, Inspector: i.o.Version, Taken: i.o.Now().UTC().Truncate(time.Second), Privileged: !i.o.Unprivileged,
		Hostname: i.tree.text("proc/sys/kernel/hostname"),
	}
	if i.o.Unprivileged {
		r.Unseen = append(r.Unseen, report.Unseen{What: "privileged", Reason: "it was not run by root: files and processes of others were not seen"})
	}
	r.System = part(ctx, i, &r, "system", (*scene).system)
	r.OS = part(ctx, i, &r, "os", (*scene).operatingSystem)
	r.Firmware = part(ctx, i, &r, "firmware", (*scene).firmware)
	r.CPU = part(ctx, i, &r, "cpu", (*scene).cpu)
	r.Memory = part(ctx, i, &r, "memory", (*scene).memory)
	i.storage(ctx, &r)
	r.NICs = part(ctx, i, &r, "nics", (*scene).nics)
	i.workload(ctx, &r, i.gpus(ctx, &r))
	i.shrink(&r)
	return r, context.Cause(ctx)
}

func (i *Inspector) storage(ctx context.Context, r *report.Report) {
	mounts := part(ctx, i, r, "filesystems", (*scene).mounts)
	r.Disks = part(ctx, i, r, "disks", (*scene).disks)
	r.Volumes = part(ctx, i, r, "volumes", (*scene).volumes)
	r.Filesystems = part(ctx, i, r, "filesystems", func(s *scene) []report.Filesystem { return s.filesystems(mounts) })
	r.Boot = part(ctx, i, r, "boot", (*scene).boot)
	placeFilesystems(r)
}

// gpus looks at the GPUs and their driver.
func (i *Inspector) gpus(ctx context.Context, r *report.Report) *smiLog {
	r.GPUs = part(ctx, i, r, "gpus", (*scene).pciGPUs)
	r.Driver = part(ctx, i, r, "driver", func(s *scene) *report.Driver { return s.driver(r.OS) })
	said := part(ctx, i, r, "gpus", func(s *scene) *smiLog { return s.nvidiaSMI(r.GPUs, r.Driver) })
	if said == nil {
		return nil
	}
	said.fill(r)
	mig := part(ctx, i, r, "gpus", func(s *scene) [][]report.MIGInstance { return s.instances(r.GPUs, said) })
	for n := range mig {
		r.GPUs[n].Instances = mig[n]
	}
	r.Topology = part(ctx, i, r, "topology", func(s *scene) []report.Link { return s.topology(r.GPUs) })
	return said
}

// workload looks at who uses them.
func (i *Inspector) workload(ctx context.Context, r *report.Report, said *smiLog) {
	found := part(ctx, i, r, "containers", (*scene).containers)
	seen := part(ctx, i, r, "processes", func(s *scene) []process { return s.processes(r.GPUs, said) })
	for _, p := range seen {
		r.Processes = append(r.Processes, p.Process)
	}
	for _, c := range found {
		if c.wants() || slices.ContainsFunc(r.Processes, func(p report.Process) bool { return p.Container == c.ID }) {
			r.Containers = append(r.Containers, c.Workload)
		}
	}
	units := part(ctx, i, r, "services", (*scene).unitFiles)
	r.Services = part(ctx, i, r, "services", func(s *scene) []report.Service { return s.services(units, r.Processes) })
	r.Pins = part(ctx, i, r, "pins", func(s *scene) []report.Pin { return s.pins(seen, found, units) })
	r.Configs = part(ctx, i, r, "configs", func(s *scene) []report.Config { return s.configs(units) })
	r.Models = part(ctx, i, r, "models", func(s *scene) []report.Models { return s.models(seen, found) })
	r.Features = part(ctx, i, r, "features", func(s *scene) report.Features { return s.features(r, said, seen) })
	i.profiled = slices.ContainsFunc(r.Features.Profilers, func(sign string) bool { return strings.HasPrefix(sign, "process ") })
}

// shrink makes the report one that is read: its strings and lists, and its whole size.
func (i *Inspector) shrink(r *report.Report) {
	r.Clean()
	if data, err := json.Marshal(r); err == nil && len(data) <= report.MaxBytes/2 {
		return
	}
	const reason = "the report would be too large with them"
	for n := range r.Processes {
		r.Processes[n].Args, r.Processes[n].Libraries = []string{}, []string{}
	}
	for n := range r.Configs {
		r.Configs[n].Lines, r.Configs[n].Exact = []string{}, nil
	}
	for n := range r.Pins {
		r.Pins[n].Line = ""
	}
	for n := range r.Containers {
		r.Containers[n].Mounts = []string{}
	}
	r.Pins = r.Pins[:min(len(r.Pins), 1000)]
	for _, what := range []string{"processes.args", "configs.lines", "containers.mounts", "pins.line"} {
		r.Unseen = append(r.Unseen, report.Unseen{What: what, Reason: reason})
	}
}

var _ io.Closer = (*Inspector)(nil)
