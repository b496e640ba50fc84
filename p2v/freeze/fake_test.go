package freeze

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const thisBoot = "4be8eff5-d1ef-44b8-aff3-0cbf4ca0b5ad"

// write makes a file of a fake tree, or a link where the content begins with "->".
func write(t testing.TB, root, name, content string) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(file)
	var err error
	if target, link := strings.CutPrefix(content, "->"); link {
		err = os.Symlink(target, file)
	} else {
		err = os.WriteFile(file, []byte(content), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// device adds a block device. Its path is below sys/devices: "sda/sda1" is a partition of sda.
func device(t testing.TB, root, number, at string) {
	t.Helper()
	name := filepath.Base(at)
	write(t, root, "sys/devices/"+at+"/dev", number+"\n")
	write(t, root, "sys/class/block/"+name, "->../../devices/"+at)
	write(t, root, "sys/dev/block/"+number, "->../../devices/"+at)
	if at != name {
		write(t, root, "sys/devices/"+at+"/partition", "1\n")
	}
	counted(t, root, name, 0, 0)
}

// counted sets how many sectors were written to a device and discarded.
func counted(t testing.TB, root, name string, written, discarded int) {
	t.Helper()
	write(t, root, "sys/class/block/"+name+"/stat", fmt.Sprintf("  10 0 80 5 %d 0 %d 9 0 8 14 %d 0 %d 0 3 1\n", written, written, discarded, discarded))
}

// upon puts a volume on others.
func upon(t testing.TB, root, name string, on ...string) {
	t.Helper()
	for _, o := range on {
		write(t, root, "sys/class/block/"+name+"/slaves/"+o, "->../../"+o)
		write(t, root, "sys/class/block/"+o+"/holders/"+name, "->../../"+name)
	}
}

// aServer is one with all that may lie on a disk: sda is moved and sdb is not.
func aServer(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for number, at := range map[string]string{
		"8:0": "sda", "8:1": "sda/sda1", "8:2": "sda/sda2", "8:3": "sda/sda3", "8:16": "sdb", "8:17": "sdb/sdb1",
		"253:0": "dm-0", "253:1": "dm-1", "253:2": "dm-2", "7:0": "loop0",
	} {
		device(t, root, number, at)
	}
	upon(t, root, "dm-0", "sda3") // LUKS
	upon(t, root, "dm-1", "dm-0") // LVM on it
	upon(t, root, "dm-2", "dm-0") // swap on it
	write(t, root, "sys/class/block/dm-1/dm/name", "vg-root\n")
	write(t, root, "sys/class/block/dm-2/dm/name", "vg-swap\n")
	write(t, root, "sys/class/block/loop0/loop/backing_file", "/srv/deep/er/image\n")
	write(t, root, "dev/vg/root", "->../dm-1")
	write(t, root, "proc/self/mountinfo", `22 1 253:1 / / rw,relatime - ext4 /dev/mapper/vg-root rw
23 22 0:5 / /dev rw - devtmpfs udev rw
24 22 8:1 / /boot/efi rw - vfat /dev/sda1 rw
25 22 8:2 / /boot rw - xfs /dev/sda2 rw
26 22 8:17 / /data rw - ext4 /dev/sdb1 rw
27 22 253:1 /var/lib /mnt/part/of/it rw - ext4 /dev/mapper/vg-root rw
28 22 7:0 / /img rw - ext4 /dev/loop0 rw
29 22 0:30 / /merged rw - overlay overlay rw,upperdir=/var
`)
	write(t, root, "proc/self/ns/mnt", "->mnt:[1]")
	write(t, root, "proc/swaps", "Filename Type Size Used Priority\n/dev/dm-2 partition 1000 0 -2\n/swapfile file 1000 0 -3\n")
	write(t, root, "proc/sys/kernel/random/boot_id", thisBoot+"\n")
	write(t, root, "proc/sys/kernel/hung_task_panic", "1\n")
	write(t, root, "proc/sys/kernel/hung_task_timeout_secs", "120\n")
	return root
}

// A fakeKernel keeps what it was asked for, and does it.
type fakeKernel struct {
	t    testing.TB
	file string // that is opened for all

	mu     sync.Mutex
	names  map[*os.File]string
	frozen map[string]bool
	said   []string
	// fails has what a call answers, such as "freeze /boot".
	fails map[string]error
	// hangs has calls that wait until the channel is closed.
	hangs map[string]chan struct{}
	off   chan struct{}
	calls chan string // told of each call that hangs
}

func newKernel(t testing.TB) *fakeKernel {
	file := filepath.Join(t.TempDir(), "any")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return &fakeKernel{
		t: t, file: file, names: map[*os.File]string{}, frozen: map[string]bool{}, fails: map[string]error{}, hangs: map[string]chan struct{}{},
		off: make(chan struct{}, 10), calls: make(chan string, 100),
	}
}

func (k *fakeKernel) Open(path string, _ int) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fails["open "+path]; err != nil {
		return nil, err
	}
	f, err := os.Open(k.file)
	if err == nil {
		k.names[f] = path
	}
	return f, err
}

// do notes a call, and hangs or fails where it is to.
func (k *fakeKernel) do(what string, f *os.File) (name string, err error) {
	k.mu.Lock()
	if f != nil {
		name = k.names[f]
		what += " " + name
	}
	k.said = append(k.said, what)
	hang, err := k.hangs[what], k.fails[what]
	k.mu.Unlock()
	if hang != nil {
		k.calls <- what
		<-hang
	}
	return name, err
}

func (k *fakeKernel) Sync()                   { _, _ = k.do("sync", nil) }
func (k *fakeKernel) SyncFS(f *os.File) error { _, err := k.do("syncfs", f); return err }
func (k *fakeKernel) Pin()                    {}

func (k *fakeKernel) Freeze(f *os.File) error {
	name, err := k.do("freeze", f)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err != nil:
		return err
	case k.frozen[name]:
		return syscall.EBUSY
	}
	k.frozen[name] = true
	return nil
}

