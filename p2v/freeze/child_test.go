package freeze

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuvirt/p2v/block"
)

// What tells a child of a test what to be. The guard is told by its arguments.
const (
	inFolder = "FREEZE_TEST_FOLDER" // what it keeps, and says
	onDisk   = "FREEZE_TEST_DISK"   // of this machine; empty: of a fake one
	guardArg = "guard"
)

func TestMain(m *testing.M) {
	folder := os.Getenv(inFolder)
	if folder == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	role := "serve"
	if len(os.Args) > 1 && os.Args[1] == guardArg {
		role = "guard"
	}
	cfg := Config{Root: filepath.Join(folder, "root"), Guard: []string{guardArg}}
	disk := os.Getenv(onDisk)
	k := childKernel{folder: folder, role: role}
	if disk != "" {
		k.real, cfg.Root = &linux{}, ""
	} else {
		disk = "sda"
	}
	cfg.Kernel, cfg.Systemctl = k, k.systemctl
	if role == "guard" {
		err := Guard(ctx, cfg)
		k.say("ended", fmt.Sprint(err))
		return
	}
	conn, err := block.Stdio(os.Stdin, os.Stdout)
	if err == nil {
		err = Serve(ctx, conn, []string{disk}, cfg)
	}
	k.say("ended", fmt.Sprint(err))
}

// A childKernel says in a file what it does. What is not real it freezes by a file in a folder.
type childKernel struct {
	folder, role string
	real         *linux
}

// say adds a line, whoever else does.
func (k childKernel) say(words ...string) {
	f, err := os.OpenFile(filepath.Join(k.folder, "said"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteString(k.role + " " + strings.Join(words, " ") + "\n")
	}
	if err != nil {
		panic(err)
	}
	_ = f.Close()
}

// waits waits for ever where the test wants that.
func (k childKernel) waits(what string) {
	if _, err := os.Stat(filepath.Join(k.folder, "hang "+k.role+" "+what)); err == nil {
		k.say("hangs", what)
		<-time.After(time.Minute)
	}
}

func (k childKernel) Open(path string, mount int) (*os.File, error) {
	if k.real != nil {
		return k.real.Open(path, mount)
	}
	dir := filepath.Join(k.folder, "mounts", strings.ReplaceAll(path, "/", "_"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

// Sync does nothing: the other disks of this machine are not the test's.
func (k childKernel) Sync() {}

func (k childKernel) SyncFS(f *os.File) error {
	if k.real != nil {
		return k.real.SyncFS(f)
	}
	return nil
}

// at is where it is told whether a file is frozen: the guard has only its descriptor.
func at(f *os.File) string {
	dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		panic(err)
	}
	return filepath.Join(dir, "frozen")
}

func (k childKernel) Freeze(f *os.File) (err error) {
	if k.real != nil {
		return k.real.Freeze(f)
	}
	k.waits("freeze")
	made, err := os.OpenFile(at(f), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return syscall.EBUSY
	}
	return made.Close()
}

func (k childKernel) Thaw(f *os.File) (err error) {
	if k.real != nil {
		return k.real.Thaw(f)
	}
	if err := os.Remove(at(f)); err != nil {
		return syscall.EINVAL
	}
	return nil
}

func (k childKernel) PowerOff() error {
	k.say("power off")
	k.waits("off")
	return syscall.EPERM
}

func (k childKernel) Pin() {
	if k.real != nil {
		k.real.Pin()
	}
	k.say("pid", fmt.Sprint(os.Getpid()))
}

func (k childKernel) systemctl(_ context.Context, args ...string) (string, error) {
	if args[0] == "show" {
		return "LoadState=loaded\nActiveState=active", nil
	}
	k.say(args[0], args[len(args)-1])
	k.waits(args[0])
	return "", nil
}

// A child is a server in a process of its own, with a guard in another.
type child struct {
	t      *testing.T
	folder string
	cmd    *exec.Cmd
	client *Client

	guardKilled bool // it does not end by itself
}

type stdioConn struct {
	io.ReadCloser // its output
	in            io.WriteCloser
}

func (c stdioConn) Write(b []byte) (int, error) { return c.in.Write(b) }
func (c stdioConn) Close() error                { return errors.Join(c.in.Close(), c.ReadCloser.Close()) }

// childOn starts one on a disk of this machine, or on a fake one where there is no name.
func childOn(t *testing.T, disk string) *child {
	t.Helper()
	c := &child{t: t, folder: t.TempDir()}
	if disk == "" {
		if err := os.Rename(aServer(t), filepath.Join(c.folder, "root")); err != nil {
			t.Fatal(err)
		}
	}
	c.cmd = exec.Command("/proc/self/exe")
	c.cmd.Env, c.cmd.Stderr = append(os.Environ(), inFolder+"="+c.folder, onDisk+"="+disk), os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Not StdoutPipe, which Wait closes while it is read.
	out, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.cmd.Stdout = theirs
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	t.Cleanup(func() {
		_ = in.Close()
		c.signal("serve", syscall.SIGKILL)
		_ = c.cmd.Wait()
		if c.pid("guard") != 0 && !c.guardKilled {
			c.wait("guard ended")
		}
		_ = out.Close()
	})
	if c.client, err = Connect(t.Context(), stdioConn{out, in}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *child) said() []string {
	text, err := os.ReadFile(filepath.Join(c.folder, "said"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func (c *child) hang(what string) {
	if err := os.WriteFile(filepath.Join(c.folder, "hang "+what), nil, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// wait waits until something is said.
func (c *child) wait(line string) {
	c.t.Helper()
	eventually(c.t, line, func() bool {
		return slices.ContainsFunc(c.said(), func(s string) bool { return strings.HasPrefix(s, line) })
	})
}

// pid is that of the latest process with a role, 0 where there was none.
func (c *child) pid(role string) (pid int) {
	for _, line := range c.said() {
		var n int
		if _, err := fmt.Sscanf(line, role+" pid %d", &n); err == nil {
			pid = n
		}
	}
	return pid
}

func (c *child) signal(role string, s syscall.Signal) {
	if pid := c.pid(role); pid != 0 {
		c.guardKilled = c.guardKilled || role == "guard" && s == syscall.SIGKILL
		_ = syscall.Kill(pid, s) // it may have ended
	}
}

// frozen are the fake filesystems that are.
func (c *child) frozen() []string {
	found, err := filepath.Glob(filepath.Join(c.folder, "mounts/*/frozen"))
	if err != nil {
		c.t.Fatal(err)
	}
	for i := range found {
		found[i] = strings.ReplaceAll(filepath.Base(filepath.Dir(found[i])), "_", "/")
	}
	return found
}

func (c *child) freeze(limit time.Duration) {
	c.t.Helper()
	if err := c.client.Freeze(c.t.Context(), limit, []string{"db.service"}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) thawed() {
	c.t.Helper()
	eventually(c.t, "all is thawed", func() bool { return len(c.frozen()) == 0 })
}
