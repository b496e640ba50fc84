//go:build lab

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"time"

	"gpuvirt/test/machine"
)

// socket is where the daemon listens inside the VM.
const socket = "/run/gpuvirt/gpuvirtd.sock"

// Run runs a shell command as root in the VM and returns its standard output.
// When the command fails, the error holds its standard error and wraps the
// *exec.ExitError.
func (vm *VM) Run(ctx context.Context, command string) (string, error) {
	return vm.run(ctx, command, nil)
}

func (vm *VM) run(ctx context.Context, command string, stdin io.Reader) (string, error) {
	if err := vm.connect(ctx); err != nil {
		return "", fmt.Errorf("cannot run %q in the lab: %w", command, err)
	}
	cmd := vm.ssh(ctx, command)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return out.String(), fmt.Errorf("cannot run %q in the lab: %w: %s", command, err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// ssh is a command in the VM through the connection that connect made. Were
// that gone by now, ssh would dial on its own, and reach another machine than
// the lab: ProxyCommand stops it.
func (vm *VM) ssh(ctx context.Context, command string) *exec.Cmd {
	args := []string{"-F", "none", "-q", "-S", vm.path("ctl"), "-o", "ProxyCommand=false"}
	if command == loginShell {
		args = append(args, "-t")
	}
	cmd := exec.CommandContext(ctx, "ssh", append(args, "root@127.0.0.1", "--", command)...)
	// The connection has our pipes open as well, and does not close them when ssh is
	// killed while the hypervisor hangs.
	cmd.WaitDelay = 15 * time.Second
	return cmd
}

const loginShell = "exec bash -l"

// Shell gives the terminal to a login shell in the VM until that ends.
func (vm *VM) Shell(ctx context.Context) error {
	if err := vm.connect(ctx); err != nil {
		return fmt.Errorf("cannot open a shell in the lab: %w", err)
	}
	cmd := vm.ssh(ctx, loginShell)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// What the last command in the shell returned is no error of ours.
	if err := cmd.Run(); err != nil && ExitCode(err) < 0 {
		return fmt.Errorf("cannot open a shell in the lab: %w", err)
	}
	return nil
}

// Put copies a local file to a path in the VM. It replaces the file as a
// whole, so that a program that runs from it keeps its old content.
func (vm *VM) Put(ctx context.Context, local, remote string, mode os.FileMode) error {
	f, err := os.Open(local)
	if err != nil {
		return fmt.Errorf("cannot put %s into the lab: %w", remote, err)
	}
	defer f.Close()
	return vm.put(ctx, f, remote, mode)
}

// Write writes a file in the VM.
func (vm *VM) Write(ctx context.Context, remote string, content []byte, mode os.FileMode) error {
	return vm.put(ctx, bytes.NewReader(content), remote, mode)
}

func (vm *VM) put(ctx context.Context, r io.Reader, remote string, mode os.FileMode) error {
	q := quote(remote)
	_, err := vm.run(ctx, fmt.Sprintf(
		`set -e; mkdir -p "$(dirname %s)"; cat >%s.new; chmod %o %s.new; mv %s.new %s`, q, q, mode.Perm(), q, q, q), r)
	return err
}

// HTTP is a client of the daemon in the VM: any host name in the URL leads to
// its unix socket. It goes on working after the VM was restarted. Connections
// are not kept: the daemon at the other end may be another one each time.
func (vm *VM) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if err := vm.connect(ctx); err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, "unix", vm.Socket())
		},
	}}
}

// Socket is a local unix socket that leads to the daemon's in the VM, for
// programs that take a path. It works while the VM is connected, that is from
// the last Run until the next restart.
func (vm *VM) Socket() string { return vm.path("daemon") }

// connect makes the one connection that everything shares, unless it is there.
func (vm *VM) connect(ctx context.Context) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.master != nil && !vm.master.Ended() {
		return nil
	}
	vm.master = nil
	// A try that QEMU took before the network was up may hang although ssh
	// answers by now; one that is too short fails on a busy machine.
	patience := 2 * time.Second
	err := machine.WaitFor(ctx, 200*time.Millisecond, func() (bool, error) {
		if vm.machine.Ended() {
			return true, nil // there is nothing to wait for
		}
		patience = min(patience+500*time.Millisecond, 20*time.Second)
		if ok, err := machine.Greeted(ctx, vm.port, patience); !ok {
			return false, err
		}
		return vm.dial(ctx)
	})
	if vm.machine.Ended() {
		return fmt.Errorf("qemu has ended: %s", vm.machine.Said())
	}
	return err
}

func (vm *VM) dial(ctx context.Context) (bool, error) {
	for _, stale := range []string{"ctl", "daemon"} {
		os.Remove(vm.path(stale))
	}
	p, err := machine.Start(exec.Command("ssh", "-F", "none", "-N", "-M", "-S", vm.path("ctl"),
		"-i", vm.path("key"), "-p", fmt.Sprint(vm.port),
		"-L", vm.Socket()+":"+socket,
		"-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		// A VM that was reset does not say good-bye.
		"-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=6",
		"-o", "ConnectTimeout=60",
		"root@127.0.0.1"))
	if err != nil {
		return false, fmt.Errorf("cannot start ssh: %w", err)
	}
	err = machine.WaitFor(ctx, 50*time.Millisecond, func() (bool, error) {
		if p.Ended() {
			return true, nil
		}
		// The forward is made before the control socket takes commands.
		_, err := os.Stat(vm.path("ctl"))
		return err == nil, err
	})
	if p.Ended() {
		return false, fmt.Errorf("ssh gave up: %s", p.Said())
	}
	if err != nil {
		p.Kill()
		return false, err
	}
	vm.master = p
	return true, nil
}

// hangUp waits until the other side has closed the connection, as it does when
// it goes down.
func (vm *VM) hangUp(ctx context.Context) error {
	vm.mu.Lock()
	master := vm.master
	vm.mu.Unlock()
	if master == nil {
		return nil
	}
	select {
	case <-master.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (vm *VM) disconnect() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.master != nil {
		vm.master.Kill()
		vm.master = nil
	}
}

// ExitCode of a command that Run ran, or -1 when err is of another kind.
func ExitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

func quote(s string) string {
	return "'" + string(bytes.ReplaceAll([]byte(s), []byte("'"), []byte(`'\''`))) + "'"
}
