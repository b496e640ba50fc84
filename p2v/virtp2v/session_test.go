package virtp2v

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	password = "correct horse battery"
	tmp      = "/tmp/virt-p2v-20261126-eqiehnba"
)

// A house is a listener that is listened on.
type house struct {
	t *testing.T
	*Listener
	address string
	key     ssh.Signer
	arrived chan Server
	result  chan error // of what Arrive returns
	gone    chan error // why it was over
}

func newHouse(t *testing.T, change ...func(*Options)) *house {
	t.Helper()
	h := &house{t: t, arrived: make(chan Server, 1), result: make(chan error, 1), gone: make(chan error, 1)}
	_, host, err1 := ed25519.GenerateKey(nil)
	_, own, err2 := ed25519.GenerateKey(nil)
	hostKey, err3 := ssh.NewSignerFromKey(host)
	key, err4 := ssh.NewSignerFromKey(own)
	socket, err5 := net.Listen("tcp", "127.0.0.1:0")
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	h.address, h.key = socket.Addr().String(), key
	o := Options{
		HostKey: hostKey, Log: slog.New(slog.DiscardHandler), pause: 10 * time.Millisecond,
		Admit: func() (Admission, error) {
			return Admission{Password: password, Keys: []ssh.PublicKey{key.PublicKey()}}, nil
		},
		Arrive: func(ctx context.Context, s Server, show io.Writer) error {
			fmt.Fprintf(show, "%s is here\n", s.Name)
			h.arrived <- s
			select {
			case err := <-h.result:
				return err
			case <-ctx.Done():
				h.gone <- context.Cause(ctx)
				return context.Cause(ctx)
			}
		},
	}
	for _, c := range change {
		c(&o)
	}
	h.Listener = New(o)
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- h.Serve(ctx, socket) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-over:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("it goes on")
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.conns)+len(h.forwards)+len(h.folders) != 0 {
			t.Errorf("left: %d connections, %d ports, %d folders", len(h.conns), len(h.forwards), len(h.folders))
		}
	})
	return h
}

func (h *house) dial(auth ...ssh.AuthMethod) (*ssh.Client, error) {
	if len(auth) == 0 {
		auth = []ssh.AuthMethod{ssh.Password(password)}
	}
	return ssh.Dial("tcp", h.address, &ssh.ClientConfig{User: "root", Auth: auth, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second})
}

func (h *house) client() *ssh.Client {
	h.t.Helper()
	c, err := h.dial()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

// A typist types as virt-p2v does, and reads up to the prompt.
type typist struct {
	t   *testing.T
	ssh *ssh.Session
	in  io.WriteCloser
	out io.Reader
}

func (h *house) shell(c *ssh.Client) *typist {
	h.t.Helper()
	s, err := c.NewSession()
	if err != nil {
		h.t.Fatal(err)
	}
	in, err1 := s.StdinPipe()
	out, err2 := s.StdoutPipe()
	if err := errors.Join(err1, err2, s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}), s.Shell()); err != nil {
		h.t.Fatal(err)
	}
	p := &typist{h.t, s, in, out}
	p.line("exec bash --noediting --noprofile")
	return p
}

