package freeze

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var all = []string{"/", "/boot", "/img"} // that are frozen on aServer

func refused(t *testing.T, err error, want string) {
	t.Helper()
	var r *RefusedError
	if !errors.As(err, &r) || !strings.Contains(r.Reason, want) {
		t.Errorf("got %v, want a refusal with %q", err, want)
	}
}

func (s *session) froze(c *Client, limit time.Duration, stop ...string) {
	s.t.Helper()
	if err := c.Freeze(s.t.Context(), limit, stop); err != nil {
		s.t.Fatal(err)
	}
	if d := cmp.Diff(all, s.kernel.is()); d != "" {
		s.t.Fatal(d)
	}
}

// thawed waits until nothing is frozen.
func (s *session) thawed() {
	s.t.Helper()
	eventually(s.t, "nothing is frozen", func() bool { return len(s.kernel.is()) == 0 })
}

func TestFacts(t *testing.T) {
	root := aServer(t)
	write(t, root, "sys/class/watchdog/watchdog0/state", "active\n")
	write(t, root, "sys/class/watchdog/watchdog0/timeout", "60\n")
	write(t, root, "sys/class/watchdog/watchdog1/state", "inactive\n")
	write(t, root, "sys/class/watchdog/watchdog1/timeout", "10\n")
	got := serve(t, root).connect().Facts()
	want := Facts{
		BootID: thisBoot, HungTaskPanic: true, HungTaskSeconds: 120, WatchdogSeconds: 60,
		Filesystems: []Filesystem{
			{"/img", "ext4", "/dev/loop0", true}, // in a file on /, so before that
			{"/boot/efi", "vfat", "/dev/sda1", false},
			{"/boot", "xfs", "/dev/sda2", true},
			{"/", "ext4", "/dev/mapper/vg-root", true},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, aServer(t))
		c := s.connect()
		s.froze(c, time.Hour, "db.service", "idle.service", "gpu@1.service")
		if got, err := c.Quiet(t.Context()); err != nil || len(got) != 0 {
			t.Error(got, err)
		}
		refused(t, c.Freeze(t.Context(), time.Hour, nil), "frozen already")
		if err := c.Thaw(t.Context()); err != nil {
			t.Error(err)
		}
		want := []string{
			"stop db.service gpu@1.service", "sync",
			"freeze /img", "freeze /boot", "freeze /", "syncfs /boot/efi",
			"thaw /", "thaw /boot", "thaw /img", "start db.service gpu@1.service",
		}
		if d := cmp.Diff(want, s.kernel.took()); d != "" {
			t.Error(d)
		}
		if err := c.Thaw(t.Context()); err != nil || len(s.kernel.took()) != 0 {
			t.Error("a second thaw did something, or: ", err)
		}
		_, err := c.Quiet(t.Context())
		refused(t, err, "the client has thawed it")
		refused(t, c.PowerOff(t.Context()), "the client has thawed it")
		s.froze(c, time.Hour) // and it can be done again
	})
}

// What the kernel cannot freeze is written out, and told.
func TestUnfreezable(t *testing.T) {
	s := serve(t, aServer(t))
	s.kernel.fails["freeze /boot"] = syscall.EOPNOTSUPP
	s.kernel.fails["open /img"] = errors.New("something else is mounted over it")
	c := s.connect()
	if err := c.Freeze(t.Context(), time.Hour, nil); err != nil {
		t.Fatal(err)
	}
	var not []string
	for _, f := range c.Facts().Filesystems {
		if !f.Freezable {
			not = append(not, f.Mount)
		}
	}
	if d := cmp.Diff([]string{"/img", "/boot/efi", "/boot"}, not); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"sync", "freeze /boot", "freeze /", "syncfs /boot/efi", "syncfs /boot"}, s.kernel.took()); d != "" {
		t.Error(d)
	}
}

// A filesystem that is mounted over at one place is reached at another.
func TestReachedElsewhere(t *testing.T) {
	s := serve(t, aServer(t))
	s.kernel.fails["open /"] = errors.New("something else is mounted over it")
	c := s.connect()
	if err := c.Freeze(t.Context(), time.Hour, nil); err != nil {
		t.Fatal(err)
	}
	if got := s.kernel.is(); !slices.Contains(got, "/mnt/part/of/it") {
		t.Error(got)
	}
}

