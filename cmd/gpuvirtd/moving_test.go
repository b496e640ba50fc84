package main

import (
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/config"
	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/atrest"
)

// certificates are made as the guide has it.
const certificates = `set -e
new() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 "$@"; }
new -subj /CN=gpu7-move -keyout ca-key.pem -out ca-cert.pem
by='-CA ca-cert.pem -CAkey ca-key.pem -addext basicConstraints=critical,CA:FALSE'
new $by -subj /CN=gpu7 -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext extendedKeyUsage=serverAuth -keyout server-key.pem -out server-cert.pem
new $by -subj /CN=kvm1 -addext extendedKeyUsage=clientAuth -keyout client-key.pem -out client-cert.pem
`

// Disks of servers that are off are read from folders that are set, and with certificates of the
// folder of credentials.
func TestDiskReader(t *testing.T) {
	c := config.Default()
	c.Credentials, c.Images = t.TempDir(), []string{t.TempDir()}
	image := filepath.Join(c.Images[0], "sda.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	sda := atrest.Disk{Name: "sda", ID: "wwn:x", Size: 1 << 20, Image: image}
	read := func(d atrest.Disk, certificates string, c config.Config) error {
		s, err := diskReader(c, slog.New(slog.DiscardHandler))(t.Context(), []atrest.Disk{d}, certificates)
		if (s == nil) != (err != nil) {
			t.Errorf("%v, %v", s, err)
		}
		if s != nil {
			err = s.Close()
		}
		return err
	}
	if err := read(sda, "", c); err != nil {
		t.Error(err)
	}
	if err := read(sda, "", config.Default()); gpu.CodeOf(err) != gpu.CodeForbidden || !strings.Contains(err.Error(), "no folder is set") {
		t.Errorf("by default: %v", err)
	}

	for _, name := range []string{"nbdkit", "openssl"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
	pki := filepath.Join(c.Credentials, "gpu7")
	if err := os.Mkdir(pki, 0o700); err != nil {
		t.Fatal(err)
	}
	making := exec.CommandContext(t.Context(), "sh", "-c", certificates)
	making.Dir = pki
	if said, err := making.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	rescue := exec.CommandContext(t.Context(), "sh", "-c",
		`LISTEN_PID=$$ LISTEN_FDS=1 exec nbdkit -f -r --tls=require --tls-verify-peer --tls-certificates="$1" file "$2"`, "sh", pki, image)
	rescue.ExtraFiles, rescue.WaitDelay = []*os.File{port}, 10*time.Second
	if err := rescue.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rescue.Process.Kill(); _ = rescue.Wait() }()
	sda.Image, sda.NBD = "", "nbds://"+l.Addr().String()+"/"
	if err := read(sda, "gpu7", c); err != nil {
		t.Error(err)
	}
	if err := read(sda, "other", c); gpu.CodeOf(err) != gpu.CodeInvalid || !strings.Contains(err.Error(), "cannot use the certificates") {
		t.Errorf("with none: %v", err)
	}
}

// What plans are made with follows the configuration, and stays where that cannot be used.
func TestAssumptions(t *testing.T) {
	var a assumptions
	c := config.Default()
	if err := a.set(c); err != nil || a.policy() != (assess.Policy{}).WithDefaults() || a.drivers().CUDA("9999.1") != "" {
		t.Errorf("%v, %+v", err, a.policy())
	}
	c.Policy.BootSeconds, c.Drivers = 240, []string{"branch=9999 cuda=14.1"}
	if err := a.set(c); err != nil || a.policy().BootSeconds != 240 || a.drivers().CUDA("9999.1") != "14.1" {
		t.Errorf("%v, %+v", err, a.policy())
	}
	c.Drivers = append(c.Drivers, "nonsense")
	if err := a.set(c); err == nil || a.drivers().CUDA("9999.1") != "14.1" {
		t.Errorf("%v", err)
	}
}