func (p *typist) line(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, text+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

// ask types a line, and returns what is answered up to the prompt.
func (p *typist) ask(text string) string {
	p.t.Helper()
	p.line(text)
	return p.until("###1b00gimj### ")
}

func (p *typist) until(what string) string {
	p.t.Helper()
	var got bytes.Buffer
	b := make([]byte, 1)
	for !strings.HasSuffix(got.String(), what) {
		if _, err := io.ReadFull(p.out, b); err != nil {
			p.t.Fatalf("%v after %q", err, got.String())
		}
		got.Write(b)
	}
	return strings.TrimSuffix(got.String(), what)
}

func (p *typist) prompt() { p.ask("export LANG=C PS1='###''1b00gimj''### '") }

// What virt-p2v asks first, and what it needs to hear.
func TestConnection(t *testing.T) {
	h := newHouse(t)
	p := h.shell(h.client())
	p.prompt()
	if got := p.ask("virt-v2v --version"); got != "virt-v2v 1.99.0gpuvirt\r\n" {
		t.Errorf("%q", got)
	}
	if got := p.ask("sudo -n virt-v2v --version"); !strings.HasPrefix(got, "virt-v2v 1.") {
		t.Errorf("%q", got)
	}
	for _, want := range []string{"libguestfs-rewrite\r\n", "colours-option\r\n", "input:libvirtxml\r\n", "output:libvirt\r\n"} {
		if got := p.ask("virt-v2v --machine-readable"); !strings.Contains(got, want) {
			t.Errorf("%q", got)
		}
	}
	for _, line := range []string{"id", "cat /etc/passwd", "virt-v2v --version; id", "mkdir /tmp/x", "mkdir " + tmp + "/../x", "$(id)", "export PS1='###''x`id`''### '"} {
		if got := p.ask(line); got != "gpuvirt: this is no shell, and answers virt-p2v only\r\n" {
			t.Errorf("%s: %q", line, got)
		}
	}
	p.line("exit")
	if err := p.ssh.Wait(); err != nil {
		t.Error(err)
	}
}

func TestLogin(t *testing.T) {
	h := newHouse(t)
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ssh.NewSignerFromKey(other)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := h.dial(ssh.PublicKeys(h.key)); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	for name, auth := range map[string]ssh.AuthMethod{
		"no password": ssh.Password(""), "another": ssh.Password("correct horse batter"), "another key": ssh.PublicKeys(stranger),
	} {
		if c, err := h.dial(auth); err == nil {
			_ = c.Close()
			t.Errorf("%s is let in", name)
		}
	}
	// Where nobody is to be let in, nobody is.
	h.o.Admit = func() (Admission, error) { return Admission{}, nil }
	for _, auth := range []ssh.AuthMethod{ssh.Password(""), ssh.Password(password), ssh.PublicKeys(h.key)} {
		if c, err := h.dial(auth); err == nil {
			_ = c.Close()
			t.Error("somebody is let in")
		}
	}
}

// Nothing but what virt-p2v takes is to be had of ssh.
func TestRefused(t *testing.T) {
	h := newHouse(t)
	c := h.client()
	for _, command := range []string{"id", "scp -f /etc/passwd", "scp -t /etc", "scp -t " + tmp + ";id", "/usr/lib/openssh/sftp-server"} {
		s, err := h.client().NewSession() // each counts until its end is confirmed
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(command); err == nil {
			t.Errorf("%s is run", command)
		}
		_ = s.Close()
	}
	if _, err := c.Dial("tcp", "127.0.0.1:22"); err == nil {
		t.Error("it connects to others")
	}
	if _, _, err := c.OpenChannel("x11", nil); err == nil {
		t.Error("x11")
	}
	port := struct {
		Address string
		Port    uint32
	}{"0.0.0.0", 2222}
	if ok, _, err := c.SendRequest("tcpip-forward", true, ssh.Marshal(port)); err != nil || ok {
		t.Errorf("a port of its choice: %v, %v", ok, err)
	}
	port.Port = 0
	for i := range maxForwards + 1 {
		if ok, _, err := c.SendRequest("tcpip-forward", true, ssh.Marshal(port)); err != nil || ok != (i < maxForwards) {
			t.Errorf("port %d: %v, %v", i, ok, err)
		}
	}
	var open []*ssh.Session
	c = h.client() // none is being closed
	for range maxSessions {
		p := h.shell(c)
		p.prompt()
		open = append(open, p.ssh)
	}
	if _, err := c.NewSession(); err == nil {
		t.Error("one session more")
	}
	for _, s := range open {
		_ = s.Close()
	}
	// A line without an end.
	p := h.shell(h.client())
	go func() { _, _ = io.Copy(p.in, io.LimitReader(zeros{}, 1<<20)) }()
	if err := p.ssh.Wait(); err == nil {
		t.Error("it listens to whatever comes")
	}
}

// A mute channel is one whose other end never says that it has heard of the end.
type mute struct{ ssh.Channel }

func (mute) Read([]byte) (int, error)                       { return 0, io.EOF }
func (mute) Close() error                                   { return nil }
func (mute) SendRequest(string, bool, []byte) (bool, error) { return true, nil }

// Whatever a client has begun counts until it has confirmed its end: till then x/crypto keeps what
// came by it.
func TestSessionsCount(t *testing.T) {
	h := newHouse(t)
	c := &conn{l: h.Listener}
	var asked []chan *ssh.Request
	for range maxSessions {
		if !h.enter(c) {
			t.Fatal("it is full too soon")
		}
		ch := make(chan *ssh.Request, 1)
		ch <- &ssh.Request{Type: "shell"}
		asked = append(asked, ch)
		go c.session(t.Context(), mute{}, ch)
	}
	<-time.After(100 * time.Millisecond)
	if h.enter(c) {
		t.Error("one that the client does not end is not counted any more")
	}
	for _, ch := range asked {
		close(ch)
	}
	tick, limit := time.NewTicker(2*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !h.enter(c) {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("one that has ended counts still")
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// exports has a client's disk exported, as virt-p2v does, and returns the port that it is told.
func (h *house) exports(c *ssh.Client, disk []byte) uint32 {
	h.t.Helper()
	l, err := c.Listen("tcp", "localhost:0")
	if err != nil {
		h.t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serveNBD(conn, disk)
		}
	}()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

// serveNBD serves a disk as nbdkit does, as far as it is read here.
func serveNBD(conn net.Conn, disk []byte) {
	defer conn.Close()
	out := func(fields ...any) {
		var b bytes.Buffer
		for _, f := range fields {
			_ = binary.Write(&b, binary.BigEndian, f)
		}
		_, _ = conn.Write(b.Bytes())
	}
	in := func(fields ...any) bool {
		for _, f := range fields {
			if binary.Read(conn, binary.BigEndian, f) != nil {
				return false
			}
		}
		return true
	}
	out([]byte("NBDMAGICIHAVEOPT"), uint16(3))
	var flags, option, length uint32
	var magic uint64
	if !in(&flags) {
		return
	}
	for {
		if !in(&magic, &option, &length) || length > 1<<16 {
			return
		}
		if !in(make([]byte, length)) {
			return
		}
		const reply = 0x3e889045565a9
		if option != 7 { // GO
			out(uint64(reply), option, uint32(1<<31|1), uint32(0))
			continue
		}
		out(uint64(reply), option, uint32(3), uint32(12), uint16(0), uint64(len(disk)), uint16(1|2))
		out(uint64(reply), option, uint32(1), uint32(0))
		break
	}
	for {
		var head struct {
			Magic       uint32
			Flags, Kind uint16
			Cookie, At  uint64
			Length      uint32
		}
		if !in(&head) || head.Kind == 2 {
			return
		}
		if head.Kind != 0 || head.At+uint64(head.Length) > uint64(len(disk)) {
			out(uint32(0x67446698), uint32(22), head.Cookie)
			continue
		}
		out(uint32(0x67446698), uint32(0), head.Cookie, disk[head.At:head.At+uint64(head.Length)])
	}
}

func (h *house) physical(port uint32) []byte {
	return bytes.Replace(recorded(h.t), []byte(`port="20000"`), fmt.Appendf(nil, `port="%d"`, port), 1)
}

// sends copies a file as "scp -t" takes it.
func (h *house) sends(c *ssh.Client, folder, name string, content []byte) error {
	s, err := c.NewSession()
	if err != nil {
		return err
	}
	defer s.Close()
	s.Stdin = io.MultiReader(strings.NewReader(fmt.Sprintf("T1 0 1 0\nC0644 %d %s\n", len(content), name)), bytes.NewReader(content), strings.NewReader("\x00"))
	out, err := s.CombinedOutput("scp -t " + folder)
	if err == nil && bytes.ContainsAny(out, "\x01\x02") {
		err = fmt.Errorf("%q", out)
	}
	return err
}

// What is opened to a disk counts until its server has confirmed the end.
func TestForwardsCount(t *testing.T) {
	h := newHouse(t)
	port := h.exports(h.client(), make([]byte, headBytes))
	h.mu.Lock()
	f := h.forwards[port]
	h.mu.Unlock()
	var open []net.Conn
	for range maxOpen {
		conn, err := f.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	if _, err := f.dial(t.Context()); err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("one more: %v", err)
	}
	for _, conn := range open {
		_ = conn.Close()
	}
	tick, limit := time.NewTicker(2*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for {
		if conn, err := f.dial(t.Context()); err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("they count though they have ended")
		}
	}
}

func TestConversion(t *testing.T) {
	for _, end := range []string{"done", "refused", "cancelled", "cut", "disk"} {
		t.Run(end, func(t *testing.T) {
			h := newHouse(t)
			disk := gpt(512, typeESP)
			data, control := h.client(), h.client()
			port := h.exports(data, disk)
			p := h.shell(control)
			p.prompt()
			if got := p.ask("mkdir " + tmp); got != "" {
				t.Errorf("%q", got)
			}
			if got := p.ask("mkdir " + tmp); !strings.Contains(got, "cannot make") {
				t.Errorf("%q", got)
			}
			if got := p.ask("date > " + tmp + "/time"); got != "" {
				t.Errorf("%q", got)
			}
			for name, content := range map[string][]byte{"name": []byte("gpu7\n"), "physical.xml": h.physical(port), "lspci": []byte(pciList), "dmesg": bytes.Repeat([]byte("x"), 3<<20)} {
				if err := h.sends(h.client(), tmp, name, content); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			p.line(tmp + "/virt-v2v-wrapper.sh; exit $(< " + tmp + "/status)")
			p.until("gpu7 is here\r\n")
			s := <-h.arrived
			if s.Name != "gpu7" || s.From.String() != "127.0.0.1" || len(s.Disks) != 1 || s.Disks[0].Size != headBytes || s.Report.Firmware.Type != "uefi" || len(s.Report.GPUs) != 3 {
				t.Errorf("%+v", s)
			}
			conn, err := s.Disks[0].Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			greeting := make([]byte, 16)
			if _, err := io.ReadFull(conn, greeting); err != nil || string(greeting) != "NBDMAGICIHAVEOPT" {
				t.Errorf("%q, %v", greeting, err)
			}
			want := 1
			switch end {
			case "done":
				h.result <- nil
				want = 0
			case "refused":
				h.result <- errors.New("there is no room\x1b[2J")
				if got := p.until(" ***\r\n"); !strings.HasSuffix(got, "*** gpuvirt: there is no room?[2J") {
					t.Errorf("%q", got)
				}
			case "cancelled":
				p.line("\x03")
				if err := <-h.gone; !errors.Is(err, errCancelled) {
					t.Error(err)
				}
			case "cut":
				_ = control.Close()
				if err := <-h.gone; err == nil {
					t.Error("it is not gone")
				}
				want = -1
			case "disk":
				_ = data.Close()
				if _, err := io.ReadFull(conn, greeting); err == nil {
					t.Error("it is read on")
				}
				h.result <- errors.New("a disk has gone")
			}
			var exit *ssh.ExitError
			switch err := p.ssh.Wait(); {
			case want == 0 && err != nil, want == 1 && (!errors.As(err, &exit) || exit.ExitStatus() != 1), want == -1 && err == nil:
				t.Errorf("got %v", err)
			}
		})
	}
}

// What is not of the machine itself, or not as it has to be, comes to nothing.
func TestHostileConversion(t *testing.T) {
	h := newHouse(t)
	data := h.client()
	port := h.exports(data, make([]byte, headBytes))
	for name, tc := range map[string]struct {
		bring func(c *ssh.Client) error
		want  string
	}{
		"nothing":    {func(*ssh.Client) error { return nil }, "physical.xml did not come"},
		"other file": {func(c *ssh.Client) error { return h.sends(c, tmp, "physical", h.physical(port)) }, "physical.xml did not come"},
		"no port":    {func(c *ssh.Client) error { return h.sends(c, tmp, "physical.xml", h.physical(1)) }, "there is no forwarded port 1 from there"},
		"ssh's port": {func(c *ssh.Client) error { return h.sends(c, tmp, "physical.xml", h.physical(22)) }, "there is no forwarded port 22 from there"},
		"no XML":     {func(c *ssh.Client) error { return h.sends(c, tmp, "physical.xml", []byte("<a>")) }, "cannot read physical.xml"},
		"no server": {func(c *ssh.Client) error {
			l, err := data.Listen("tcp", "localhost:0")
			if err != nil {
				return err
			}
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
					_ = conn.Close()
				}
			}()
			return h.sends(c, tmp, "physical.xml", h.physical(uint32(l.Addr().(*net.TCPAddr).Port)))
		}, "cannot read disk sda"},
	} {
		c := h.client()
		p := h.shell(c)
		p.prompt()
		p.ask("mkdir " + tmp)
		if err := tc.bring(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		p.line(tmp + "/virt-v2v-wrapper.sh; exit $(< " + tmp + "/status)")
		if got := p.until(" ***\r\n"); !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q", name, got)
		}
		var exit *ssh.ExitError
		if err := p.ssh.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 1 {
			t.Errorf("%s: %v", name, err)
		}
		_ = c.Close()
		h.emptied()
	}
	if err := h.sends(h.client(), tmp, "physical.xml", []byte("x")); err == nil {
		t.Error("a folder that nobody has made")
	}
	h.folderOf(h.client())
	if err := h.sends(h.client(), tmp, "../x", []byte("x")); err == nil {
		t.Error("a path")
	}
	if err := h.sends(h.client(), tmp, "physical.xml", make([]byte, maxPhysical+1)); err == nil {
		t.Error("more than physical.xml has")
	}
	if err := h.sends(h.client(), tmp, "lsusb", make([]byte, 8<<20)); err != nil {
		t.Errorf("what is not wanted: %v", err)
	}
}

func (h *house) folderOf(c *ssh.Client) {
	h.t.Helper()
	p := h.shell(c)
	p.prompt()
	if got := p.ask("mkdir " + tmp); got != "" {
		h.t.Errorf("%q", got)
	}
}

// emptied waits until what a connection had is gone with it.
func (h *house) emptied() {
	h.t.Helper()
	h.await("its folder has gone", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.folders) == 0
	})
}

func (h *house) await(what string, is func() bool) {
	h.t.Helper()
	tick, limit := time.NewTicker(2*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-limit:
			h.t.Fatalf("it never is that %s", what)
		}
	}
}