// Where one cannot be frozen all are thawed, and what was stopped runs.
func TestHalf(t *testing.T) {
	for name, c := range map[string]struct {
		break_ func(s *session)
		want   string
		took   []string
	}{
		"somebody else": {
			func(s *session) { s.kernel.frozen["/boot"] = true },
			"cannot freeze /boot (xfs on /dev/sda2): somebody else has frozen it",
			[]string{"stop db.service", "sync", "freeze /img", "freeze /boot", "thaw /img", "start db.service"},
		},
		"an error": {
			func(s *session) { s.kernel.fails["freeze /"] = syscall.EIO },
			"cannot freeze / (ext4 on /dev/mapper/vg-root): input/output error",
			[]string{"stop db.service", "sync", "freeze /img", "freeze /boot", "freeze /", "thaw /boot", "thaw /img", "start db.service"},
		},
		"the EFI partition": {
			func(s *session) { s.kernel.fails["syncfs /boot/efi"] = syscall.EIO },
			"cannot write out /boot/efi (vfat): input/output error",
			[]string{"stop db.service", "sync", "freeze /img", "freeze /boot", "freeze /", "syncfs /boot/efi", "thaw /", "thaw /boot", "thaw /img", "start db.service"},
		},
		"no counters": {
			func(s *session) { write(s.t, s.root, "sys/class/block/sda/queue/iostats", "0\n") },
			"cannot tell what is written to sda: the kernel is told not to count it",
			[]string{"stop db.service", "sync", "freeze /img", "freeze /boot", "freeze /", "syncfs /boot/efi", "thaw /", "thaw /boot", "thaw /img", "start db.service"},
		},
		"a service that does not stop": {
			func(s *session) { s.systemd.fail = errors.New("it is in the way") },
			"cannot stop db.service: it is in the way",
			[]string{"stop db.service", "start db.service"},
		},
		"no mounts": {
			func(s *session) { write(s.t, s.root, "proc/self/mountinfo", strings.Repeat("x", maxMountinfo+1)) },
			"cannot tell what is mounted",
			[]string{"stop db.service", "start db.service"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, aServer(t))
				client := s.connect()
				c.break_(s)
				refused(t, client.Freeze(t.Context(), time.Hour, []string{"db.service"}), c.want)
				if d := cmp.Diff(c.took, s.kernel.took()); d != "" {
					t.Error(d)
				}
				delete(s.kernel.frozen, "/boot") // somebody else's
				if got := s.kernel.is(); len(got) != 0 || !s.systemd.runs["db.service"] {
					t.Error(got, s.systemd.runs)
				}
				_, err := client.Quiet(t.Context())
				refused(t, err, "it could not be frozen")
			})
		})
	}
}

func TestUnits(t *testing.T) {
	s := serve(t, aServer(t))
	c := s.connect()
	refused(t, c.Freeze(t.Context(), time.Hour, []string{"db.service", "none.service"}), `cannot stop "none.service": this server has no such unit`)
	if got := s.kernel.took(); len(got) != 0 {
		t.Error(got)
	}
	for _, bad := range []string{"", "--force", "a b", "a;b", "*.service", "a/b", "a\n", "ü.service", strings.Repeat("a", 256)} {
		if err := c.Freeze(t.Context(), time.Hour, []string{bad}); err == nil || !strings.Contains(err.Error(), "no name of a unit") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := c.Freeze(t.Context(), time.Hour, make([]string, maxUnits+1)); err == nil {
		t.Error("so many units are fine")
	}
	for _, limit := range []time.Duration{0, -1, time.Microsecond, MaxLimit + time.Second} {
		if err := c.Freeze(t.Context(), limit, nil); err == nil {
			t.Errorf("a limit of %s is fine", limit)
		}
	}
}

// The dead man's switch, by all that may end it.
func TestDeadMan(t *testing.T) {
	for name, end := range map[string]func(s *session, c *Client){
		"the connection": func(_ *session, c *Client) { _ = c.Close() },
		"a signal":       func(s *session, _ *Client) { s.cancel(errors.New("SIGTERM")) },
		"no question":    func(s *session, _ *Client) { _, _ = s.near.Write([]byte("now what?\n")) },
		"unknown":        func(s *session, _ *Client) { _, _ = s.near.Write([]byte(`{"do":"format"}` + "\n")) },
		"a field":        func(s *session, _ *Client) { _, _ = s.near.Write([]byte(`{"do":"quiet","x":1}` + "\n")) },
		"two in a line":  func(s *session, _ *Client) { _, _ = s.near.Write([]byte(`{"do":"quiet"}{"do":"quiet"}` + "\n")) },
		"a bad unit": func(s *session, _ *Client) {
			_, _ = s.near.Write([]byte(`{"do":"freeze","limit_ms":1,"stop":["-H"]}` + "\n"))
		},
		"a long line": func(s *session, _ *Client) { _, _ = s.near.Write([]byte(strings.Repeat("[", maxQuestion+1))) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, aServer(t))
				c := s.connect()
				s.froze(c, time.Hour, "db.service")
				s.kernel.took()
				end(s, c)
				s.end()
				if d := cmp.Diff([]string{"thaw /", "thaw /boot", "thaw /img", "start db.service"}, s.kernel.took()); d != "" {
					t.Error(d)
				}
				if got := s.kernel.is(); len(got) != 0 {
					t.Error(got)
				}
			})
		})
	}
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, aServer(t))
		c := s.connect()
		s.froze(c, time.Minute, "db.service")
		<-time.After(time.Minute - time.Millisecond)
		if d := cmp.Diff(all, s.kernel.is()); d != "" {
			t.Fatal(d)
		}
		s.thawed()
		synctest.Wait()
		if !s.systemd.runs["db.service"] {
			t.Error("what was stopped does not run")
		}
		_, err := c.Quiet(t.Context())
		refused(t, err, "the time limit is over, and all is thawed")
		refused(t, c.PowerOff(t.Context()), "the time limit is over, and all is thawed")
		if err := c.Thaw(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A client that is there is heard of, however long it asks nothing; one that is not, though
// nobody has closed its connection, is not waited for.
func TestSilentClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, aServer(t))
		c := s.connect()
		s.froze(c, time.Hour, "db.service")
		<-time.After(10 * silence)
		if d := cmp.Diff(all, s.kernel.is()); d != "" {
			t.Fatal(d)
		}
		c.mu.Lock() // none is under way
		c.still()   // the cable is pulled
		c.mu.Unlock()
		<-time.After(silence + time.Second)
		s.thawed()
		_, err := c.Quiet(t.Context())
		refused(t, err, "nothing was heard of the client for 1m0s, and all is thawed")
	})
}

