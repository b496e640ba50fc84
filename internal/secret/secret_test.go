package secret_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gpuvirt/internal/secret"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int, mode fs.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(strings.Repeat("k", size)), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("good", secret.Most, 0o600)
	write("group", 1, 0o640)
	write("others", 1, 0o604)
	write("large", secret.Most+1, 0o600)
	write("foreign", 1, 0o600)
	if err := errors.Join(syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600), os.Mkdir(filepath.Join(dir, "folder"), 0o700), os.Symlink("/etc/hostname", filepath.Join(dir, "out"))); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	text, err := secret.Read(root, "good")
	if err != nil || len(text) != secret.Most {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if _, err := secret.Read(root, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	refused := map[string]string{
		"group": "its mode is 0640", "others": "its mode is 0604", "large": "65537 bytes", "fifo": "it is no file", "folder": "it is no file", "out": "escapes",
	}
	if os.Chown(filepath.Join(dir, "foreign"), 12345, -1) == nil { // that takes root
		refused["foreign"] = "it belongs to user 12345"
	}
	for name, want := range refused {
		if _, err := secret.Read(root, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A secret that is held is shown to nobody, whatever holds it.
func TestTextIsNotShown(t *testing.T) {
	held := struct{ Key secret.Text }{"swordfish"}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", held.Key, "held", held)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", held.Key, "held", held)
	text, err := json.Marshal(held)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %s %q %x %d", held, held, held, held.Key, held.Key, held.Key, held.Key) + fmt.Sprint(held.Key, &held) + log.String() + string(text)
	if strings.Contains(all, "swordfish") || strings.Contains(all, hex.EncodeToString([]byte("swordfish"))) || !strings.Contains(all, "(a secret)") {
		t.Error(all)
	}
}