// The programs that virt-p2v copies with: by SFTP from OpenSSH 9 on, before it by scp's own protocol.
func TestCopies(t *testing.T) {
	program, err := exec.LookPath("scp")
	if err != nil {
		t.Skip("scp is not installed")
	}
	h := newHouse(t)
	_, own, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err1 := ssh.NewSignerFromKey(own)
	block, err2 := ssh.MarshalPrivateKey(own, "")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	h.o.Admit = func() (Admission, error) {
		return Admission{Password: password, Keys: []ssh.PublicKey{signer.PublicKey()}}, nil
	}
	dir := t.TempDir()
	lspci := bytes.Repeat([]byte("0123456789abcde\n"), 20000)
	err = errors.Join(os.WriteFile(filepath.Join(dir, "key"), pem.EncodeToMemory(block), 0o600),
		os.WriteFile(filepath.Join(dir, "physical.xml"), recorded(t), 0o600), os.WriteFile(filepath.Join(dir, "lspci"), lspci, 0o600),
		os.WriteFile(filepath.Join(dir, "dmesg"), bytes.Repeat([]byte("y"), 2<<20), 0o600), os.WriteFile(filepath.Join(dir, "lsusb"), nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(h.address)
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"-O", "-s"} {
		c := h.client()
		h.folderOf(c)
		copied := func(to string) ([]byte, error) {
			args := []string{how, "-P", port, "-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-i", "key", "physical.xml", "lspci", "dmesg", "lsusb", "root@127.0.0.1:" + to}
			cmd := exec.CommandContext(t.Context(), program, args...)
			cmd.Dir = dir
			return cmd.CombinedOutput()
		}
		out, err := copied(tmp)
		if bytes.Contains(out, []byte("unknown option")) {
			t.Logf("this scp knows no %s", how)
			_ = c.Close()
			h.emptied()
			continue
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", how, err, out)
		}
		h.mu.Lock()
		f := h.folders[tmp]
		h.mu.Unlock()
		f.mu.Lock()
		if !bytes.Equal(f.files[filePhysical], recorded(t)) || !bytes.Equal(f.files[fileLSPCI], lspci) || len(f.files[fileDmesg]) != wanted()[fileDmesg] || len(f.files) != 3 {
			t.Errorf("%s: %d %d %d, %d files", how, len(f.files[filePhysical]), len(f.files[fileLSPCI]), len(f.files[fileDmesg]), len(f.files))
		}
		f.mu.Unlock()
		for _, to := range []string{"/tmp", "/etc", tmp + "/..", "/tmp/virt-p2v-20261126-xxxxxxxx"} {
			if out, err := copied(to); err == nil {
				t.Errorf("%s: it copies to %s\n%s", how, to, out)
			}
		}
		_ = c.Close()
		h.emptied()
	}
}

// Whatever comes by SFTP is answered, or ends it.
func FuzzSFTP(f *testing.F) {
	f.Add(byte(sftpOpen), message(0, uint32(1), tmp+"/physical.xml", uint32(26), uint32(0))[1:])
	f.Add(byte(sftpWrite), message(0, uint32(1), "1", uint32(0), uint32(0), "text")[1:])
	f.Add(byte(sftpRealpath), message(0, uint32(1), ".")[1:])
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		l := New(Options{HostKey: fuzzKey(t)})
		c := &conn{l: l, forwards: map[uint32]*forward{}, folders: map[string]*folder{}}
		if err := l.mkdir(c, tmp); err != nil {
			t.Fatal(err)
		}
		s := &transfer{c: c, handles: map[string]upload{}}
		for range 2 {
			out, err := s.answer(kind, body)
			if (err == nil) != (len(out) > 0) || len(out) > len(body)*2+64 {
				t.Errorf("%d bytes, %v", len(out), err)
			}
		}
	})
}

