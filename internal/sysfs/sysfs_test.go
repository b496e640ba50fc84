package sysfs

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func tree(t *testing.T) (string, *Root) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"class/mdev_bus", "devices/virtual/mbochs/mbochs", "bus"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"devices/virtual/mbochs/mbochs/name": "  mbochs\n", "devices/virtual/mbochs/mbochs/numa_node": "0x10\n",
		"devices/virtual/mbochs/mbochs/empty": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"class/mdev_bus/mbochs": "../../devices/virtual/mbochs/mbochs",
		"class/out":             "../../../../../../../../etc",
		"class/absolute":        "/etc",
		"class/loop":            "loop",
		"class/dangling":        "nothing",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return dir, r
}

func TestRead(t *testing.T) {
	dir, r := tree(t)
	for name, want := range map[string]string{
		"devices/virtual/mbochs/mbochs/name": "mbochs", "class/mdev_bus/mbochs/name": "mbochs",
		"devices/virtual/mbochs/mbochs/empty": "",
	} {
		if got, err := r.Read(name); err != nil || got != want {
			t.Errorf("Read(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	if n, err := r.ReadUint("class/mdev_bus/mbochs/numa_node"); err != nil || n != 16 {
		t.Errorf("ReadUint = %d, %v", n, err)
	}
	if _, err := r.ReadUint("class/mdev_bus/mbochs/name"); err == nil {
		t.Error("ReadUint read a word")
	}
	for name, want := range map[string]error{
		"nothing": fs.ErrNotExist, "class": syscall.EISDIR, "devices/virtual/mbochs/mbochs/name/x": syscall.ENOTDIR,
	} {
		if _, err := r.Read(name); !errors.Is(err, want) || !strings.HasPrefix(err.Error(), `cannot read "`) {
			t.Errorf("Read(%q): %v, want %v", name, err, want)
		}
	}
	for _, name := range []string{"../x", "/etc/passwd", "class/out/passwd", "class/absolute/passwd"} {
		if got, err := r.Read(name); err == nil {
			t.Errorf("Read(%q) left the tree: %q", name, got)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "long"), make([]byte, maxRead+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read("long"); err == nil {
		t.Error("a file without an end was read")
	}
}

func TestReadEach(t *testing.T) {
	_, r := tree(t)
	files, err := r.ReadEach("class/mdev_bus/mbochs", "numa_node", "nothing", "empty", "../../out/passwd", ".")
	if err != nil || len(files) != 5 {
		t.Fatal(files, err)
	}
	if files[0] != (File{Text: "0x10"}) || files[2] != (File{}) {
		t.Errorf("%+v", files)
	}
	for i, want := range map[int]string{
		1: `cannot read "class/mdev_bus/mbochs/nothing": no such file or directory`, 4: `cannot read "class/mdev_bus/mbochs": is a directory`,
	} {
		if got := files[i].Err; got == nil || got.Error() != want {
			t.Errorf("%d: %v, want %s", i, got, want)
		}
	}
	if !errors.Is(files[1].Err, fs.ErrNotExist) || files[3].Err == nil {
		t.Errorf("%+v", files)
	}
	if files, err := r.ReadEach("bus"); len(files) != 0 || err != nil {
		t.Error(files, err)
	}
	if files, err := r.ReadEach("class/nothing", "name"); err != nil || !errors.Is(files[0].Err, fs.ErrNotExist) {
		t.Error(files, err)
	}
}

// hangs makes a call that hangs, with more and more time: where there is none left none is made.
func hangs(t *testing.T, call func(ctx context.Context) error) (*HungError, error) {
	t.Helper()
	for limit := 10 * time.Millisecond; ; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err := call(ctx)
		cancel()
		if hung, ok := errors.AsType[*HungError](err); ok {
			return hung, err
		}
		if !errors.Is(err, context.DeadlineExceeded) || limit > time.Minute {
			t.Fatal(err)
		}
	}
}

// One file that hangs is waited for once, and then the directory answers at once.
func TestReadEachHangs_T44(t *testing.T) {
	dir, r := tree(t)
	fifo := filepath.Join(dir, "class/mdev_bus/mbochs/available_instances")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	names := []string{"name", "available_instances"}
	hung, err := hangs(t, func(ctx context.Context) error {
		_, err := r.readEach(ctx, "class/mdev_bus/mbochs", names)
		return err
	})
	if hung.Path != "class/mdev_bus/mbochs" {
		t.Fatal(err)
	}
	if _, again := r.ReadEach("class/mdev_bus/mbochs", names...); again != err || r.Hung() != 1 { //nolint:errorlint // the very same
		t.Error(again, r.Hung())
	}
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	<-hung.Done()
	if files, err := r.ReadEach("class/mdev_bus/mbochs", "name"); err != nil || files[0].Text != "mbochs" {
		t.Error(files, err)
	}
}

func TestListAndLinks(t *testing.T) {
	_, r := tree(t)
	names, err := r.List("class/mdev_bus/mbochs")
	if diff := cmp.Diff([]string{"empty", "name", "numa_node"}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := r.List("class/nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if got, err := r.Readlink("class/mdev_bus/mbochs"); err != nil || got != "../../devices/virtual/mbochs/mbochs" {
		t.Error(got, err)
	}
	if _, err := r.Readlink("bus"); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	for name, want := range map[string]bool{"bus": true, "class/dangling": true, "class/mdev_bus/mbochs/name": true, "bus/x": false} {
		if got, err := r.Exists(name); err != nil || got != want {
			t.Errorf("Exists(%q) = %t, %v", name, got, err)
		}
	}
	if _, err := r.Exists("class/out/x"); err == nil {
		t.Error("Exists looked outside the tree")
	}
}

func TestWrite(t *testing.T) {
	dir, r := tree(t)
	name := "class/mdev_bus/mbochs/name"
	if err := r.Write(t.Context(), name, "12"); err != nil {
		t.Fatal(err)
	}
	// Neither truncated nor replaced.
	if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != "12mbochs\n" {
		t.Errorf("%q, %v", got, err)
	}
	if err := r.Write(t.Context(), "bus/new", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if ok, _ := r.Exists("bus/new"); ok {
		t.Error("Write made a file")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Write(ctx, name, "99"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	if got, _ := r.Read(name); got != "12mbochs" {
		t.Errorf("a cancelled write wrote: %q", got)
	}
}

// An errno of the driver is an answer. Nothing waits for a file to become ready, as
// Go's poller would on EAGAIN: files are written with a bare system call.
func TestWriteErrno(t *testing.T) {
	proc, err := Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if err := proc.Write(t.Context(), "self/oom_score_adj", "no number"); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	dev, err := Open("/dev")
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if err := dev.Write(t.Context(), "full", "1"); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
}

// Opening a FIFO that nobody reads blocks as a sysfs write can.
func TestWriteHangs_T44(t *testing.T) {
	dir, _ := tree(t)
	fifo := filepath.Join(dir, "create")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	r, err := OpenLogged(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	hung, err := hangs(t, func(ctx context.Context) error { return r.Write(ctx, "create", "1") })
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || hung.Path != "create" {
		t.Fatalf("%v", err)
	}
	if !strings.HasPrefix(err.Error(), `cannot write "create": it has hung since `) || r.Hung() != 1 || r.WriteTimeouts() != 1 {
		t.Error(err, r.Hung(), r.WriteTimeouts())
	}
	if done, _ := hung.Returned(); done {
		t.Error("it returned, it says")
	}

	// Everything else answers at once, and the same write is not tried again.
	start := time.Now()
	for range 100 {
		if _, err := r.Read("class/mdev_bus/mbochs/name"); err != nil {
			t.Fatal(err)
		}
		if err := r.Write(t.Context(), "class/mdev_bus/mbochs/empty", "1"); err != nil {
			t.Fatal(err)
		}
		if err := r.Write(t.Context(), "create", "1"); !errors.Is(err, ErrTimeout) {
			t.Fatal(err)
		}
	}
	if d := time.Since(start); d > time.Minute {
		t.Errorf("300 calls took %s", d)
	}
	if r.Hung() != 1 || r.WriteTimeouts() != 1 {
		t.Error(r.Hung(), r.WriteTimeouts())
	}

	// Somebody reads at last.
	f, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	<-hung.Done()
	if done, err := hung.Returned(); !done || err != nil {
		t.Error(done, err)
	}
	if r.Hung() != 0 || r.WriteTimeouts() != 1 || !strings.Contains(log.String(), "came back") {
		t.Error(r.Hung(), r.WriteTimeouts(), log.String())
	}
}

func TestReadHangs_T44(t *testing.T) {
	dir, r := tree(t)
	fifo := filepath.Join(dir, "available_instances")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	hung, err := hangs(t, func(ctx context.Context) error {
		_, err := r.read(ctx, "available_instances")
		return err
	})
	if hung.Op != "read" || r.WriteTimeouts() != 0 {
		t.Fatal(err, r.WriteTimeouts())
	}
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	<-hung.Done()
}

// Two calls of one name that hang together are two, and the name is free again
// only when both are back.
func TestGuardCounts_T44(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Guard
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		release := []chan struct{}{make(chan struct{}), make(chan struct{})}
		var wg sync.WaitGroup
		for _, c := range release {
			wg.Go(func() {
				if err := g.Do(ctx, "write", "p", func() error { <-c; return syscall.EIO }); !errors.Is(err, ErrTimeout) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if g.Hung() != 2 {
			t.Error(g.Hung())
		}
		for i, c := range release {
			close(c)
			synctest.Wait()
			err := g.Do(t.Context(), "write", "p", func() error { return nil })
			if left := 1 - i; g.Hung() != left || (err != nil) != (left > 0) {
				t.Error(g.Hung(), err)
			}
		}
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
