//go:build p2v

package p2v

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuvirt/internal/secret"
	"gpuvirt/p2v/convert"
)

const luksPassphrase = "correct horse: battery, staple"

// luksScript makes a disk with a small system on an encrypted volume. A passphrase is the line after
// what asks for it.
const luksScript = `add-drive disk.raw format:raw
run
part-disk /dev/sda mbr
luks-format /dev/sda1 0
PASSPHRASE
cryptsetup-open /dev/sda1 root
PASSPHRASE
mkfs ext4 /dev/mapper/root label:root
mount /dev/mapper/root /
mkdir /etc
mkdir /bin
mkdir /usr
mkdir /var
mkdir /tmp
write /etc/debian_version "12.5\n"
write /etc/os-release "ID=debian\nVERSION_ID=12\nPRETTY_NAME=Debian\n"
write /etc/fstab "LABEL=root / ext4 defaults 0 1\n"
write /etc/hostname "gpu7\n"
`

// guestfish runs a script of guestfish, and returns what it says.
func guestfish(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "guestfish", "--keys-from-stdin")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(strings.ReplaceAll(script, "PASSPHRASE", luksPassphrase))
	cmd.Env = append(os.Environ(), "LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// A guest on an encrypted disk is changed with its passphrase, and without is not; the passphrase is
// in no log, and no file of it is left.
func TestEncrypted(t *testing.T) {
	dir := t.TempDir()
	limits := confine(t, dir)
	mirror, secrets, scratch := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "secrets"), filepath.Join(dir, "scratch")
	err := errors.Join(os.WriteFile(mirror, nil, 0o600), os.Truncate(mirror, 96<<20), os.Mkdir(scratch, 0o711))
	if err != nil {
		t.Fatal(err)
	}
	guestfish(t, dir, luksScript)
	c := convert.New(convert.Config{Scratch: scratch, Secrets: secrets, Confine: limits})
	change := []convert.Edit{{ID: "motd", Kind: convert.EditWrite, Path: "/etc/motd", Content: []byte("it was opened\n")}}
	try := func(keys ...convert.Key) error {
		t.Helper()
		o, err := c.Overlay(t.Context(), mirror, filepath.Join(dir, "0.qcow2"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Customize(t.Context(), convert.Job{Name: "gpu7", Disks: []convert.Overlay{o}, Keys: keys, Dir: dir}, change)
		return err
	}
	for what, keys := range map[string][]convert.Key{"no key": nil, "another's": {{Volume: "/dev/sdb1", Passphrase: luksPassphrase}}} {
		if failed, is := errors.AsType[*convert.Failure](try(keys...)); !is || failed.Kind != convert.KindEncrypted {
			t.Errorf("%s: %v", what, failed)
		}
	}
	if err := try(convert.Key{Volume: "/dev/sda1", Passphrase: secret.Text(luksPassphrase)}); err != nil {
		t.Fatal(err, hint(err))
	}
	if got := guestfish(t, dir, "add-drive 0.qcow2 format:qcow2 readonly:true\nrun\ncryptsetup-open /dev/sda1 root\nPASSPHRASE\nmount-ro /dev/mapper/root /\ncat /etc/motd\n"); !strings.Contains(got, "it was opened") {
		t.Errorf("%q", got)
	}
	if left, err := os.ReadDir(secrets); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), "disk.") {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(luksPassphrase)) {
			t.Errorf("it is in %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
