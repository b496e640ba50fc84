package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/crypto/ssh"

	"gpuvirt/gpu"
)

// maxKey is the size of a file with a private key, in bytes.
const maxKey = 64 << 10

// credential reads a private key by its name. A file that others than we and root could
// have written or read is refused, as ssh does.
func credential(folder, name string) (ssh.Signer, error) {
	cannot := func(format string, args ...any) *gpu.Error {
		return gpu.Errorf(gpu.CodeInvalid, "cannot use credential %q: "+format, append([]any{name}, args...)...)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, cannot("the folder of credentials cannot be opened: %w", err)
	}
	defer root.Close() //nolint:errcheck // only read
	// A FIFO would have us wait for ever.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cannot("there is no file %q", filepath.Join(folder, name)).
			WithHint("make one: ssh-keygen -t ed25519 -N \"\" -f %s", filepath.Join(folder, name))
	}
	if err != nil {
		return nil, cannot("%w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	if err := private(f); err != nil {
		return nil, cannot("%w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return nil, cannot("%w", err)
	}
	key, err := ssh.ParsePrivateKey(text)
	clear(text)
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
		return nil, cannot("it is locked with a passphrase, and nobody is here to type it").
			WithHint("make a key of its own for this, without a passphrase; the folder's mode keeps it")
	}
	if err != nil {
		return nil, cannot("it is no private key of OpenSSH: %w", err)
	}
	return key, nil
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
	case info.Size() > maxKey:
		return fmt.Errorf("it has %d bytes, which no key has", info.Size())
	}
	return nil
}
