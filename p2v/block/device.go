package block

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A device is a disk that is read: a block device, or a file that stands for
// one. It is never written to.
type device struct {
	file      *os.File
	direct    bool // past the page cache
	size      int64
	blockSize int // bytes, the logical block size
	readOnly  bool
}

// openDevice opens for reading only. Something else than a disk is refused, and
// not waited for.
func openDevice(path string) (*device, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %q: %w", path, err)
	}
	d := &device{file: os.NewFile(uintptr(fd), path)}
	if err := d.look(fd); err != nil {
		d.file.Close()
		return nil, fmt.Errorf("cannot read the size of %q: %w", path, err)
	}
	return d, nil
}

func (d *device) look(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		d.size, d.blockSize = st.Size, 512
		d.readOnly = st.Mode&0o222 == 0
		d.direct = d.tryDirect(fd) == nil
		if !d.direct {
			return setDirect(fd, false)
		}
		return nil
	case unix.S_IFBLK:
		size, err := d.file.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		sector, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
		if err != nil {
			return err
		}
		ro, err := unix.IoctlGetInt(fd, unix.BLKROGET)
		if err != nil {
			return err
		}
		d.size, d.blockSize, d.readOnly = size, sector, ro != 0
		if err := d.tryDirect(fd); err != nil {
			return fmt.Errorf("the page cache of a device may be stale, and past it: %w", err)
		}
		d.direct = true
		return nil
	default:
		return errors.New("neither a block device nor a file")
	}
}

// tryDirect switches O_DIRECT on and reads once: some filesystems take the flag
// and refuse the read.
func (d *device) tryDirect(fd int) error {
	if err := setDirect(fd, true); err != nil {
		return err
	}
	_, err := unix.Pread(fd, newBuffer(align).data(), 0)
	if errors.Is(err, unix.EIO) {
		return nil // a bad block is told when its chunk is read
	}
	return err
}

func setDirect(fd int, on bool) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
	return err
}

// read reads n bytes at off into the buffer, all or an error. off is aligned.
func (d *device) read(b *buffer, off int64, n int) ([]byte, error) {
	data := b.data()
	got, err := d.file.ReadAt(data[:min(len(data), (n+align-1)/align*align)], off)
	if !d.direct {
		// Only advice: a page that stays costs memory of the source.
		_ = unix.Fadvise(int(d.file.Fd()), off, int64(n), unix.FADV_DONTNEED)
	}
	return all(data[:n], got, off, err)
}

// all is the data of a read at off, if it got that all.
func all(data []byte, got int, off int64, err error) ([]byte, error) {
	switch {
	case got >= len(data):
		return data, nil
	case err == nil || errors.Is(err, io.EOF):
		return nil, fmt.Errorf("the disk ends at byte %d: %w", off+int64(got), io.ErrUnexpectedEOF)
	default:
		return nil, unwrapPath(err)
	}
}

func (d *device) close() error { return d.file.Close() }

// unwrapPath leaves the path out, which is the source's own business.
func unwrapPath(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}

// A reader is what a device does for those that only read.
type reader interface {
	read(b *buffer, off int64, n int) ([]byte, error)
}

// lent is a disk that somebody else reads.
type lent struct{ io.ReaderAt }

func (l lent) read(b *buffer, off int64, n int) ([]byte, error) {
	data := b.data()[:n]
	got, err := l.ReadAt(data, off)
	return all(data, got, off, err)
}

// firstBad finds the block at which a read of n bytes fails. It may not fail
// twice; then the offset is that of the chunk.
func firstBad(r reader, off int64, n int) int64 {
	b := newBuffer(align)
	for at := off; at < off+int64(n); at += align {
		if _, err := r.read(b, at, int(min(align, off+int64(n)-at))); err != nil {
			return at
		}
	}
	return off
}
