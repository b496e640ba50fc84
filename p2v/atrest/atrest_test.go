package atrest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/gpu"
	"gpuvirt/p2v"
	"gpuvirt/p2v/atrest"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/freeze"
	"gpuvirt/p2v/track"
)

var _ p2v.Server = (*atrest.Server)(nil)

const size = 5*block.MinChunkSize + 512

// disk makes the content of a disk: some of it zeros.
func disk(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(b[:3*block.MinChunkSize])
	b[0] = 0xeb // as boot code begins
	return b
}

func write(t *testing.T, content []byte) (folder, path string) {
	t.Helper()
	folder = t.TempDir()
	path = filepath.Join(folder, "gpu7 sda.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return folder, path
}

func dialled(t *testing.T, disks []atrest.Disk, o atrest.Options) *atrest.Server {
	t.Helper()
	s, err := atrest.Dial(t.Context(), disks, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func sda(path string) atrest.Disk {
	return atrest.Disk{Name: "sda", ID: "wwn-1", Size: size, Image: path}
}

// opened calls as a move does.
func opened(t *testing.T, s *atrest.Server, words ...string) io.ReadWriteCloser {
	t.Helper()
	c, err := s.Open(t.Context(), "/gpuvirt", append(append([]string{"p2v"}, words...), "--disk", "sda")...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func tracked(t *testing.T, s *atrest.Server) *track.Client {
	t.Helper()
	c, err := track.Connect(t.Context(), opened(t, s, "track", "--chunk-bytes", "65536"), block.MinChunkSize)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pull makes a pass, and compares.
func pull(t *testing.T, s *atrest.Server, m *block.Mirror, path string, want []byte) block.Pass {
	t.Helper()
	p, err := block.Pull(t.Context(), m, "sda", block.Options{Connections: 2, Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
		return s.Open(ctx, "/gpuvirt", "p2v", "serve", "--disk", "sda")
	}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the mirror is not as the disk: %v", err)
	}
	return p
}

func mirror(t *testing.T) (*block.Mirror, string) {
	t.Helper()
	at := filepath.Join(t.TempDir(), "sda")
	m, err := block.OpenMirror(block.Spec{Path: at + ".raw", Map: at + ".map", ID: "wwn-1", Size: size, ChunkSize: block.MinChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, at + ".raw"
}

// The whole way of a move: what is on the image comes, nothing is told to be written, and
// somebody who writes nevertheless is noticed.
func TestImage(t *testing.T) {
	content := disk(t)
	folder, path := write(t, content)
	if err := os.Symlink(path, filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("gpu7 sda.raw", filepath.Join(folder, "inside")); err != nil {
		t.Fatal(err)
	}
	s := dialled(t, []atrest.Disk{sda(filepath.Join(folder, "inside"))}, atrest.Options{Folders: []string{"/there/is/no/such", folder}})
	where, err := s.Place(t.Context(), "1", strings.NewReader("x"), 1)
	if err != nil || where != "" {
		t.Error(where, err)
	}
	tr := tracked(t, s)
	m, at := mirror(t)
	if p := pull(t, s, m, at, content); p.Changed == 0 {
		t.Errorf("%+v", p)
	}
	quiet := func() {
		t.Helper()
		if written, err := tr.Take(t.Context(), "sda", m.Chunks()); err != nil || len(written) != 0 {
			t.Errorf("%v, %v", written, err)
		}
	}
	quiet()
	quiet()
	f, err := freeze.Connect(t.Context(), opened(t, s, "freeze"))
	if err != nil {
		t.Fatal(err)
	}
	if f.Facts().BootID != "" {
		t.Errorf("it runs: %+v", f.Facts())
	}
	if err := f.Freeze(t.Context(), time.Minute, []string{"postgresql"}); err != nil {
		t.Error(err)
	}
	if w, err := f.Quiet(t.Context()); err != nil || len(w) != 0 {
		t.Error(w, err)
	}

	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	content[block.MinChunkSize] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	// Also where it is hidden.
	if err := os.Chtimes(path, before.ModTime(), before.ModTime()); err != nil {
		t.Fatal(err)
	}
	lost, _ := errors.AsType[*track.LostError](func() error { _, err := tr.Take(t.Context(), "sda", m.Chunks()); return err }())
	if lost == nil || !lost.Again || !strings.Contains(lost.Reason, "the image was written to") {
		t.Errorf("got %+v", lost)
	}
	quiet() // from then on
	if _, err := f.Quiet(t.Context()); err == nil || !strings.Contains(err.Error(), "sda: the image was written to") {
		t.Errorf("got %v", err)
	}
	if p := pull(t, s, m, at, content); p.Changed != 1 {
		t.Errorf("%+v", p)
	}
	if err := f.PowerOff(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Unplace(t.Context(), "1"); err != nil {
		t.Error(err)
	}
	err = s.Run(t.Context(), nil, io.Discard, "nvidia-smi")
	if gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), `cannot run "nvidia-smi": the server is off`) {
		t.Error(err)
	}
}

// What is at the path counts, and not what was there when it was opened: somebody brings a newer
// image, takes it away, or lets it grow.
func TestImageReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		change func(path string) error
		code   gpu.Code
		want   string
	}{
		"another": {func(path string) error {
			if err := os.WriteFile(path+".new", make([]byte, size), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}, gpu.CodeUnavailable, "another file or disk"},
		"a folder": {func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, gpu.CodeUnavailable, "another file or disk"},
		"gone":     {os.Remove, gpu.CodeNotFound, "not there any more"},
		"longer":   {func(path string) error { return os.Truncate(path, size+1<<20) }, gpu.CodeConflict, "has 1376768 bytes now, and had 328192"},
		"shorter":  {func(path string) error { return os.Truncate(path, size-1) }, gpu.CodeConflict, "has 328191 bytes now"},
	} {
		t.Run(name, func(t *testing.T) {
			folder, path := write(t, disk(t))
			link := filepath.Join(folder, "link")
			if err := os.Symlink(filepath.Base(path), link); err != nil {
				t.Fatal(err)
			}
			s := dialled(t, []atrest.Disk{sda(link)}, atrest.Options{Folders: []string{folder}})
			tr := tracked(t, s)
			f, err := freeze.Connect(t.Context(), opened(t, s, "freeze"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tr.Take(t.Context(), "sda", 6); err != nil {
				t.Error(err)
			}
			if err := errors.Join(f.Freeze(t.Context(), time.Minute, nil), s.Same(t.Context())); err != nil {
				t.Error(err)
			}
			if err := c.change(path); err != nil {
				t.Fatal(err)
			}
			if err := s.Same(t.Context()); gpu.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `disk "sda": "`+link) {
				t.Errorf("%s %v", gpu.CodeOf(err), err)
			}
			if _, err := f.Quiet(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("at rest: %v", err)
			}
			if _, err := tr.Take(t.Context(), "sda", 6); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("tracked: %v", err)
			}
			if err := errors.Join(f.Thaw(t.Context())); err != nil {
				t.Error(err)
			}
			if err := f.Freeze(t.Context(), time.Minute, nil); err == nil {
				t.Error("it is taken for the one that was opened")
			}
		})
	}
}

func TestRefusedImages(t *testing.T) {
	raw := disk(t)
	begins := func(at int, magic string) string {
		b := slices.Clone(raw)
		clear(b[:64])
		copy(b[at:], magic)
		_, path := write(t, b)
		return path
	}
	folder, path := write(t, raw)
	if err := os.Symlink("/etc", filepath.Join(folder, "out")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(folder, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, longer := write(t, append(slices.Clone(raw), 0))
	_, busy := write(t, raw)
	writing, err := os.OpenFile(busy, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writing.Close()
	for _, c := range []struct {
		path    string
		code    gpu.Code
		want    string
		hint    string
		folders []string
	}{
		{path: begins(0, "QFI\xfb"), code: gpu.CodeInvalid, want: "it is a qcow2 image, and has to be raw", hint: "qemu-img convert -O raw"},
		{path: begins(0, "KDMV"), code: gpu.CodeInvalid, want: "VMDK", hint: "qemu-img convert"},
		{path: begins(0, "# Disk DescriptorFile\n"), code: gpu.CodeInvalid, want: "VMDK", hint: "qemu-img convert"},
		{path: begins(0, "vhdxfile"), code: gpu.CodeInvalid, want: "VHDX", hint: "qemu-img convert"},
		{path: begins(64, "\x7f\x10\xda\xbe"), code: gpu.CodeInvalid, want: "VDI", hint: "qemu-img convert"},
		{path: begins(0, "\x1f\x8b\x08"), code: gpu.CodeInvalid, want: "compressed with gzip", hint: "unpack it"},
		{path: longer, code: gpu.CodeConflict, want: "has 328193 bytes, and the disk had 328192 when the server was inspected", hint: "to the byte"},
		{path: busy, code: gpu.CodeBusy, want: "open for writing", hint: "lsof"},
		{path: path + "x", code: gpu.CodeNotFound, want: "it is not there"},
		{path: filepath.Join(folder, "fifo"), code: gpu.CodeInvalid, want: "neither an image nor a block device"},
		{path: folder, code: gpu.CodeForbidden, want: "disks may be read from"},
		{path: folder + "/out/passwd", code: gpu.CodeInvalid, want: "escapes"},
		{path: folder + "/../" + filepath.Base(folder) + "/gpu7 sda.raw", code: gpu.CodeInvalid, want: ". or .. in it"},
		{path: "gpu7 sda.raw", code: gpu.CodeInvalid, want: "no absolute path"},
		{path: "/etc/shadow", code: gpu.CodeForbidden, want: "disks may be read from", hint: "p2v.images", folders: []string{folder}},
		{path: path, code: gpu.CodeForbidden, want: "no folder is set", hint: "p2v.images", folders: []string{}},
		{path: path, code: gpu.CodeForbidden, want: "disks may be read from", folders: []string{folder + "x", folder[:len(folder)-1]}},
		{path: "/dev/zero", code: gpu.CodeInvalid, want: "neither an image nor a block device", folders: []string{"/dev"}},
	} {
		if c.folders == nil {
			c.folders = []string{filepath.Dir(c.path)}
			if !filepath.IsAbs(c.path) || strings.Contains(c.path, "/out/") || c.path == folder {
				c.folders = []string{folder}
			}
		}
		_, err := atrest.Dial(t.Context(), []atrest.Disk{sda(c.path)}, atrest.Options{Folders: c.folders})
		e, _ := errors.AsType[*gpu.Error](err)
		if e == nil || e.Code != c.code || !strings.Contains(e.Detail, c.want) || !strings.Contains(e.Hint, c.hint) || !strings.Contains(e.Detail, `disk "sda"`) {
			t.Errorf("%s: %+v", c.path, e)
		}
	}
}

func TestRefusedDisks(t *testing.T) {
	folder, path := write(t, disk(t))
	for _, disks := range [][]atrest.Disk{
		nil,
		{sda(path), sda(path)},
		{{ID: "wwn-1", Size: size, Image: path}},
		{{Name: "sda", Size: size, Image: path}},
		{{Name: "sda", ID: "wwn-1", Image: path}},
		{{Name: "sda", ID: "wwn-1", Size: size}},
		{{Name: "sda", ID: "wwn-1", Size: size, Image: path, NBD: "nbds://gpu7/"}},
		{{Name: "sda", ID: "wwn-1", Size: size, NBD: "gpu7"}},
	} {
		if _, err := atrest.Dial(t.Context(), disks, atrest.Options{Folders: []string{folder}}); gpu.CodeOf(err) != gpu.CodeInvalid {
			t.Errorf("%+v: %v", disks, err)
		}
	}
	if _, err := atrest.Dial(t.Context(), []atrest.Disk{{Name: "../sda", ID: "wwn-1", Size: size, Image: path}}, atrest.Options{Folders: []string{folder}}); err == nil {
		t.Error("a name that is none")
	}
}

func TestOpen(t *testing.T) {
	folder, path := write(t, disk(t))
	s := dialled(t, []atrest.Disk{sda(path)}, atrest.Options{Folders: []string{folder}})
	for _, words := range [][]string{
		{"cat", "/etc/passwd"},
		{"/gpuvirt"},
		{"/gpuvirt", "p2v"},
		{"/gpuvirt", "p2v", "inspect", "--disk", "sda"},
		{"/gpuvirt", "p2v", "serve"},
		{"/gpuvirt", "p2v", "serve", "--disk"},
		{"/gpuvirt", "p2v", "serve", "--disk", "sdb"},
		{"/gpuvirt", "p2v", "serve", "--disk", "sda", "more"},
		{"/gpuvirt", "p2v", "track", "--disk", "sda", "--chunk-bytes", "x"},
		{"/gpuvirt", "p2v", "serve", "--root", "/", "--disk", "sda"},
	} {
		if c, err := s.Open(t.Context(), words[0], words[1:]...); err == nil {
			_ = c.Close()
			t.Errorf("%q is run", words)
		}
	}
	c, err := s.Open(t.Context(), "sudo", "-n", "--", "/gpuvirt", "p2v", "track", "--chunk-bytes", "65536", "--disk", "sda")
	if err != nil {
		t.Fatal(err)
	}
	tr, err := track.Connect(t.Context(), c, 65536)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Take(t.Context(), "sdb", 1); err == nil || !strings.Contains(err.Error(), "not tracked") {
		t.Error(err)
	}
	// Close ends what was opened, and nothing more is.
	waiting := opened(t, s, "serve")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if _, err := tr.Take(t.Context(), "sda", 1); err == nil {
		t.Error("it goes on")
	}
	if _, err := s.Open(t.Context(), "/gpuvirt", "p2v", "serve", "--disk", "sda"); gpu.CodeOf(err) != gpu.CodeUnavailable || !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
