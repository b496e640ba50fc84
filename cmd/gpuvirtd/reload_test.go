package main

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/access/accesstest"
	"gpuvirt/api"
	"gpuvirt/config"
)

// What a daemon that runs can take over it takes over at a reload; the rest is told. A
// configuration that cannot be used changes nothing.
func TestReload(t *testing.T) {
	next := config.Loaded{Config: config.Default(), Origin: map[string]string{}}
	var failure error
	var applied []config.Config
	s := &settings{
		loaded: config.Loaded{Config: config.Default(), Origin: map[string]string{}}, log: slog.New(slog.DiscardHandler),
		load:  func() (config.Loaded, error) { return next, failure },
		apply: func(c config.Config) error { applied = append(applied, c); return nil },
	}
	item := func(key string) api.Setting {
		t.Helper()
		all := s.list().Items
		i := slices.IndexFunc(all, func(x api.Setting) bool { return x.Key == key })
		if i < 0 || len(all) != len(config.Settings()) {
			t.Fatalf("%+v", all)
		}
		return all[i]
	}

	next.LogLevel, next.DetachTimeout, next.LibvirtURI = slog.LevelDebug, time.Minute, "test:///default"
	next.Origin = map[string]string{"log.level": "f:1", "libvirt.uri": "f:2"}
	next.Files = []string{"f"}
	s.reload()
	if len(applied) != 1 || applied[0].LogLevel != slog.LevelDebug || applied[0].DetachTimeout != time.Minute || applied[0].LibvirtURI != "qemu:///system" {
		t.Fatalf("%+v", applied)
	}
	if x := item("log.level"); !slices.Equal(x.Values, []string{"debug"}) || x.Origin != "f:1" || x.AfterRestart != nil || !x.Reload {
		t.Errorf("%+v", x)
	}
	if x := item("libvirt.uri"); !slices.Equal(x.Values, []string{"qemu:///system"}) || x.Origin != "" || !slices.Equal(x.AfterRestart, []string{"test:///default"}) || x.Reload {
		t.Errorf("%+v", x)
	}

	failure = errors.New("f:3: nonsense")
	next.LogLevel = slog.LevelError
	s.reload()
	if x := item("log.level"); len(applied) != 1 || !slices.Equal(x.Values, []string{"debug"}) {
		t.Errorf("%+v, %+v", applied, x)
	}

	failure, next = nil, config.Loaded{Config: config.Default(), Origin: map[string]string{}}
	s.reload()
	if x := item("libvirt.uri"); x.AfterRestart != nil || applied[1].LogLevel != slog.LevelInfo || len(s.list().Files) != 0 {
		t.Errorf("%+v, %+v", x, applied)
	}
}

// check-config reads the files that are named, as the daemon would, and touches nothing.
func TestCheckConfig(t *testing.T) {
	dir := t.TempDir()
	ca := accesstest.NewCA(t, "ca")
	cert, key := ca.Server().Write(dir, "server")
	file := filepath.Join(dir, "c.yaml")
	check := func() (string, error) {
		var out, told strings.Builder
		err := run([]string{"check-config", "--config", file}, &out, &told)
		return out.String(), err
	}
	write(t, file, "tls:\n  listen: ':8443'\n  certificate: "+cert+"\n  key: "+key+"\n  client_ca: "+ca.Write(dir, "ca")+"\n  admins: ['cn:alice']\n")
	if out, err := check(); err != nil || !strings.Contains(out, "    - cn:alice\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ca.crt"), "nonsense")
	_, err := check()
	for _, want := range []string{key + `": its mode is 0644`, `client CA "` + filepath.Join(dir, "ca.crt")} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	write(t, file, "tls:\n  listen: ':8443'\n")
	if _, err := check(); err == nil || !strings.Contains(err.Error(), file+":2: tls.listen takes") {
		t.Errorf("%v", err)
	}
	write(t, file, "p2v:\n  listen: ':2222'\n  credentials: "+dir+"\n")
	if _, err := check(); err == nil || !strings.Contains(err.Error(), "neither virt-p2v.password nor virt-p2v.keys is in "+dir) {
		t.Errorf("%v", err)
	}
}

// A flag counts more than a file, and that of a list may be repeated.
func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	write(t, file, "libvirt: {uri: 'test:///file'}\nlog: {level: warn}\npci_gpus: ['8086:1111']\n")
	var out, told strings.Builder
	args := []string{"check-config", "--config", file, "--libvirt-uri", "test:///flag", "--pci-gpu", "1b36:0010", "--pci-gpu", "1B36:0011"}
	if err := run(args, &out, &told); err != nil {
		t.Fatal(err, told.String())
	}
	for _, line := range []string{
		"  uri: test:///flag  # command line\n", "  level: warn  # " + file + ":2\n",
		"pci_gpus:  # command line\n  - 1b36:0010\n  - 1b36:0011\n",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("there is no %q in\n%s", line, out.String())
		}
	}
	write(t, file, "libvirt: {urI: x}\nsocket: {path: x}\n")
	err := run([]string{"check-config", "--config", file}, &out, &told)
	if err == nil || !strings.Contains(err.Error(), file+`:1: there is no setting "libvirt.urI"`) || !strings.Contains(err.Error(), file+":2: socket.path") {
		t.Errorf("%v", err)
	}
	if err := run([]string{"check-config", "--config", filepath.Join(dir, "none.yaml")}, &out, &told); err == nil {
		t.Error("a file that is not there is fine")
	}
	if err := run([]string{"check-config", "--detach-timeout", "0s"}, &out, &told); !errors.Is(err, errUsage) {
		t.Errorf("%v", err)
	}
}

// A SIGHUP does not end a daemon that is starting, nor one that has ended its work: it would
// if nobody had asked for it, and take this test along.
func TestHangup(t *testing.T) {
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "c.yaml"), filepath.Join(dir, "s")
	pipe := func() {
		t.Helper()
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pipe()
	ended := make(chan error)
	go func() {
		ended <- run([]string{"run", "--config", file, "--sim", filepath.Join(dir, "host"), "--state-dir", filepath.Join(dir, "state"), "--socket", socket}, io.Discard, io.Discard)
	}()
	w, err := os.OpenFile(file, os.O_WRONLY, 0) // returns when it is being read
	if err != nil {
		t.Fatal(err)
	}
	signal := func(s unix.Signal) {
		t.Helper()
		if err := unix.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
	}
	signal(unix.SIGHUP)
	pipe()
	if _, err := io.WriteString(w, "log: {level: error}\n"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w, err = os.OpenFile(file, os.O_WRONLY, 0) // what was asked for early is done when it is ready
	if err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("unix", socket); err != nil {
		t.Errorf("it is reloaded before it is ready: %v", err)
	} else if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	signal(unix.SIGTERM)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	signal(unix.SIGHUP)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
