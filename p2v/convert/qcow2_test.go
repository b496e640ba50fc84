package convert

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A program that was taken over cannot have the VM show it another file of the host.
func TestOverlayIsOverItsMirrorOnly(t *testing.T) {
	h := newHost(t)
	c := New(h.cfg)
	o := h.job(c).Disks[0]
	good, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(b []byte) []byte) func(*testing.T) {
		return func(t *testing.T) {
			if err := os.WriteFile(o.Path, f(append([]byte(nil), good...)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, spoil := range map[string]func(*testing.T){
		"another file": change(func(b []byte) []byte {
			binary.BigEndian.PutUint32(b[16:], uint32(len("/etc/shadow")))
			return append(b[:128], "/etc/shadow"...)
		}),
		"another format": change(func(b []byte) []byte { copy(b[112:], "qcw"); return b }),
		"no format":      change(func(b []byte) []byte { binary.BigEndian.PutUint32(b[104:], 0); return b }),
		"endless extension": change(func(b []byte) []byte {
			binary.BigEndian.PutUint32(b[104:], 7)
			binary.BigEndian.PutUint32(b[108:], 1<<32-1)
			return b
		}),
		"data elsewhere": change(func(b []byte) []byte { b[79] |= 4; return b }),
		"no file below":  change(func(b []byte) []byte { binary.BigEndian.PutUint64(b[8:], 1<<63); return b }),
		"long name":      change(func(b []byte) []byte { binary.BigEndian.PutUint32(b[16:], 1<<31); return b }),
		"version":        change(func(b []byte) []byte { b[7] = 2; return b }),
		"no qcow2":       change(func(b []byte) []byte { b[0] = 'x'; return b }),
		"short":          change(func(b []byte) []byte { return b[:50] }),
		"empty":          change(func([]byte) []byte { return nil }),
		"a second name": func(t *testing.T) {
			if err := os.Link(o.Path, o.Path+".link"); err != nil {
				t.Fatal(err)
			}
		},
		"a link": func(t *testing.T) {
			if err := errors.Join(os.Rename(o.Path, o.Path+".good"), os.Symlink(o.Path+".good", o.Path)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			_ = os.Remove(o.Path)
			_ = os.Remove(o.Path + ".link")
			if err := os.WriteFile(o.Path, good, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := o.Check(); err != nil {
				t.Fatal(err)
			}
			spoil(t)
			if err := o.Check(); err == nil || !strings.Contains(err.Error(), o.Path) {
				t.Errorf("taken: %v", err)
			}
		})
	}
}

func FuzzCheckHeader(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"))
	f.Add(make([]byte, 200))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = checkHeader(path, "/m")
	})
}
