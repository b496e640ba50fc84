package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
)

// An Overlay is a disk that begins as its mirror and keeps for itself what is changed:
// qcow2 over raw. It is all that has to be known of it after a restart.
type Overlay struct {
	Path   string `json:"path"`   // of the qcow2 file
	Mirror string `json:"mirror"` // of the raw file below, which is only read
	Stamp  Stamp  `json:"stamp"`  // of the mirror, when the overlay was made
}

// A Stamp tells whether a mirror was written to.
type Stamp struct {
	SizeBytes int64     `json:"size_bytes"`
	Modified  time.Time `json:"modified"`
	Device    uint64    `json:"device"`
	Inode     uint64    `json:"inode"`
}

func stampOf(path string) (Stamp, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return Stamp{}, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() {
		return Stamp{}, gpu.Errorf(gpu.CodeInvalid, "cannot use %q: it is no regular file", path)
	}
	return Stamp{SizeBytes: st.Size(), Modified: st.ModTime().UTC(), Device: sys.Dev, Inode: sys.Ino}, nil
}

// Overlay makes a new overlay over a mirror, in place of an older one at that path.
// The mirror must not be written to for as long as the overlay is of use: what it holds
// would be a mixture.
func (c *Converter) Overlay(ctx context.Context, mirror, path string) (Overlay, error) {
	fail := func(err error) (Overlay, error) {
		if exit, exited := errors.AsType[*run.ExitError](err); exited && strings.Contains(exit.Error(), noSpace) {
			err = errors.Join(err, syscall.ENOSPC) // of qemu-img only the words are known
		}
		return Overlay{}, gpu.Wrap(err, gpu.CodeInternal, "cannot make an overlay over %q", mirror)
	}
	for _, p := range []string{mirror, path} {
		if err := checkPath(p); err != nil {
			return fail(err)
		}
	}
	tool, err := c.need(nameQemuImg)
	if err != nil {
		return fail(err)
	}
	stamp, err := stampOf(mirror)
	if err != nil {
		return fail(err)
	}
	fresh := path + ".new"
	if err := remove(fresh); err != nil {
		return fail(err)
	}
	p := run.Program{Confine: &run.Confine{FileBytes: 1 << 30, CPU: time.Minute}}
	if _, err := p.Run(ctx, tool, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", mirror, fresh); err != nil {
		return fail(errors.Join(err, remove(fresh)))
	}
	if err := os.Rename(fresh, path); err != nil {
		return fail(errors.Join(err, remove(fresh)))
	}
	o := Overlay{Path: path, Mirror: mirror, Stamp: stamp}
	size, err := virtualSize(ctx, tool, path)
	if err == nil && size != stamp.SizeBytes {
		err = fmt.Errorf("it came out with %d bytes instead of %d: a disk has whole sectors", size, stamp.SizeBytes)
	}
	if err == nil {
		err = o.Check()
	}
	if err != nil {
		return fail(errors.Join(err, o.Remove()))
	}
	return o, nil
}

func virtualSize(ctx context.Context, qemuImg, path string) (int64, error) {
	out, err := run.Program{Confine: &run.Confine{CPU: time.Minute}}.Run(ctx, qemuImg, "info", "--output=json", "-f", "qcow2", path)
	if err != nil {
		return 0, err
	}
	var info struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		return 0, fmt.Errorf("cannot read what qemu-img says: %w", err)
	}
	return info.VirtualSize, nil
}

// Check tells whether the mirror is as it was when the overlay was made, and whether the
// overlay is still over it and nothing else. It looks at the mirror's size and times: who
// writes past the kernel is not seen.
func (o Overlay) Check() error {
	now, err := stampOf(o.Mirror)
	if err != nil {
		return gpu.Wrap(err, gpu.CodeInternal, "cannot check the mirror %q", o.Mirror)
	}
	if !now.Modified.Equal(o.Stamp.Modified) || now.SizeBytes != o.Stamp.SizeBytes || now.Device != o.Stamp.Device || now.Inode != o.Stamp.Inode {
		return gpu.Errorf(gpu.CodeStale, "cannot use the overlay %q: the mirror %q was written to since it was made", o.Path, o.Mirror).
			WithHint("delete the overlay and make it anew: the mirror itself is proved by its hashes")
	}
	if err := checkHeader(o.Path, o.Mirror); err != nil {
		return gpu.Wrap(err, gpu.CodeInternal, "cannot use the overlay %q", o.Path)
	}
	return nil
}

// Remove deletes the overlay, and takes the mirror back, so that it can be written to again:
// libvirt gives all files of a disk to its own user when a VM starts. Nothing else is touched,
// and what is gone is fine.
func (o Overlay) Remove() error {
	err := os.Lchown(o.Mirror, os.Geteuid(), os.Getegid())
	if o.Mirror == "" || errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err := errors.Join(err, remove(o.Path), remove(o.Path+".new")); err != nil {
		return fmt.Errorf("cannot remove the overlay: %w", err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
