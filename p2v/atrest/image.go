package atrest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"gpuvirt/gpu"
	"gpuvirt/p2v/block"
)

// An image is a file or a block device of this host.
type image struct {
	file    *os.File
	size    int64 // bytes
	path    string
	folders []string // those below which it may lie
}

// openImage opens what lies below one of the folders, for reading only. A link may lead from
// place to place in one of them, as those of /dev/disk do, and not out of it.
func openImage(path string, folders []string) (*image, error) {
	cannot := func(code gpu.Code, format string, args ...any) *gpu.Error {
		return gpu.Errorf(code, "cannot use %q: "+format, append([]any{path}, args...)...)
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, cannot(gpu.CodeInvalid, "it is no absolute path, or has . or .. in it")
	}
	for folder, inside := range above(path, folders) {
		i, err := openBelow(folder, inside)
		_, known := errors.AsType[*gpu.Error](err)
		switch {
		case err == nil:
			i.path, i.folders = path, folders
			return i, nil
		case known:
			return nil, gpu.Wrap(err, gpu.CodeInternal, "cannot use %q", path)
		case errors.Is(err, fs.ErrNotExist):
			return nil, cannot(gpu.CodeNotFound, "it is not there")
		case errors.Is(err, unix.EBUSY):
			return nil, cannot(gpu.CodeBusy, "it is in use: it, or a part of it, is mounted, swap, or below LVM, RAID or a VM").
				WithHint("unmount it, or take the volume group down: vgchange -an")
		}
		return nil, cannot(gpu.CodeInvalid, "%w", err)
	}
	return nil, elsewhere(path, folders)
}

// above are the folders that a path lies below, each with the path from there.
func above(path string, folders []string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, folder := range folders {
			inside, err := filepath.Rel(folder, path)
			if err == nil && inside != "." && filepath.IsLocal(inside) && !yield(folder, inside) {
				return
			}
		}
	}
}

// elsewhere is the error of a path that lies below none of the folders.
func elsewhere(path string, folders []string) error {
	if len(folders) == 0 {
		return gpu.Errorf(gpu.CodeForbidden, "cannot use %q: no folder is set from which disks may be read", path).
			WithHint("set p2v.images, and restart the daemon")
	}
	return gpu.Errorf(gpu.CodeForbidden, "cannot use %q: disks may be read from %s only", path, strings.Join(folders, ", ")).
		WithHint("these are p2v.images; a link may not lead out of them")
}

func openBelow(folder, path string) (*image, error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // only looked at
	// Before it is opened: to open some devices does something.
	info, err := root.Stat(path)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDONLY | unix.O_NONBLOCK
	switch {
	case info.Mode().IsRegular():
	case isDisk(info):
		flags |= os.O_EXCL // nobody mounts it while we have it open, and nobody has
	default:
		return nil, errors.New("it is neither an image nor a block device")
	}
	f, err := root.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	i := &image{file: f}
	if err := i.look(info); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return i, nil
}

func isDisk(info fs.FileInfo) bool {
	return info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

// look refuses what is not a raw image that is at rest.
func (i *image) look(before fs.FileInfo) error {
	now, err := i.file.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(before, now) {
		return errors.New("it was exchanged while it was opened")
	}
	if i.size, err = i.file.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	if now.Mode().IsRegular() {
		if err := writers(i.file); err != nil {
			return err
		}
	}
	return checkRaw(i.file, "convert it: qemu-img convert -O raw IMAGE IMAGE.raw")
}

// writers refuses a file that somebody has open for writing. The kernel tells it to who asks
// for a lease to read. Filesystems of a network, and some others, cannot tell.
func writers(f *os.File) error {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	switch {
	case err == nil:
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		return err
	case !errors.Is(err, unix.EAGAIN):
		return nil
	}
	var in unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &in); err != nil {
		return err
	}
	switch in.Type {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		return nil
	}
	return gpu.Errorf(gpu.CodeBusy, "somebody has it open for writing").WithHint("see who: fuser -v, or lsof")
}

// block is the disk. It is opened a second time, by what is open already: its path may be
// something else by now.
func (i *image) block(d Disk) block.Disk {
	return block.Disk{Name: d.Name, ID: d.ID, Path: fmt.Sprintf("/proc/self/fd/%d", i.file.Fd())}
}

func (i *image) ready(context.Context) error { return nil }

// same looks whether what is open is still what the path leads to, and as long as it was. Where it
// is another file or device, which rsync and mv make of an image, the error passes: whoever opens the
// path anew reads that.
func (i *image) same(context.Context) error {
	now, err := i.there()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return gpu.Errorf(gpu.CodeNotFound, "%q is not there any more", i.path).WithHint("put it back, and retry")
	case err != nil:
		return gpu.Errorf(gpu.CodeInvalid, "cannot use %q: %w", i.path, err)
	}
	open, err := i.file.Stat()
	if err != nil {
		return err
	}
	if !sameDisk(open, now) {
		return gpu.Errorf(gpu.CodeUnavailable, "%q is another file or disk now than the one that was opened", i.path).
			WithHint("it is opened anew, and all of it is looked at; ask again then")
	}
	size, err := i.file.Seek(0, io.SeekEnd) // of devices, too; nobody reads at this offset
	if err == nil && size != i.size {
		err = gpu.Errorf(gpu.CodeConflict, "%q has %d bytes now, and had %d when it was opened", i.path, size, i.size).
			WithHint("it has to be as long as the server's disk, to the byte: mend it, and retry")
	}
	return err
}

// there is what the path leads to now.
func (i *image) there() (fs.FileInfo, error) {
	for folder, inside := range above(i.path, i.folders) { // the first, as when it was opened
		root, err := os.OpenRoot(folder)
		if err != nil {
			return nil, err
		}
		info, err := root.Stat(inside)
		return info, errors.Join(err, root.Close())
	}
	return nil, fs.ErrNotExist
}

// sameDisk tells whether two are one file, or two nodes of one device.
func sameDisk(a, b fs.FileInfo) bool {
	if !isDisk(a) || !isDisk(b) {
		return os.SameFile(a, b)
	}
	one, is := a.Sys().(*syscall.Stat_t)
	other, too := b.Sys().(*syscall.Stat_t)
	return is && too && one.Rdev == other.Rdev
}

// mark is what the filesystem changes when a file is written to. A block device is ours alone
// while it is open.
func (i *image) mark(ctx context.Context) (any, error) {
	if err := i.same(ctx); err != nil {
		return nil, err
	}
	info, err := i.file.Stat()
	if err != nil {
		return nil, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return nil, nil
	}
	return [3]any{stat.Size, stat.Mtim, stat.Ctim}, nil
}

func (i *image) close() error { return i.file.Close() }