func (k *fakeKernel) Thaw(f *os.File) error {
	name, err := k.do("thaw", f)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err != nil:
		return err
	case !k.frozen[name]:
		return syscall.EINVAL
	}
	delete(k.frozen, name)
	return nil
}

func (k *fakeKernel) PowerOff() error {
	_, err := k.do("power off", nil)
	k.off <- struct{}{}
	if err == nil {
		err = errors.New("a fake does not power off")
	}
	return err
}

// is what is frozen now, sorted.
func (k *fakeKernel) is() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := []string{}
	for name := range k.frozen {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// took returns what was asked for since it was called last.
func (k *fakeKernel) took() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.said
	k.said = nil
	return out
}

func (k *fakeKernel) note(what string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.said = append(k.said, what)
}

// A fakeSystemd has units that run, by name.
type fakeSystemd struct {
	k *fakeKernel

	mu   sync.Mutex
	runs map[string]bool
	fail error
	hang bool
}

func (s *fakeSystemd) systemctl(ctx context.Context, args ...string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dash := slices.Index(args, "--")
	units := args[dash+1:]
	switch args[0] {
	case "show":
		runs, is := s.runs[units[0]]
		switch {
		case !is:
			return "LoadState=not-found\nActiveState=inactive", nil
		case runs:
			return "LoadState=loaded\nActiveState=active", nil
		}
		return "LoadState=loaded\nActiveState=inactive", nil
	case "start", "stop":
		if args[0] == "stop" && s.hang {
			s.mu.Unlock()
			<-ctx.Done()
			s.mu.Lock()
			return "", context.Cause(ctx)
		}
		s.k.note(strings.Join(slices.Concat(args[:1], units), " "))
		for _, u := range units {
			s.runs[u] = args[0] == "start"
		}
		return "", s.fail
	}
	return "", fmt.Errorf("unknown verb %q", args[0])
}

// A session is a server that runs, and who speaks with it.
type session struct {
	t       *testing.T
	root    string
	kernel  *fakeKernel
	systemd *fakeSystemd
	far     net.Conn // the server's end
	near    net.Conn
	cancel  context.CancelCauseFunc
	ended   chan struct{}
	err     error // of Serve, after ended
}

// serve starts a server on the disk sda.
func serve(t *testing.T, root string) *session {
	t.Helper()
	s := &session{t: t, root: root, kernel: newKernel(t), ended: make(chan struct{})}
	s.systemd = &fakeSystemd{k: s.kernel, runs: map[string]bool{"db.service": true, "gpu@1.service": true, "idle.service": false}}
	s.near, s.far = net.Pipe()
	ctx, cancel := context.WithCancelCause(t.Context())
	s.cancel = cancel
	go func() {
		defer close(s.ended)
		s.err = Serve(ctx, s.far, []string{"sda"}, Config{Root: root, Kernel: s.kernel, Systemctl: s.systemd.systemctl})
	}()
	t.Cleanup(func() {
		_ = s.near.Close()
		s.cancel(errors.New("the test is over"))
		s.end()
	})
	return s
}

func (s *session) connect() *Client {
	s.t.Helper()
	c, err := Connect(s.t.Context(), s.near)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.still)
	return c
}

// end waits until the server has ended.
func (s *session) end() {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(2 * time.Minute):
		s.t.Fatal("the server goes on")
	}
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("it never comes to this: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}
