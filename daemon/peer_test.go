package daemon

import (
	"errors"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What the kernel says about a caller decides what the caller may do.
func TestPeerRoles(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can connect as somebody else")
	}
	group, err := user.LookupGroup("daemon")
	if err != nil {
		t.Skip(err)
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		t.Fatal(err)
	}
	const operator, viewer, stranger = 54321, 54322, 54323
	h, _ := serve(t, func(c *Config, _ *fakeHost) {
		c.SocketGroup = "daemon"
		c.Roles = map[uint32]Role{viewer: Viewer}
		dir := filepath.Dir(c.SocketPath)
		for _, d := range []string{dir, filepath.Dir(dir)} {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, tc := range []struct {
		uid, gid                     int
		look, ask, decide, wantAgain int
	}{
		{0, 0, 200, 200, 200, 200},
		{operator, gid, 200, 200, 403, 200},
		{viewer, gid, 200, 403, 403, 200},
	} {
		c := over(t, func() (net.Conn, error) { return dialAs(h.socketPath, tc.uid, tc.gid) })
		look, _ := fetch(t, c, "GET", "/v1/gpus", "")
		ask, _ := fetch(t, c, "PUT", "/v1/assignments/x?dry_run=true", wish)
		decide, body := fetch(t, c, "PATCH", "/v1/gpus/"+gpuA+"?dry_run=true", `{"managed":true}`)
		again, _ := fetch(t, c, "GET", "/v1/health/live", "")
		if look != tc.look || ask != tc.ask || decide != tc.decide || again != tc.wantAgain {
			t.Errorf("uid %d: look %d, ask %d, decide %d %s, live %d", tc.uid, look, ask, decide, body, again)
		}
	}
	if _, err := dialAs(h.socketPath, stranger, stranger); !errors.Is(err, unix.EACCES) {
		t.Errorf("a stranger connected: %v", err)
	}
	if !strings.Contains(h.log.String(), `"security":{"event":"access-denied","actor":"uid:54321","uid":54321`) {
		t.Errorf("no security event: %s", h.log)
	}
}

// dialAs connects with other credentials. They are those of one thread, which
// ends with the goroutine because it stays locked.
func dialAs(path string, uid, gid int) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		if uid != 0 {
			for _, call := range [][4]uintptr{
				{unix.SYS_SETGROUPS, 0, 0, 0},
				{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
				{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
			} {
				if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
					done <- result{err: errno}
					return
				}
			}
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		}
		if err != nil {
			done <- result{err: err}
			return
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		c, err := net.FileConn(f)
		done <- result{c, err}
	}()
	r := <-done
	return r.conn, r.err
}

func TestAccess(t *testing.T) {
	who := map[Role]*Identity{
		Nobody: {}, Viewer: {Actor: "uid:1", Role: Viewer}, Operator: {Actor: "uid:2", Role: Operator}, Admin: {Actor: "root", Role: Admin},
	}
	everyRoute(t, func(t *testing.T, h *harness, rt route, target, body string) {
		h.host.readOnly = false
		if strings.HasSuffix(target, "/wait") {
			target += "?timeout=0s"
		}
		for role, id := range who {
			if rt.path == "/v1/events" && role >= rt.access {
				continue // does not end
			}
			before := h.kept.writes()
			a := h.do(t, call{method: rt.method, target: target, body: body, who: id})
			denied := a.status == 401 || a.status == 403
			if denied != (role < rt.access) || denied && (a.status == 401) != (role == Nobody) {
				t.Errorf("%s: %d %s", role, a.status, a.body)
			}
			if denied && (h.host.writes > 0 || h.kept.writes() > before) {
				t.Errorf("%s: wrote", role)
			}
			h.host.writes = 0
		}
	})
}
