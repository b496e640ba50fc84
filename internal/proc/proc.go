// Package proc says which processes hold a partition's device file, and which
// host and which boot this is. What it cannot see is an error: unknown is not
// free.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"gpuvirt/gpu"
)

// Where things are on a real host.
const (
	DefaultRoot = "/proc"
	MachineID   = "/etc/machine-id"
)

// Sysfs is what the scan needs of sysfs; *sysfs.Root has it.
type Sysfs interface {
	List(dir string) ([]string, error)
	Exists(path string) (bool, error)
	Readlink(path string) (string, error)
}

// Table is the process table of a host.
type Table struct {
	root *os.Root
	fs   Sysfs
}

// Open opens the process table under dir, with the sysfs that goes with it.
func Open(dir string, fs Sysfs) (*Table, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the process table: %w", err)
	}
	return &Table{root: root, fs: fs}, nil
}

// Close closes the table.
func (t *Table) Close() error { return t.root.Close() }

// Holders returns the processes that have the partition's device file open, by pid:
// that of its IOMMU group, or its own where the kernel gives it one; of a MIG instance
// those of NVIDIA's driver. It fails
// unless it could look at every process: the error means that it is not known
// whether anybody holds the partition.
//
// Only processes of our own pid namespace and those below it are seen, so the
// daemon must not run in a container of its own.
func (t *Table) Holders(ctx context.Context, p gpu.Partition) ([]gpu.Holder, error) {
	files, err := t.files(p)
	if err != nil {
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot tell who holds partition %q: %w", p.ID, err)
	}
	out, err := t.scan(ctx, files)
	if err != nil {
		return nil, blind(err, "cannot tell who holds partition %q", p.ID)
	}
	return out, nil
}

func blind(err error, format string, args ...any) error {
	return gpu.Wrap(err, gpu.CodeUnavailable, format, args...).
		WithHint("the daemon must be able to see all processes and their open files: it needs CAP_SYS_PTRACE and a /proc without hidepid")
}

// files returns the names under /dev by which a process may have the partition open.
func (t *Table) files(p gpu.Partition) ([]string, error) {
	var device string
	switch {
	case p.Handle.MdevUUID != "":
		device = path.Join("bus/mdev/devices", strings.ToLower(p.Handle.MdevUUID))
	case p.Handle.PCIAddress != "":
		device = path.Join("bus/pci/devices", p.Handle.PCIAddress)
	case p.Kind == gpu.KindMIG && p.Instance != "":
		return t.capabilities(p)
	default:
		return nil, nil // there is no file
	}
	out, err := t.vfioFiles(device, p.IOMMUGroup)
	if err != nil || len(out) > 0 {
		return out, err
	}
	// No group and no file: right for a device that no VFIO driver has, or that is
	// gone. A device of the mdev bus always has one of the two.
	if there, err := t.fs.Exists(device); err != nil {
		return nil, err
	} else if there && p.Handle.MdevUUID != "" {
		return nil, fmt.Errorf("%q has neither an iommu group nor a vfio file", device)
	}
	return nil, nil
}

// vfioFiles returns the names by which VFIO lets programs have a device: that of its
// group, if it has one, and its own where the kernel gives it one.
func (t *Table) vfioFiles(device, group string) ([]string, error) {
	out, err := t.named(path.Join(device, "vfio-dev"), "/dev/vfio/devices/")
	if group != "" {
		out = append(out, "/dev/vfio/"+group, "/dev/vfio/noiommu-"+group)
	}
	return out, err
}

// named returns the files in a folder of /dev that are called as the entries of a
// directory of sysfs, none where there is no such directory.
func (t *Table) named(dir, dev string) (out []string, err error) {
	names, err := t.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, name := range names {
		out = append(out, dev+name)
	}
	return out, err
}

// scan returns the processes that have one of the files open.
func (t *Table) scan(ctx context.Context, files []string) ([]gpu.Holder, error) {
	if len(files) == 0 {
		return []gpu.Holder{}, nil
	}
	pids, err := t.pids()
	if err != nil {
		return nil, err
	}
	out := []gpu.Holder{}
	for _, pid := range pids {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		holds, err := t.holds(pid, files)
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		if !holds {
			continue
		}
		name, err := t.read(path.Join(strconv.Itoa(pid), "comm"))
		if err != nil && !ended(err) {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		if err == nil {
			out = append(out, gpu.Holder{Kind: "process", ID: strconv.Itoa(pid), Name: name})
		}
	}
	return out, nil
}

// pids lists the processes. Process 1 is always there, so a table without it hides
// those of other users.
func (t *Table) pids() ([]int, error) {
	names, err := t.list(".")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	if !slices.Contains(out, 1) {
		return nil, errors.New("the process table is not shown in full")
	}
	return out, nil
}

// holds reports whether a process has one of the files open. A process that ends
// meanwhile has not.
func (t *Table) holds(pid int, files []string) (bool, error) {
	proc, err := t.root.OpenRoot(path.Join(strconv.Itoa(pid), "fd"))
	if ended(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = proc.Close() }()
	names, err := list(proc, ".")
	if ended(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, name := range names {
		target, err := proc.Readlink(name)
		if ended(err) {
			continue // that file was closed
		}
		if err != nil {
			return false, err
		}
		// libvirt removes the name from the VM's private /dev at detach, before QEMU
		// has closed the file. A VMM in a jail has a /dev of its own, whose place in
		// the tree is seen from here; a file that only looks like that counts as held,
		// which is the error that hurts nobody.
		target = strings.TrimSuffix(target, " (deleted)")
		if slices.ContainsFunc(files, func(file string) bool { return strings.HasSuffix(target, file) }) {
			return true, nil
		}
	}
	return false, nil
}

// ended reports whether an error says that a process or its file is no more.
func ended(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

func (t *Table) list(dir string) ([]string, error) { return list(t.root, dir) }

func list(root *os.Root, dir string) ([]string, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (t *Table) read(name string) (string, error) {
	f, err := t.root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	return strings.TrimSpace(string(text)), err
}

// BootID returns the id of this boot: another one means that everything the kernel
// was told has gone.
func (t *Table) BootID() (string, error) {
	id, err := t.read("sys/kernel/random/boot_id")
	if err == nil && id == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the boot id: %w", err)
	}
	return id, nil
}

var machineID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// HostID returns the id in a machine-id(5) file, which outlives boots.
func HostID(file string) (string, error) {
	text, err := os.ReadFile(filepath.Clean(file))
	if err != nil {
		return "", fmt.Errorf("cannot read the host id: %w", err)
	}
	id := strings.TrimSpace(string(text))
	if !machineID.MatchString(id) {
		return "", fmt.Errorf("cannot read the host id: %q in %q is no machine id", id, file)
	}
	return id, nil
}