func fuzzKey(t *testing.T) ssh.Signer {
	key, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Strangers fill neither the log nor the room for who has not said who they are.
func TestStrangers(t *testing.T) {
	var lines lineCounter
	h := newHouse(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&lines, nil)) })
	var open []net.Conn
	for range maxNewFrom + 2*warnings {
		conn, err := net.Dial("tcp", h.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		open = append(open, conn)
	}
	for _, conn := range open[maxNewFrom:] {
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Error(err)
		}
	}
	if n := lines.count(); n == 0 || n > warnings+1 {
		t.Errorf("%d lines", n)
	}
	for _, conn := range open {
		_ = conn.Close()
	}
	tick, limit := time.NewTicker(5*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for {
		c, err := h.dial()
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("there is no room: %v", err)
		}
	}
}

type lineCounter struct {
	mu sync.Mutex
	n  int
}

func (l *lineCounter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n += bytes.Count(b, []byte("\n"))
	return len(b), nil
}

func (l *lineCounter) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

// A server is connected for as long as any connection from its address is, also when it was told that
// all is done.
func TestConnected(t *testing.T) {
	h := newHouse(t)
	data, control := h.client(), h.client()
	port := h.exports(data, gpt(512, typeESP))
	h.folderOf(control)
	if err := h.sends(control, tmp, "physical.xml", h.physical(port)); err != nil {
		t.Fatal(err)
	}
	p := h.shell(control)
	p.line(tmp + "/virt-v2v-wrapper.sh; exit $(< " + tmp + "/status)")
	s := <-h.arrived
	h.result <- nil
	if err := p.ssh.Wait(); err != nil {
		t.Error(err)
	}
	if !s.Connected() {
		t.Error("it is told, and still there")
	}
	_ = control.Close()
	h.emptied()
	if !s.Connected() {
		t.Error("its disk is exported still")
	}
	_ = data.Close()
	h.await("it has gone", func() bool { return !s.Connected() })
	stranger, err := net.Dial("tcp", h.address) // it is on, whatever it wants
	if err != nil {
		t.Fatal(err)
	}
	h.await("it is there again", s.Connected)
	_ = stranger.Close()
	h.await("it has gone", func() bool { return !s.Connected() })
	if h.connected(netip.MustParseAddr("127.0.0.2")) {
		t.Error("another address")
	}
}

// A machine that is on refuses what it does not take; nobody answers for one that is off.
func TestAnswers(t *testing.T) {
	at := netip.MustParseAddr("127.0.0.77")
	if !Answers(t.Context(), at) { // no ssh is there, or one for all addresses
		t.Error("this machine does not answer")
	}
	l, err := net.Listen("tcp", "127.0.0.77:22")
	if err == nil {
		defer l.Close()
		if !Answers(t.Context(), at) {
			t.Error("somebody listens")
		}
	}
	// Who does not answer in time is silent; that no way leads there says nothing of the machine.
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if Answers(ctx, at) {
		t.Error("there was no time to answer")
	}
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"refused": {syscall.ECONNREFUSED, true}, "reset": {syscall.ECONNRESET, true}, "no route of ours": {syscall.ENETUNREACH, true},
		"nobody": {syscall.EHOSTUNREACH, false}, "late": {os.ErrDeadlineExceeded, false}, "late, says the kernel": {syscall.ETIMEDOUT, false},
	} {
		if got := answered(&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", tc.err)}); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
