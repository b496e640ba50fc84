//go:build p2v

package p2v

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gpuvirt/test/machine"
)

// bootLimit is generous, since the machine below may be shared. It bounds a failure;
// nothing waits it out.
const bootLimit = 5 * time.Minute

// The server's network card, and the name that its place gives it.
const (
	serverMAC = "52:54:00:aa:bb:01"
	serverNIC = "enp0s2"
)

// Image is the folder that build.sh made.
func image() (string, error) {
	dir := os.Getenv("P2V_IMAGE")
	if dir == "" {
		repo, err := machine.RepoRoot()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(repo, ".cache", "p2v", "image")
	}
	if _, err := os.Stat(filepath.Join(dir, "complete")); err != nil {
		return "", fmt.Errorf("cannot use image %q: %w; test/p2v/build.sh makes it", dir, err)
	}
	return dir, nil
}

// A Server is an emulated physical server that runs.
type Server struct {
	// Disks are its disks, raw, in the order of their serial numbers. They are written to
	// while the server runs.
	Disks []string
	// Layout is what lies on them.
	Layout Layout
	// Console is where its serial console is kept.
	Console string
	// Port is where its ssh server answers on the loopback.
	Port int
	// KnownHosts and Key are files for an ssh client.
	KnownHosts, Key string

	dir     string
	machine *machine.Process
}

// A Layout tells where a server's root file system lies, see disk.sh.
type Layout struct {
	// Root is the device of it in the VM.
	Root string
	// Pieces are on which of the disks it lies, and where there, one piece after the other.
	Pieces []Piece
}

// A Piece is a part of a disk, counted from 0, in MiB.
type Piece struct{ Disk, Start, Length int }

var layouts = map[string]Layout{
	"bios": {"/dev/vda1", []Piece{{0, 1, 2559}}},
	"uefi": {"/dev/mapper/system-root", []Piece{{1, 1, 256}, {0, 35, 2268}}},
}

// Prepare makes the server's disks, copies of its own, and what ssh needs, in a folder.
// The server does not run yet.
func Prepare(dir, firmware string) (*Server, error) {
	from, err := image()
	if err != nil {
		return nil, err
	}
	s := &Server{
		Layout: layouts[firmware], Console: filepath.Join(dir, "server.log"),
		KnownHosts: filepath.Join(dir, "known_hosts"), Key: filepath.Join(dir, "key"), dir: dir,
	}
	for _, disk := range glob(filepath.Join(from, firmware+"-?.img")) {
		s.Disks = append(s.Disks, filepath.Join(dir, filepath.Base(disk)))
		if err := copySparse(disk, s.Disks[len(s.Disks)-1]); err != nil {
			return nil, err
		}
	}
	if firmware == "uefi" {
		if err := copySparse(ovmfVars, filepath.Join(dir, "vars.fd")); err != nil {
			return nil, err
		}
	}
	key, err := os.ReadFile(filepath.Join(from, "id_ed25519"))
	if err == nil {
		err = os.WriteFile(s.Key, key, 0o600)
	}
	if err == nil {
		s.Port, err = machine.FreePort()
	}
	host, hostErr := os.ReadFile(filepath.Join(from, "host_key.pub"))
	if err = errors.Join(err, hostErr); err != nil {
		return nil, fmt.Errorf("cannot prepare the server: %w", err)
	}
	line := fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, host)
	if err := os.WriteFile(s.KnownHosts, []byte(line), 0o600); err != nil {
		return nil, fmt.Errorf("cannot prepare the server: %w", err)
	}
	return s, nil
}

// Debian's firmware for UEFI.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// copySparse copies a file, and leaves its holes.
func copySparse(from, to string) error {
	if out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot copy %q: %w: %s", from, err, out)
	}
	return nil
}

