package p2v

import (
	"errors"
	"os"
	"path/filepath"
)

// makeFolders makes the folder of a move, and that of all where it is not there. They let
// everybody pass, whatever the umask is, and nobody look: who converts the disks and who runs
// the VM are users of their own, and the files in there say who may read them.
func makeFolders(storage, name string) error {
	if _, err := os.Stat(storage); err != nil {
		if err := errors.Join(os.MkdirAll(storage, 0o711), os.Chmod(storage, 0o711)); err != nil { //nolint:gosec // as told above
			return err
		}
	}
	folder := filepath.Join(storage, name)
	return errors.Join(os.MkdirAll(folder, 0o711), os.Chmod(folder, 0o711)) //nolint:gosec // as told above
}