// A call of the kernel that hangs holds nothing else up: what is frozen is thawed in time, and
// so is that which hangs, when it comes back.
func TestHang(t *testing.T) {
	for name, end := range map[string]func(s *session, c *Client){
		"the limit":      func(*session, *Client) {},
		"the connection": func(_ *session, c *Client) { _ = c.Close() },
		"a signal":       func(s *session, _ *Client) { s.cancel(errors.New("SIGTERM")) },
		"a word":         func(s *session, _ *Client) { _, _ = s.near.Write([]byte("hello?\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { hang(t, end) })
		})
	}
}

func hang(t *testing.T, end func(s *session, c *Client)) {
	t.Helper()
	s := serve(t, aServer(t))
	let := make(chan struct{})
	s.kernel.hangs["freeze /boot"] = let
	c := s.connect()
	got := make(chan error, 1)
	go func() { got <- c.Freeze(t.Context(), 10*time.Second, []string{"db.service"}) }()
	<-s.kernel.calls
	end(s, c)
	s.thawed() // though that still hangs
	if err := <-got; err == nil {
		t.Error("it is frozen")
	}
	close(let)
	_ = c.Close()
	s.end()
	s.thawed()
	if !s.systemd.runs["db.service"] {
		t.Error("what was stopped does not run")
	}
}

// One that does not thaw does not keep the others frozen.
func TestHangThaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, aServer(t))
		c := s.connect()
		s.froze(c, time.Hour)
		let := make(chan struct{})
		s.kernel.hangs["thaw /"] = let
		s.kernel.fails["thaw /boot"] = syscall.EIO
		refused(t, c.Thaw(t.Context()), "cannot thaw /: the kernel has not done it yet; cannot thaw /boot: input/output error")
		close(let)
		eventually(t, "that hangs no more", func() bool { return slices.Equal(s.kernel.is(), []string{"/boot"}) })
	})
}

// Disks that take long to be written out do not keep it from freezing.
func TestSlowSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, aServer(t))
		let := make(chan struct{})
		defer close(let)
		s.kernel.hangs["sync"] = let
		s.froze(s.connect(), time.Hour)
	})
}

func TestStopTakesLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, aServer(t))
		s.systemd.hang = true
		refused(t, s.connect().Freeze(t.Context(), time.Minute, []string{"db.service"}), "the time limit is over")
		if d := cmp.Diff([]string{"start db.service"}, s.kernel.took()); d != "" {
			t.Error(d)
		}
	})
}

// A client that does not take its answer is given up.
func TestDeafClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, aServer(t))
		c := s.connect()
		s.froze(c, time.Hour)
		if _, err := s.near.Write([]byte(`{"do":"quiet"}` + "\n")); err != nil {
			t.Fatal(err)
		}
		s.end()
		s.thawed()
	})
}

func TestRefusesAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		disk  string
		spoil func(root string)
		want  string
	}{
		"no disk":     {"nvme9n1", nil, `this server has no such disk`},
		"a partition": {"sda1", nil, "no such disk"},
		"a path":      {"../sda", nil, "no such disk"},
		"no boot ID":  {"sda", func(root string) { write(t, root, "proc/sys/kernel/random/boot_id", "->nowhere") }, "which boot"},
	} {
		t.Run(name, func(t *testing.T) {
			root := aServer(t)
			if c.spoil != nil {
				c.spoil(root)
			}
			s := &session{t: t, ended: make(chan struct{})}
			near, far := pipe()
			go func() {
				defer close(s.ended)
				s.err = Serve(context.Background(), far, []string{c.disk}, Config{Root: root, Kernel: newKernel(t)})
			}()
			_, err := Connect(t.Context(), near)
			refused(t, err, c.want)
			if s.end(); s.err == nil {
				t.Error("no error")
			}
		})
	}
}