// Start switches the server on. Where the calling process dies, the server dies with it.
func (s *Server) Start() error {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "1", "-m", "768",
		"-netdev", fmt.Sprintf("user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:%d-:22", s.Port),
		"-device", "virtio-net-pci,netdev=net,addr=2,mac=" + serverMAC,
		"-serial", "file:" + s.Console,
	}
	for i, disk := range s.Disks {
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=disk%d,cache=writeback", disk, i),
			"-device", fmt.Sprintf("nvme,drive=disk%d,serial=%s,addr=%d", i, serial(i), 3+i))
	}
	if vars := filepath.Join(s.dir, "vars.fd"); exists(vars) {
		args = append(args, "-drive", "if=pflash,format=raw,readonly=on,file="+ovmfCode, "-drive", "if=pflash,format=raw,file="+vars)
	}
	var err error
	if s.machine, err = machine.Start(exec.Command("qemu-system-x86_64", args...)); err != nil {
		return fmt.Errorf("cannot start qemu: %w; test/p2v/deps.sh installs it", err)
	}
	return nil
}

// serial is the serial number of a disk, counted from 0.
func serial(disk int) string { return fmt.Sprintf("PHYS%04d", disk+1) }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Up waits until the server says on its console that all of it runs.
func (s *Server) Up(ctx context.Context) error {
	_, err := arrived(ctx, s.Console, s.machine)
	return err
}

// Kill takes the server's power away. What its kernel has not written is lost.
// Its console is kept in the folder out.
func (s *Server) Kill() {
	if s.machine != nil {
		s.machine.Kill()
		keep(s.Console, "server.log")
	}
}

// Off is closed when the server is off.
func (s *Server) Off() <-chan struct{} { return s.machine.Done() }

// keep copies a log to where a person looks for it after a test.
func keep(log, name string) {
	repo, err := machine.RepoRoot()
	if err != nil {
		return
	}
	out := filepath.Join(repo, "test", "p2v", "out")
	text, err := os.ReadFile(log)
	if err == nil {
		err = os.MkdirAll(out, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(out, name), text, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "p2v: cannot keep a log:", err)
	}
}

// Shutdown has the server go down in the orderly way, and waits until it is off.
func (s *Server) Shutdown(ctx context.Context) error {
	// The connection may break before the command has answered.
	if _, err := s.SSH(ctx, "systemctl poweroff"); err != nil && !strings.Contains(err.Error(), "exit status 255") {
		return err
	}
	select {
	case <-s.Off():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot wait until the server is off: %w", context.Cause(ctx))
	}
}

// SSH runs a command as root on the server and returns its standard output.
func (s *Server) SSH(ctx context.Context, command string) (string, error) {
	cmd := s.ssh(ctx, command)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("cannot run %q on the server: %w: %s", command, err, strings.TrimSpace(errs.String()))
	}
	return string(out), nil
}

// ssh is a command on the server that is not started yet.
func (s *Server) ssh(ctx context.Context, command string) *exec.Cmd {
	return exec.CommandContext(ctx, "ssh", "-F", "none", "-i", s.Key, "-p", fmt.Sprint(s.Port),
		"-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile="+s.KnownHosts,
		"-o", "HostKeyAlgorithms=ssh-ed25519", "-o", "ConnectTimeout=60", "root@127.0.0.1", "--", command)
}

// arrived waits for what the system says on its console when all of it runs: marker, root,
// nic … as fields of the lines between, see rootfs/usr/local/bin/arrived.
func arrived(ctx context.Context, console string, p *machine.Process) (map[string]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("it does not come up"))
	defer cancel()
	facts := map[string]string{}
	err := machine.WaitFor(ctx, 500*time.Millisecond, func() (bool, error) {
		text, err := os.ReadFile(console)
		if err != nil {
			return p.Ended(), err
		}
		for line := range strings.Lines(string(text)) {
			rest, found := strings.CutPrefix(strings.TrimSpace(line), "arrived: ")
			if !found {
				continue
			}
			if rest == "end" {
				return true, nil
			}
			for _, field := range strings.Fields(rest) {
				if name, value, found := strings.Cut(field, "="); found {
					facts[name] = value
				}
			}
		}
		if p.Ended() {
			return true, nil
		}
		return false, nil
	})
	if err == nil && p.Ended() {
		err = fmt.Errorf("it has ended: %s", p.Said())
	}
	if err != nil {
		return facts, fmt.Errorf("cannot wait for the system: %w (console: %s)", err, console)
	}
	return facts, nil
}
