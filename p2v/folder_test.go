package p2v

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Users of disks pass through the folders of moves, and nobody looks, whatever the umask is
// and however they were made before. The folder of all is the administrator's where it is there.
func TestFoldersLetPass(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	above := t.TempDir()
	storage := filepath.Join(above, "mirrors")
	mode := func(path string, want os.FileMode) {
		t.Helper()
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, st.Mode(), err, want)
		}
	}
	for range 2 {
		if err := makeFolders(storage, "a"); err != nil {
			t.Fatal(err)
		}
		mode(storage, 0o711)
		mode(filepath.Join(storage, "a"), 0o711)
		if err := os.Chmod(filepath.Join(storage, "a"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(storage, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := makeFolders(storage, "b"); err != nil {
		t.Fatal(err)
	}
	mode(storage, 0o755)
}
