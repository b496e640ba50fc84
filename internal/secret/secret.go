// Package secret reads private keys and their like from files of this host. A file that others
// than we and root could have written or read is refused, as ssh does.
package secret

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Most is the largest size of such a file, in bytes.
const Most = 64 << 10

// Read reads a file of a folder. A file that is not there is fs.ErrNotExist.
func Read(folder *os.Root, name string) ([]byte, error) {
	// A FIFO would have us wait for ever.
	f, err := folder.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	if err := private(f); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, Most))
}

func private(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return errors.New("nobody says whose it is")
	case !info.Mode().IsRegular():
		return errors.New("it is no file")
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("others may read it: its mode is %04o and must be 0600", info.Mode().Perm())
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("it belongs to user %d, and must belong to the one that gpuvirtd runs as, or to root", stat.Uid)
	case info.Size() > Most:
		return fmt.Errorf("it has %d bytes, which no key has", info.Size())
	}
	return nil
}
