package source

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"gpuvirt/gpu"
	"gpuvirt/internal/secret"
)

// credential reads a private key by its name.
func credential(folder, name string) (ssh.Signer, error) {
	cannot := func(format string, args ...any) *gpu.Error {
		return gpu.Errorf(gpu.CodeInvalid, "cannot use credential %q: "+format, append([]any{name}, args...)...)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, cannot("the folder of credentials cannot be opened: %w", err)
	}
	defer root.Close() //nolint:errcheck // only read
	text, err := secret.Read(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cannot("there is no file %q", filepath.Join(folder, name)).
			WithHint("make one: ssh-keygen -t ed25519 -N \"\" -f %s", filepath.Join(folder, name))
	}
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
