// Package sourcetest runs OpenSSH's own server for tests, as whoever runs the test.
package sourcetest

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuvirt/p2v/report"
)

// A Server is an ssh server on this machine.
type Server struct {
	Source      report.Source
	Credentials string // the folder with the key "key", which it lets in
	// HostKeys are the fingerprints of its keys, by kind: ed25519, rsa.
	HostKeys map[string]string

	t      testing.TB
	folder string
	mu     sync.Mutex
	stop   context.CancelFunc
	ended  chan struct{}
}

// New starts a server. Lines are added to its configuration.
func New(t testing.TB, lines ...string) *Server {
	t.Helper()
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: \"make test\" installs it (openssh-server)", err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, folder: t.TempDir(), HostKeys: map[string]string{}}
	s.Credentials = filepath.Join(s.folder, "credentials")
	if err := os.Mkdir(s.Credentials, 0o700); err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	conf := []string{
		"ListenAddress 127.0.0.1", "PidFile none", "UsePAM no", "StrictModes no", "LogLevel VERBOSE",
		"PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin yes", "PermitUserEnvironment no",
		"AuthorizedKeysFile " + filepath.Join(s.folder, "authorized"),
	}
	for kind, key := range map[string]any{"ed25519": edKey, "rsa": rsaKey} {
		path := filepath.Join(s.folder, "host_"+kind)
		s.HostKeys[kind] = ssh.FingerprintSHA256(WriteKey(t, path, key))
		conf = append(conf, "HostKey "+path)
	}
	_, mine, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := WriteKey(t, filepath.Join(s.Credentials, "key"), mine)
	port := freePort(t)
	// What is given comes first: of two lines the first counts.
	conf = append(append(lines, fmt.Sprintf("Port %d", port)), conf...)
	for name, text := range map[string][]byte{
		"authorized": ssh.MarshalAuthorizedKey(public), "conf": []byte(strings.Join(conf, "\n") + "\n"),
	} {
		if err := os.WriteFile(filepath.Join(s.folder, name), text, 0o600); err != nil { //nolint:forbidigo // of a test's own folder
			t.Fatal(err)
		}
	}
	s.Source = report.Source{Address: "127.0.0.1", Port: port, User: me.Username, HostKey: s.HostKeys["ed25519"], Credential: "key"}
	t.Cleanup(s.Stop)
	s.Start()
	return s
}

const program = "/usr/sbin/sshd"

// Start starts it again after Stop, and waits until it listens.
func (s *Server) Start() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { //nolint:gosec // where it drops its rights; sshd wants it so
			s.t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "-D", "-e", "-f", filepath.Join(s.folder, "conf")) //nolint:gosec,forbidigo // it runs for as long as the test
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Sessions are processes of their own, with a group of their own each.
	cmd.Cancel = func() error { return killTree(cmd.Process.Pid) }
	said, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	listens, ended := make(chan struct{}), make(chan struct{})
	var log strings.Builder
	go func() {
		defer close(ended)
		up := false
		for lines := bufio.NewScanner(said); lines.Scan(); {
			if log.WriteString(lines.Text() + "\n"); !up && strings.Contains(lines.Text(), "Server listening") {
				up = true
				close(listens)
			}
		}
		_ = cmd.Wait()
	}()
	s.stop, s.ended = stop, ended
	select {
	case <-listens:
	case <-ended:
		s.t.Fatalf("%s ended:\n%s", program, log.String())
	case <-time.After(30 * time.Second):
		s.t.Fatalf("%s does not listen", program)
	}
}

// Stop ends it with all its connections, as a machine that loses its power does.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	<-s.ended
}

// killTree kills a process and those below it. It is stopped first: one that it starts while
// the others are killed would hold its output, and a test, for ever.
func killTree(pid int) error {
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	for _, child := range children(pid) {
		_ = killTree(child)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

func children(pid int) []int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var out []int
	for field := range strings.FieldsSeq(string(text)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err == nil {
			out = append(out, child)
		}
	}
	return out
}

// WriteKey writes a private key as OpenSSH does, and returns the public one.
func WriteKey(t testing.TB, path string, key any) ssh.PublicKey {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil { //nolint:forbidigo // of a test's own folder
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer.PublicKey()
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it only found a number
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
