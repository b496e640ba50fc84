package nbd

import (
	"bytes"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
)

// program starts a server on a port of this host that is there already, so that nobody waits
// for it, and returns HOST:PORT.
func program(t *testing.T, words ...string) string {
	t.Helper()
	if _, err := exec.LookPath(words[0]); err != nil {
		t.Skipf("%s is not installed", words[0])
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
	defer f.Close()
	// The number of the process is known to itself only.
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh"}, words...)...)
	cmd.ExtraFiles = []*os.File{f}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s says: %s", words[0], said.String())
		}
	})
	return l.Addr().String()
}

func diskFile(t *testing.T, size int) (path string, content []byte) {
	t.Helper()
	content = make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(content[:size/2])
	path = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

// The servers that there are in rescue systems, with TLS both ways.
func TestRealServers(t *testing.T) {
	s := newSite(t)
	const size = 9<<20 + 512
	path, content := diskFile(t, size)
	for name, c := range map[string]struct {
		words  []string
		export string
		folder string
	}{
		"nbdkit":              {[]string{"nbdkit", "-f", "-r", "--tls=require", "--tls-verify-peer", "--tls-certificates=" + s.serverFolder, "file", path}, "", s.ours},
		"nbdkit, a CA only":   {[]string{"nbdkit", "-f", "-r", "--tls=require", "--tls-certificates=" + s.serverFolder, "file", path}, "", s.caOnly},
		"nbdkit, large block": {[]string{"nbdkit", "-f", "-r", "--tls=require", "--tls-certificates=" + s.serverFolder, "--filter=blocksize-policy", "file", path, "blocksize-minimum=512", "blocksize-maximum=65536", "blocksize-error-policy=error"}, "", s.caOnly},
		"qemu-nbd": {[]string{
			"qemu-nbd", "-r", "-t", "-e", "8", "-f", "raw", "-x", "sda", "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=on,dir=" + s.serverFolder, "--tls-creds", "tls0", path,
		}, "sda", s.ours},
		"qemu-nbd, one connection": {[]string{
			"qemu-nbd", "-r", "-t", "-f", "raw", "-x", "sda", "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=on,dir=" + s.serverFolder, "--tls-creds", "tls0", path,
		}, "sda", s.ours},
	} {
		t.Run(name, func(t *testing.T) {
			at := program(t, c.words...)
			client, err := Dial(t.Context(), "nbds://"+at+"/"+c.export, Options{Certificates: c.folder})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if client.Size() != size || !client.ReadOnly() {
				t.Errorf("it has %d bytes, %v", client.Size(), client.ReadOnly())
			}
			if n := cap(client.slots); n != 4 && !strings.Contains(name, "one connection") || n != 1 && strings.Contains(name, "one connection") {
				t.Errorf("%d connections", n)
			}
			ended := make(chan error, 8)
			for i := range int64(8) {
				go func() {
					p := make([]byte, size)
					from := i * 1000
					_, err := client.ReadAt(p[from:], from)
					if err == nil && !bytes.Equal(p[from:], content[from:]) {
						err = os.ErrInvalid
					}
					ended <- err
				}()
			}
			for range 8 {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
			if err := client.Probe(t.Context()); err != nil || client.Cuts() != 0 {
				t.Error(err, client.Cuts())
			}
			if cap(client.slots) == 1 {
				return // and that is ours
			}
			for folder, what := range map[string]string{s.otherCA: "another CA", s.foreign: "a certificate that it does not know"} {
				if folder == s.foreign && c.folder == s.caOnly {
					continue // it asks nobody
				}
				other, err := Dial(t.Context(), "nbds://"+at+"/"+c.export, Options{Certificates: folder})
				if err == nil {
					_ = other.Close()
				}
				if gpu.CodeOf(err) != gpu.CodeUnauthorized {
					t.Errorf("%s: %v", what, err)
				}
			}
			if _, err := Dial(t.Context(), "nbd://"+at+"/"+c.export, Options{Connect: 5 * time.Second}); err == nil {
				t.Error("it goes without TLS")
			}
		})
	}
}

// Blocks that cannot be read are told, and what is around them is read.
func TestRealBadBlock(t *testing.T) {
	path, content := diskFile(t, 1<<20)
	failing := filepath.Join(t.TempDir(), "fail")
	if err := os.WriteFile(failing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	at := program(t, "nbdkit", "-f", "-r", "--filter=error", "file", path, "error-pread=EIO", "error-pread-rate=100%", "error-pread-file="+failing)
	c, err := Dial(t.Context(), "nbd://"+at, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 4096)
	if n, err := c.ReadAt(p, 8192); n != 0 || gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "4096 bytes at byte 8192") || !strings.Contains(err.Error(), "EIO") {
		t.Errorf("%d bytes, %v", n, err)
	}
	if err := os.Remove(failing); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(p, 8192); err != nil || !bytes.Equal(p, content[8192:12288]) || c.Cuts() != 0 {
		t.Error(err, c.Cuts())
	}
}
