package freeze

import (
	"bufio"
	"errors"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func pipe() (near, far net.Conn) { return net.Pipe() }

// What is acknowledged is done, and nothing thaws: not the end of the connection, not a signal,
// not the limit.
func TestPowerOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, aServer(t))
		let := make(chan struct{})
		s.kernel.hangs["power off"] = let // as that never comes back
		c := s.connect()
		s.froze(c, time.Minute)
		if err := c.PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := <-s.kernel.calls; got != "power off" {
			t.Error(got)
		}
		s.cancel(errors.New("SIGTERM"))
		_ = c.Close()
		<-time.After(2 * time.Minute)
		synctest.Wait()
		if d := cmp.Diff(all, s.kernel.is()); d != "" {
			t.Error(d)
		}
		var lost *LostError
		if err := c.Thaw(t.Context()); !errors.As(err, &lost) {
			t.Error("the client goes on: ", err)
		}
		close(let)
	})
}

// The order comes after the acknowledgement, and soon after it where the client says nothing more.
func TestPowerOffWaitsShortly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, aServer(t))
		s.froze(s.connect(), time.Minute)
		if _, err := s.near.Write([]byte(`{"do":"off"}` + "\n")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := len(s.kernel.off); got != 0 {
			t.Error("it powers off before anybody heard of it")
		}
		line, err := bufio.NewReader(s.near).ReadString('\n')
		if line != "{}\n" || err != nil {
			t.Fatal(line, err)
		}
		began := time.Now()
		<-s.kernel.off
		if took := time.Since(began); took != heardLimit {
			t.Error(took)
		}
		_ = s.near.Close()
		<-s.ended // when the time is over: a fake does not power off
	})
}

// Where it cannot be acknowledged it is not done.
func TestPowerOffUnheard(t *testing.T) {
	s := serve(t, aServer(t))
	c := s.connect()
	s.froze(c, time.Minute)
	if _, err := s.near.Write([]byte(`{"do":"off"}` + "\n")); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	s.end()
	if got := s.kernel.is(); len(got) != 0 || len(s.kernel.off) != 0 {
		t.Error(got, len(s.kernel.off))
	}
}

// Where the kernel does not power off the client is told, and it stays frozen.
func TestPowerOffFails(t *testing.T) {
	fails := func(t *testing.T) (*session, *Client) {
		t.Helper()
		s := serve(t, aServer(t))
		s.kernel.fails["power off"] = syscall.EPERM
		c := s.connect()
		s.froze(c, time.Minute, "db.service")
		refused(t, c.PowerOff(t.Context()), "cannot power off: operation not permitted; it stays frozen until it is thawed, or until ")
		return s, c
	}
	t.Run("thaw", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, c := fails(t)
			if got, err := c.Quiet(t.Context()); err != nil || len(got) != 0 {
				t.Error(got, err)
			}
			if err := c.Thaw(t.Context()); err != nil || len(s.kernel.is()) != 0 || !s.systemd.runs["db.service"] {
				t.Error(err, s.kernel.is())
			}
			_ = c.Close()
			s.end() // the connection counts again
		})
	})
	t.Run("limit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, c := fails(t)
			_ = c.Close()
			s.cancel(errors.New("SIGTERM"))
			<-time.After(59 * time.Second)
			if d := cmp.Diff(all, s.kernel.is()); d != "" {
				t.Error(d)
			}
			s.end()
			if len(s.kernel.is()) != 0 || !s.systemd.runs["db.service"] {
				t.Error(s.kernel.is())
			}
		})
	})
}

// An order of which it is not known whether it arrived.
func TestPowerOffUnsure(t *testing.T) {
	const fine = `{"version":1,"facts":{"boot_id":"` + thisBoot + `","filesystems":null,"hung_task_panic":false,"hung_task_seconds":0,"watchdog_seconds":0}}` + "\n"
	for name, answers := range map[string]func(far net.Conn){
		"cut":      func(far net.Conn) { _ = far.Close() },
		"nonsense": func(far net.Conn) { _, _ = far.Write([]byte("bye\n")) },
		"silence":  func(net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer far.Close() //nolint:errcheck // of the test
				go func() {
					_, _ = far.Write([]byte(fine))
					_, _ = bufio.NewReader(far).ReadString('\n')
					answers(far)
				}()
				c, err := Connect(t.Context(), near)
				if err != nil {
					t.Fatal(err)
				}
				var unsure *UnsureError
				if err := c.PowerOff(t.Context()); !errors.As(err, &unsure) {
					t.Errorf("got %v", err)
				}
				if err := c.PowerOff(t.Context()); err == nil || errors.As(err, &unsure) {
					t.Errorf("it was not sent a second time: %v", err)
				}
			})
		})
	}
}
