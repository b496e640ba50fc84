package block

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A Spec says which mirror is meant.
type Spec struct {
	Path      string // of the data: a file, or a block device that is there
	Map       string // of the map, on a filesystem that keeps what is synced
	ID        string // of the source's disk, as Disk.ID; at most MaxID bytes
	Size      int64  // of the source's disk, bytes
	ChunkSize int    // bytes, 0 means DefaultChunkSize
}

// ErrBusy says that another process has the mirror open.
var ErrBusy = errors.New("another process has it open")

// OpenMirror opens a mirror, or begins one where neither map nor data is. A map
// of another disk, size or chunk size is a MismatchError. Until Close no other
// process opens it. Where chunks were written ahead of it the error is ErrAhead.
func OpenMirror(s Spec) (*Mirror, error) {
	m, err := openMirror(s)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(s.Ahead().Map); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("cannot open mirror %q: %w", s.Path, cmp.Or(err, ErrAhead)), m.Close())
	}
	return m, nil
}

func openMirror(s Spec) (*Mirror, error) {
	t, err := openTable(s)
	if err != nil {
		return nil, err
	}
	m, err := openBoth(s, t)
	if err != nil {
		return nil, errors.Join(err, t.file.Close())
	}
	return m, nil
}

// openTable opens the map of a mirror, and does not read it yet.
func openTable(s Spec) (*table, error) {
	if s.ChunkSize == 0 {
		s.ChunkSize = DefaultChunkSize
	}
	if s.ID == "" || len(s.ID) > MaxID {
		return nil, fmt.Errorf("cannot open mirror %q: the identity of the disk must have 1 to %d bytes", s.Path, MaxID)
	}
	g, err := newGeometry(s.Size, s.ChunkSize)
	if err != nil {
		return nil, fmt.Errorf("cannot open mirror %q: %w", s.Path, err)
	}
	mapFile, err := openMap(s.Map)
	if err != nil {
		return nil, fmt.Errorf("cannot open map %q: %w", s.Map, err)
	}
	return &table{file: &osFile{File: mapFile}, name: s.Map, geometry: g, id: s.ID}, nil
}

// openBoth begins the map before the data: a file without a map is somebody
// else's, and is not taken.
func openBoth(s Spec, t *table) (*Mirror, error) {
	fresh, err := t.load()
	if err != nil {
		return nil, err
	}
	if !fresh {
		held, err := t.held()
		if err != nil {
			return nil, err
		}
		return openData(s, t, held)
	}
	if st, err := os.Lstat(s.Path); err == nil && st.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot begin mirror %q: the file is there and has no map", s.Path)
	}
	if err := t.create(); err != nil {
		return nil, err
	}
	return openData(s, t, 0)
}

// openMap opens the map for this process alone.
func openMap(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600) //nolint:gosec // G304: the caller's folder.
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrBusy
		}
		return nil, err
	}
	if err := syncFolder(path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openData opens what the map is of. A map that says more than there can be is
// not believed.
func openData(s Spec, t *table, held int64) (*Mirror, error) {
	f, err := openMirrorFile(s, held)
	if err != nil {
		return nil, fmt.Errorf("cannot open mirror %q: %w", s.Path, err)
	}
	dev, err := openDevice(s.Path)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	m := newMirror(f, t, dev)
	m.name = s.Path
	return m, nil
}

func newMirror(data file, t *table, r reader) *Mirror {
	return &Mirror{
		geometry: t.geometry, id: t.id, name: t.name, data: data, table: t, reader: r,
		pending: map[int64]Hash{},
	}
}

func openMirrorFile(s Spec, held int64) (*osFile, error) {
	st, err := os.Lstat(s.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if held > 0 {
			return nil, fmt.Errorf("it is gone, and map %q says that %d chunks are on it; remove the map to begin anew", s.Map, held)
		}
		return createMirrorFile(s)
	case err != nil:
		return nil, err
	case st.Mode().IsRegular():
		return openRegular(s, st.Size(), held)
	}
	// A link to a device is what /dev/disk is full of.
	f, err := os.OpenFile(s.Path, os.O_RDWR|os.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) //nolint:gosec // G304: the caller's disk.
	if err != nil {
		return nil, err
	}
	if err := checkDevice(f, s.Size); err != nil {
		f.Close()
		return nil, err
	}
	return newOSFile(f, true), nil
}

func checkDevice(f *os.File, size int64) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		return errors.New("neither a file nor a block device")
	}
	have, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	if have < size {
		return fmt.Errorf("the device has %d bytes, and the disk %d", have, size)
	}
	return nil
}

func createMirrorFile(s Spec) (*osFile, error) {
	f, err := os.OpenFile(s.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600) //nolint:gosec // G304: the caller's folder.
	if err != nil {
		return nil, err
	}
	err = f.Truncate(s.Size)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncFolder(s.Path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return newOSFile(f, false), nil
}

// openRegular takes a file back. One that was being made may still be empty.
func openRegular(s Spec, size, held int64) (*osFile, error) {
	if size != s.Size && held > 0 {
		return nil, fmt.Errorf("it has %d bytes, and the disk that map %q is of has %d", size, s.Map, s.Size)
	}
	f, err := os.OpenFile(s.Path, os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0) //nolint:gosec // G304: the caller's file.
	if err != nil {
		return nil, err
	}
	if size != s.Size {
		if err := errors.Join(f.Truncate(s.Size), f.Sync()); err != nil {
			f.Close()
			return nil, err
		}
	}
	return newOSFile(f, false), nil
}
