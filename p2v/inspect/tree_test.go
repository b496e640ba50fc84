package inspect

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func openTest(t *testing.T, s *server) *tree {
	t.Helper()
	tr, err := openTree(s.root)
	s.must(err)
	t.Cleanup(func() { s.must(tr.close()) })
	return tr
}

// No link leads out of the tree, and all that stay in it are followed.
func TestTreeFollowsLinksWithin(t *testing.T) {
	s := newServer(t)
	outside := filepath.Join(t.TempDir(), "outside")
	s.must(os.WriteFile(outside, []byte("OUTSIDE"), 0o600))
	s.files(`
-- etc/a --
A
-- usr/lib/b --
B
-- lib -> usr/lib --
-- absolute -> /etc/a --
-- up -> ../../../../etc/a --
-- usr/lib/back -> ../../etc/a --
-- deep -> /lib/back --
-- loop1 -> loop2 --
-- loop2 -> loop1 --
-- nowhere -> /not/there --
`)
	s.link("out", outside)
	s.link("dots", strings.Repeat("../", 40)+outside)
	tr := openTest(t, s)
	for name, want := range map[string]string{
		"etc/a": "A", "lib/b": "B", "absolute": "A", "up": "A", "lib/back": "A", "deep": "A", "/etc//./a": "A", "etc/../lib/../lib/b": "B", "../../etc/a": "A",
		"loop1": "", "nowhere": "", "out": "", "dots": "", "etc": "", "etc/a/b": "", "": "",
	} {
		if got := tr.text(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	if got := tr.real("deep"); got != "etc/a" {
		t.Errorf("%q", got)
	}
	if _, err := tr.read("loop1", small); !errors.Is(err, syscall.ELOOP) {
		t.Error(err)
	}
	if _, err := tr.read("nowhere", small); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if n := openFiles(t); n > 64 {
		t.Errorf("%d files are open", n)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// What is no regular file is not opened: a pipe would block, and a device does what it does.
func TestTreeOpensOnlyRegularFiles(t *testing.T) {
	s := newServer(t)
	s.must(syscall.Mkfifo(filepath.Join(s.root, "pipe"), 0o600))
	s.link("zero", "/dev/zero")
	s.file("big", strings.Repeat("x", 3*small))
	tr := openTest(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { _, err := tr.read("pipe", small); done <- err }()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "no regular file") {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Fatal("the pipe was opened")
	}
	if text, err := tr.read("big", small); len(text) != small || err != nil {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// An automounter is left asleep; what it has mounted is there.
func TestTreeWakesNoAutomounter(t *testing.T) {
	s := newServer(t)
	s.files(`
-- proc/self/mountinfo --
30 22 0:40 / /net rw - autofs /etc/auto.net rw
31 30 0:41 / /net/nas rw - nfs4 nas:/x rw
32 22 0:42 / /backup rw - autofs systemd-1 rw
33 22 0:43 / /data rw - autofs systemd-1 rw
34 33 0:44 / /data rw - nfs4 nas:/data rw
-- net/nas/a --
A
-- net/other/a --
A
-- backup/a --
A
-- data/a --
A
-- link -> /net/other/a --
`)
	tr := openTest(t, s)
	for name, want := range map[string]string{"net/nas/a": "A", "net/other/a": "", "backup/a": "", "data/a": "A", "link": ""} {
		if got := tr.text(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	if names, err := tr.list("backup"); !errors.Is(err, errAutomount) {
		t.Errorf("%q, %v", names, err)
	}
}

// Looking leaves nothing behind: no file is written, made or removed, and not even the time
// of an access changes, but of links, where the kernel has no way around it.
func TestInspectLeavesNoTrace(t *testing.T) {
	s := debianA100(t)
	old := time.Now().Add(-1000 * time.Hour)
	s.must(filepath.WalkDir(s.root, func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&fs.ModeSymlink == 0 {
			err = os.Chtimes(name, old, old.Add(time.Hour)) // accessed before it was written: the kernel would note an access
		}
		return err
	}))
	before := s.traces()
	_ = s.inspect()
	after := s.traces()
	for name, was := range before {
		if after[name] != was {
			t.Errorf("%s has changed:\n%+v\n%+v", name, was, after[name])
		}
	}
	if len(before) != len(after) || len(before) < 100 {
		t.Errorf("%d files, then %d", len(before), len(after))
	}
}

type trace struct {
	ino                 uint64
	atime, mtime, ctime int64
	size                int64
	mode, links, uid    uint64
}

func (s *server) traces() map[string]trace {
	out := map[string]trace{}
	s.must(filepath.WalkDir(s.root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(name, &st); err != nil {
			return err
		}
		tr := trace{ino: st.Ino, atime: st.Atim.Nano(), mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), size: st.Size, mode: uint64(st.Mode), links: st.Nlink, uid: uint64(st.Uid)}
		if e.Type()&fs.ModeSymlink != 0 || e.IsDir() {
			tr.atime = 0 // the walk of this test reads folders itself
		}
		out[name] = tr
		return nil
	}))
	return out
}
