package block

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A file is what the mirror and the map are written to. Tests lose power with
// another one.
type file interface {
	ReadAt(b []byte, off int64) (int, error)
	WriteAt(b []byte, off int64) (int, error)
	// Zero makes n bytes at off read as zeros, as a hole where that is possible.
	Zero(off, n int64) error
	// Sync returns when all that was written survives a loss of power.
	Sync() error
	// Room tells how many bytes are stored, and how many more there is room for.
	Room() (stored, free int64, err error)
	Close() error
}

// osFile is a real one. A block device has all its room from the start.
type osFile struct {
	*os.File
	device bool
	direct *os.File // the same past the page cache, or nil
}

// newOSFile takes a mirror's file over. What is copied once is of no use in this
// host's memory, so it is written past the page cache where that works.
func newOSFile(f *os.File, device bool) *osFile {
	o := &osFile{File: f, device: device}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDWR|unix.O_CLOEXEC|unix.O_DIRECT, 0)
	if err == nil {
		o.direct = os.NewFile(uintptr(fd), f.Name())
	}
	return o
}

func (f *osFile) WriteAt(b []byte, off int64) (int, error) {
	if f.direct != nil && off%align == 0 && len(b)%align == 0 {
		n, err := f.direct.WriteAt(b, off)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
		// The flag was taken, the write was not.
	}
	return f.File.WriteAt(b, off)
}

func (f *osFile) Close() error {
	err := f.File.Close()
	if f.direct != nil {
		err = errors.Join(err, f.direct.Close())
	}
	return err
}

func (f *osFile) Zero(off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if ignoreUnsupported(err) != nil || err == nil {
		return err
	}
	zeros := make([]byte, min(n, MaxChunkSize))
	for n > 0 {
		w, err := f.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(w), n-int64(w)
	}
	return nil
}

func (f *osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f *osFile) Room() (stored, free int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, 0, err
	}
	if f.device {
		size, err := f.Seek(0, 2)
		return size, 0, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return 0, 0, err
	}
	return st.Blocks * 512, int64(fs.Bavail) * fs.Bsize, nil
}

// Free is how many bytes there is room for in a folder.
func Free(folder string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return 0, fmt.Errorf("cannot ask for the room of %q: %w", folder, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

func ignoreUnsupported(err error) error {
	for _, no := range []error{unix.EOPNOTSUPP, unix.ENOSYS, unix.ESPIPE, unix.EINVAL} {
		if errors.Is(err, no) {
			return nil
		}
	}
	return err
}

// A SpaceError says that a disk does not fit. What was copied stays, and the
// copy goes on from there once there is room.
type SpaceError struct {
	Path    string
	Need    int64 // bytes that are still to be stored, if none of them are zeros
	Free    int64 // bytes that are free on the file system
	Kept    int64 // bytes of them that are left to others always
	Claimed int64 // bytes of them that other copies count on
	Err     error // of the write that failed, or nil
}

func (e *SpaceError) Error() string {
	s := fmt.Sprintf("cannot store %q: up to %s are still to come; the file system has %s free", e.Path, Mebibytes(e.Need+mebibyte-1), Mebibytes(e.Free))
	if e.Kept > 0 {
		s += fmt.Sprintf(", of which %s are kept free", Mebibytes(e.Kept))
	}
	if e.Claimed > 0 {
		s += fmt.Sprintf(", and other copies need %s", Mebibytes(e.Claimed+mebibyte-1))
	}
	s += fmt.Sprintf(": %s are missing", Mebibytes(e.Missing()+mebibyte-1))
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Missing is how much room has to be made, in bytes.
func (e *SpaceError) Missing() int64 { return max(0, e.Need-(e.Free-e.Kept-e.Claimed)) }

const mebibyte = 1 << 20

// Mebibytes are bytes for people, of what is begun only the whole.
func Mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n/mebibyte) }

func (e *SpaceError) Unwrap() error { return e.Err }

// Full reports whether something failed as a filesystem, or somebody's part of it, is full.
func Full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// spaceError tells a full filesystem from other errors of a write to f, which
// takes size bytes in the end.
func spaceError(err error, path string, size int64, f file) error {
	if !Full(err) {
		return err
	}
	stored, free, roomErr := f.Room()
	if roomErr != nil {
		return errors.Join(err, roomErr)
	}
	return &SpaceError{Path: path, Need: max(0, size-stored), Free: free, Err: err}
}

// syncFolder makes the name of a file survive a loss of power.
func syncFolder(path string) error {
	d, err := os.Open(filepath.Dir(path)) //nolint:gosec // G304: the folder of a file that the caller named.
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
