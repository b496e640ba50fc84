package dirty

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// programCopies is how many times the program is attached. Since Linux 6.1 a program is
// passed over where it is called on a processor while it runs there already: an interrupt
// ends one request while a softirq or a thread, which it interrupted, ends another. That is
// three deep at most, and each of the three runs one copy at a time: one is left that marks.
const programCopies = 3

// maxNames bounds the disks that are known by name.
const maxNames = 4096

// A kernel is what is loaded into it.
type kernel struct {
	disks, store, names *ebpf.Map // names is nil where no disk has several paths
	marks               marks
	programs            []*ebpf.Program
	links               []link.Link
}

// load puts the program and its maps into the kernel. Nothing is marked until attach.
func load(l layout, multipath bool) (*kernel, error) {
	if err := noPreemption(); err != nil {
		return nil, err
	}
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, unsupported("this kernel does not describe itself: %w", err)
	}
	f, err := readFields(types)
	if err != nil {
		return nil, unsupported("%w", err)
	}
	// It fails where the hard limit is lower and may not be raised: then the maps say so.
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	k := &kernel{}
	if err := k.load(f, l, multipath); err != nil {
		return nil, errors.Join(unsupported("%w", err), k.close())
	}
	return k, nil
}

func (k *kernel) load(f fields, l layout, multipath bool) (err error) {
	slotBytes := uint32(slotFlags + 8)
	if k.disks, err = newMap(ebpf.MapSpec{
		Name: "dirty_disks", Type: ebpf.Hash, KeySize: 8, ValueSize: slotBytes, MaxEntries: maxDisks,
	}); err != nil {
		return err
	}
	if k.store, err = newMap(ebpf.MapSpec{
		Name: "dirty_marks", Type: ebpf.Array, KeySize: 4, ValueSize: pageBytes, MaxEntries: l.pages, Flags: unix.BPF_F_MMAPABLE,
	}); err != nil {
		return err
	}
	maps := mapFDs{disks: k.disks.FD(), marks: k.store.FD(), names: -1}
	if multipath {
		if k.names, err = newMap(ebpf.MapSpec{
			Name: "dirty_names", Type: ebpf.Hash, KeySize: diskNameBytes, ValueSize: slotBytes, MaxEntries: maxNames,
		}); err != nil {
			return err
		}
		maps.names = k.names.FD()
	}
	bytes := int(l.pages) * pageBytes
	if k.marks, err = unix.Mmap(k.store.FD(), 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("cannot map the marks: %w", err)
	}
	// As one collection they share what is read of the kernel's types.
	copies := &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{}}
	for i := range programCopies {
		copies.Programs[fmt.Sprintf("dirty_%d", i)] = &ebpf.ProgramSpec{
			Name: "dirty", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: tracepoint,
			Instructions: program(f, l, maps), License: programLicense,
		}
	}
	loaded, err := ebpf.NewCollection(copies)
	if err != nil {
		return fmt.Errorf("cannot load the program: %w", err)
	}
	for _, p := range loaded.Programs {
		k.programs = append(k.programs, p)
	}
	return nil
}

func newMap(spec ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&spec)
	if err != nil {
		return nil, fmt.Errorf("cannot make map %q: %w", spec.Name, err)
	}
	return m, nil
}

// noPreemption refuses real-time kernels: there a thread may be put aside while it runs the
// program, and the copies may all be taken.
func noPreemption() error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("cannot tell the kernel's version: %w", err)
	}
	if version := unix.ByteSliceToString(name.Version[:]); strings.Contains(version, "PREEMPT_RT") {
		return unsupported("this is a real-time kernel: %s", version)
	}
	return nil
}

// track has the program mark what is written to a disk.
func (k *kernel) track(disk diskKey, s slot) error {
	if err := k.disks.Put(disk, s.value()); err != nil {
		return fmt.Errorf("cannot track disk %d:%d: %w", disk.Major, disk.Minor, err)
	}
	return nil
}

// name has it do so by a disk's name. A slot without chunks is one of others.
func (k *kernel) name(disk string, s slot) error {
	key, err := nameKey(disk)
	if err != nil {
		return err
	}
	if err := k.names.Put(key, s.value()); err != nil {
		return fmt.Errorf("cannot track disk %q: %w", disk, err)
	}
	return nil
}

// attach has the program called from now on, on all processors when it returns.
func (k *kernel) attach() error {
	for _, p := range k.programs {
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return unsupported("cannot attach the program: %w", err)
		}
		k.links = append(k.links, l)
	}
	return nil
}

// close takes out what is there of it.
func (k *kernel) close() error {
	var errs []error
	for _, l := range k.links {
		errs = append(errs, l.Close())
	}
	for _, p := range k.programs {
		errs = append(errs, p.Close())
	}
	if k.marks != nil {
		errs = append(errs, unix.Munmap(k.marks))
		k.marks = nil
	}
	for _, m := range []*ebpf.Map{k.disks, k.store, k.names} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}
