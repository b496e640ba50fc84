package atrest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/gpu"
	"gpuvirt/p2v/atrest"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/freeze"
	"gpuvirt/p2v/nbd"
	"gpuvirt/p2v/track"
)

// A rescue is a rescue system that exports a disk, on a port that is there all the time.
type rescue struct {
	socket *os.File
	uri    string
	cmd    *exec.Cmd
}

func newRescue(t *testing.T) *rescue {
	t.Helper()
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Skip("nbdkit is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	r := &rescue{socket: f, uri: "nbd://" + l.Addr().String() + "/"}
	t.Cleanup(func() { r.stop(); _ = f.Close() })
	return r
}

// start exports, and waits for nothing: who connects before it is there is served then.
func (r *rescue) start(t *testing.T, words ...string) {
	t.Helper()
	r.cmd = exec.CommandContext(t.Context(), "sh", append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec nbdkit -f -r "$@"`, "sh"}, words...)...)
	r.cmd.ExtraFiles = []*os.File{r.socket}
	r.cmd.WaitDelay = 10 * time.Second
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (r *rescue) stop() {
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		r.cmd = nil
	}
}

func exported(uri string) atrest.Disk {
	return atrest.Disk{Name: "sda", ID: "wwn-1", Size: size, NBD: uri}
}

// A disk comes by NBD as one comes by ssh. Where the rescue system was started again in between,
// nobody knows what has run meanwhile: all of it is looked at once more.
func TestExport(t *testing.T) {
	content := disk(t)
	_, path := write(t, content)
	r := newRescue(t)
	r.start(t, "file", path)
	s := dialled(t, []atrest.Disk{exported(r.uri)}, atrest.Options{})
	tr := tracked(t, s)
	f, err := freeze.Connect(t.Context(), opened(t, s, "freeze"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Freeze(t.Context(), time.Minute, nil); err != nil {
		t.Error(err)
	}
	m, at := mirror(t)
	pull(t, s, m, at, content)
	quiet := func() {
		t.Helper()
		if written, err := tr.Take(t.Context(), "sda", m.Chunks()); err != nil || len(written) != 0 {
			t.Errorf("%v, %v", written, err)
		}
		if _, err := f.Quiet(t.Context()); err != nil {
			t.Error(err)
		}
	}
	quiet()

	r.stop()
	content[block.MinChunkSize] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	r.start(t, "file", path)
	_, err = tr.Take(t.Context(), "sda", m.Chunks())
	lost, _ := errors.AsType[*track.LostError](err)
	if lost == nil || !lost.Again || !strings.Contains(lost.Reason, "the server that exports it was away") {
		t.Errorf("got %v", err)
	}
	if _, err := f.Quiet(t.Context()); err == nil {
		t.Error("it is said to be as it was")
	}
	if err := f.Freeze(t.Context(), time.Minute, nil); err == nil || !strings.Contains(err.Error(), "frozen already") {
		t.Error(err)
	}
	if err := errors.Join(f.Thaw(t.Context()), f.Freeze(t.Context(), time.Minute, nil)); err != nil {
		t.Error(err)
	}
	if p := pull(t, s, m, at, content); p.Changed != 1 {
		t.Errorf("%+v", p)
	}
	quiet()

	// Where it does not come back, that is what is told: a cut, which may pass, and no bad block.
	r.stop()
	if err := r.socket.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = block.Pull(t.Context(), m, "sda", block.Options{Connections: 1, Patience: 10 * time.Millisecond, Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
		return s.Open(ctx, "/gpuvirt", "p2v", "serve", "--disk", "sda")
	}})
	if !errors.Is(err, block.ErrNoProgress) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Open(t.Context(), "/gpuvirt", "p2v", "serve", "--disk", "sda"); gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
	if _, err := tr.Take(t.Context(), "sda", m.Chunks()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}

// An image that a rescue system exports is lengthened, and its server goes on.
func TestExportLonger(t *testing.T) {
	_, path := write(t, disk(t))
	r := newRescue(t)
	r.start(t, "file", path)
	s := dialled(t, []atrest.Disk{exported(r.uri)}, atrest.Options{})
	f, err := freeze.Connect(t.Context(), opened(t, s, "freeze"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Freeze(t.Context(), time.Minute, nil), s.Same(t.Context())); err != nil {
		t.Error(err)
	}
	if err := os.Truncate(path, size+512); err != nil {
		t.Fatal(err)
	}
	if err := s.Same(t.Context()); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "it has 328704 bytes, and had 328192 before") {
		t.Error(err)
	}
	if _, err := f.Quiet(t.Context()); err == nil || !strings.Contains(err.Error(), "it has 328704 bytes") {
		t.Error(err)
	}
}

// A block that cannot be read is told with its place, as one of any server is.
func TestExportBadBlock(t *testing.T) {
	_, path := write(t, disk(t))
	failing := filepath.Join(t.TempDir(), "fail")
	r := newRescue(t)
	r.start(t, "--filter=error", "file", path, "error-pread=EIO", "error-pread-rate=100%", "error-pread-file="+failing)
	s := dialled(t, []atrest.Disk{exported(r.uri)}, atrest.Options{})
	if err := os.WriteFile(failing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m, _ := mirror(t)
	_, err := block.Pull(t.Context(), m, "sda", block.Options{Connections: 1, Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
		return s.Open(ctx, "/gpuvirt", "p2v", "serve", "--disk", "sda")
	}})
	bad, _ := errors.AsType[*block.SourceError](err)
	if bad == nil || bad.Offset != 0 || bad.Disk != "sda" || !strings.HasSuffix(bad.Cause, "input/output error (EIO)") {
		t.Errorf("got %v", err)
	}
}

func TestRefusedExports(t *testing.T) {
	content := disk(t)
	copy(content, "QFI\xfb")
	_, path := write(t, content)
	r := newRescue(t)
	if _, err := atrest.Dial(t.Context(), []atrest.Disk{exported("nbd://192.0.2.7/")}, atrest.Options{}); gpu.CodeOf(err) != gpu.CodeInvalid || !strings.Contains(err.Error(), "without TLS") {
		t.Error(err)
	}
	r.start(t, "file", path)
	_, err := atrest.Dial(t.Context(), []atrest.Disk{exported(r.uri)}, atrest.Options{NBD: nbd.Options{Connections: 1}})
	e, _ := errors.AsType[*gpu.Error](err)
	if e == nil || e.Code != gpu.CodeInvalid || !strings.Contains(e.Detail, "a qcow2 image, and has to be raw") || !strings.Contains(e.Hint, "qemu-nbd -r -f FORMAT") {
		t.Errorf("got %+v", e)
	}
	d := exported(r.uri)
	d.Size++
	r.stop()
	content[0] = 0xeb
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	r.start(t, "file", path)
	if _, err := atrest.Dial(t.Context(), []atrest.Disk{d}, atrest.Options{}); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "has 328192 bytes, and the disk had 328193") {
		t.Error(err)
	}
}

// A socket of this host is one that takes orders of root, but where the folders say otherwise.
func TestSockets(t *testing.T) {
	folder, other := t.TempDir(), t.TempDir()
	at := func(path string) string { return "nbd+unix:///?socket=" + path }
	l, err := net.Listen("unix", filepath.Join(other, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = errors.Join(os.Symlink(filepath.Join(other, "s"), filepath.Join(folder, "out")), os.WriteFile(filepath.Join(folder, "file"), nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		uri     string
		code    gpu.Code
		want    string
		folders []string
	}{
		{uri: at(filepath.Join(other, "s")), code: gpu.CodeForbidden, want: "no folder is set"},
		{uri: at(filepath.Join(other, "s")), code: gpu.CodeForbidden, want: "disks may be read from", folders: []string{folder}},
		{uri: at(folder + "/../" + filepath.Base(other) + "/s"), code: gpu.CodeForbidden, want: "disks may be read from", folders: []string{folder}},
		{uri: at(filepath.Join(folder, "out")), code: gpu.CodeInvalid, want: "escapes", folders: []string{folder}},
		{uri: at(filepath.Join(folder, "file")), code: gpu.CodeInvalid, want: "it is no socket", folders: []string{folder}},
		{uri: at(filepath.Join(folder, "none")), code: gpu.CodeNotFound, want: "it is not there", folders: []string{folder}},
	} {
		_, err := atrest.Dial(t.Context(), []atrest.Disk{exported(c.uri)}, atrest.Options{Folders: c.folders})
		if gpu.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s of %q: %v", c.uri, c.folders, err)
		}
	}

	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Skip("nbdkit is not installed")
	}
	_, path := write(t, disk(t))
	r := newRescue(t)
	own, err := net.Listen("unix", filepath.Join(folder, "own"))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if r.socket, err = own.(*net.UnixListener).File(); err != nil {
		t.Fatal(err)
	}
	r.start(t, "file", path)
	dialled(t, []atrest.Disk{exported(at(filepath.Join(folder, "own")))}, atrest.Options{Folders: []string{folder}})
}

// An export that others may write to is told in the log.
func TestWritableExport(t *testing.T) {
	_, path := write(t, disk(t))
	if _, err := exec.LookPath("qemu-nbd"); err != nil {
		t.Skip("qemu-nbd is not installed")
	}
	r := newRescue(t)
	r.cmd = exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec qemu-nbd -t -f raw "$@"`, "sh", path)
	r.cmd.ExtraFiles = []*os.File{r.socket}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	dialled(t, []atrest.Disk{exported(r.uri)}, atrest.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if !strings.Contains(log.String(), "can be written to") {
		t.Errorf("it says %q", log.String())
	}
}

// A block device is taken where nobody else has it, and kept from others.
func TestDevice(t *testing.T) {
	content := disk(t)
	_, path := write(t, content)
	out, err := exec.CommandContext(t.Context(), "losetup", "-f", "--show", path).Output()
	if err != nil {
		t.Skip("cannot make a block device: ", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "-d", dev).Run(); err != nil {
			t.Error(err)
		}
	})
	o := atrest.Options{Folders: []string{"/dev"}}
	other, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = atrest.Dial(t.Context(), []atrest.Disk{sda(dev)}, o)
	if gpu.CodeOf(err) != gpu.CodeBusy || !strings.Contains(err.Error(), "it is in use") {
		t.Error(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := atrest.Dial(t.Context(), []atrest.Disk{sda(dev)}, o)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0); !errors.Is(err, unix.EBUSY) {
		_ = other.Close()
		t.Error("others take it")
	}
	tr := tracked(t, s)
	m, at := mirror(t)
	pull(t, s, m, at, content)
	if written, err := tr.Take(t.Context(), "sda", m.Chunks()); err != nil || len(written) != 0 {
		t.Errorf("%v, %v", written, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// The file that it lies on is written to by the device.
	folder := filepath.Dir(path)
	if _, err := atrest.Dial(t.Context(), []atrest.Disk{sda(path)}, atrest.Options{Folders: []string{folder}}); gpu.CodeOf(err) != gpu.CodeBusy {
		t.Error(err)
	}
}
