package convert

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

func TestOverlay(t *testing.T) {
	h := newHost(t)
	c := New(h.cfg)
	o := h.job(c).Disks[0]
	if err := o.Check(); err != nil {
		t.Error(err)
	}
	// It survives a restart as JSON.
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var back Overlay
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(o, back); d != "" || back.Check() != nil {
		t.Error(d, back.Check())
	}
	// A second one takes the first one's place.
	if err := os.WriteFile(o.Path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := c.Overlay(t.Context(), o.Mirror, o.Path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(o, again); d != "" {
		t.Error(d)
	}
	for range 2 {
		if err := o.Remove(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(o.Path + "*"); len(left) > 0 {
		t.Error(left)
	}
	if _, err := os.Stat(o.Mirror); err != nil {
		t.Error(err)
	}
}

func TestOverlayNoticesAWrittenMirror(t *testing.T) {
	for name, write := range map[string]func(string) error{
		"content": func(p string) error { return os.Chtimes(p, time.Now(), time.Now().Add(time.Second)) },
		"size":    func(p string) error { return os.Truncate(p, 1<<21) },
		"another": func(p string) error {
			st, err := os.Stat(p)
			if err == nil {
				err = os.WriteFile(p+".x", make([]byte, 1<<20), 0o644)
			}
			if err == nil {
				err = os.Chtimes(p+".x", st.ModTime(), st.ModTime())
			}
			if err == nil {
				err = os.Rename(p+".x", p)
			}
			return err
		},
	} {
		h := newHost(t)
		o := h.job(New(h.cfg)).Disks[0]
		if err := write(o.Mirror); err != nil {
			t.Fatal(err)
		}
		if err := o.Check(); gpu.CodeOf(err) != gpu.CodeStale {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOverlayRefused(t *testing.T) {
	h := newHost(t)
	c := New(h.cfg)
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd.raw")
	if err := os.WriteFile(odd, make([]byte, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link.raw")
	if err := os.Symlink(odd, link); err != nil {
		t.Fatal(err)
	}
	for _, mirror := range []string{odd, link, dir, filepath.Join(dir, "none"), "relative", "/a:b"} {
		path := filepath.Join(dir, "o.qcow2")
		if _, err := c.Overlay(t.Context(), mirror, path); err == nil {
			t.Errorf("%q: taken", mirror)
		}
		if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
			t.Error(left)
		}
	}
}
