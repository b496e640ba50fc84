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

	"libvirt.org/go/libvirtxml"

	"gpuvirt/p2v/convert"
	"gpuvirt/test/machine"
)

// A VM is one that libvirt's driver for QEMU runs, without a daemon: virt-qemu-run loads
// it. What libvirt refuses of a definition is refused here too.
type VM struct {
	Console string

	name, root string
	machine    *machine.Process
}

// user is who converts, and who runs the VM: nobody in particular.
const user = 64977

// qemuConf has libvirt ask for no daemon beside it.
const qemuConf = "stdio_handler = \"file\"\n"

// Boot starts a VM. One of its parts is not as on a host: there is no network of libvirt's,
// so its NICs are on a network of QEMU's own, without a way out. Its serial console is kept
// where the test can read it.
func Boot(domain convert.Domain) (*VM, error) {
	// Short, as libvirt makes sockets in it.
	root, err := machine.RunFolder("gpuvirt-p2v-")
	if err != nil {
		return nil, err
	}
	domain.SerialLog = filepath.Join(root, "console.log")
	vm := &VM{Console: domain.SerialLog, name: domain.Name, root: root}
	if err := vm.boot(domain); err != nil {
		return nil, errors.Join(err, os.RemoveAll(root))
	}
	return vm, nil
}

func (vm *VM) boot(domain convert.Domain) error {
	doc, err := domain.XML()
	if err != nil {
		return err
	}
	var dom libvirtxml.Domain
	if err := dom.Unmarshal(doc); err != nil {
		return fmt.Errorf("cannot read the definition: %w", err)
	}
	for i := range dom.Devices.Interfaces {
		dom.Devices.Interfaces[i].Source = &libvirtxml.DomainInterfaceSource{User: &libvirtxml.DomainInterfaceSourceUser{}}
	}
	if doc, err = dom.Marshal(); err != nil {
		return fmt.Errorf("cannot write the definition: %w", err)
	}
	file := filepath.Join(vm.root, "domain.xml")
	err = os.MkdirAll(filepath.Join(vm.root, "etc"), 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(vm.root, "etc", "qemu.conf"), []byte(qemuConf), 0o644)
	}
	if err == nil {
		err = os.WriteFile(file, []byte(doc), 0o644)
	}
	if err == nil {
		err = os.Chown(vm.root, user, user)
	}
	if err != nil {
		return fmt.Errorf("cannot prepare the VM: %w", err)
	}
	// In a process namespace of its own: QEMU, which libvirt puts into the background, ends
	// with it.
	vm.machine, err = machine.Start(exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
		"setpriv", "--pdeathsig=KILL", fmt.Sprintf("--reuid=%d", user), fmt.Sprintf("--regid=%d", user), "--clear-groups",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME="+vm.root, "XDG_RUNTIME_DIR="+vm.root,
		"XDG_CACHE_HOME="+filepath.Join(vm.root, "cache"), "XDG_CONFIG_HOME="+filepath.Join(vm.root, "config"),
		"virt-qemu-run", "--root", vm.root, "--verbose", file))
	if err != nil {
		return fmt.Errorf("cannot start virt-qemu-run: %w; test/p2v/deps.sh installs it", err)
	}
	return nil
}

// Up waits until the system says on its console that all of it runs, and returns what it says.
func (vm *VM) Up(ctx context.Context) (map[string]string, error) {
	facts, err := arrived(ctx, vm.Console, vm.machine)
	if err != nil {
		err = fmt.Errorf("%w; libvirt says: %s", err, vm.log())
	}
	return facts, err
}

// Agent waits until the guest's agent has opened its channel, as libvirt sees it.
func (vm *VM) Agent(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the agent has not opened its channel"))
	defer cancel()
	status := filepath.Join(vm.root, "run", "qemu", vm.name+".xml")
	return machine.WaitFor(ctx, 300*time.Millisecond, func() (bool, error) {
		text, err := os.ReadFile(status)
		return strings.Contains(string(text), "state='connected'"), err
	})
}

// log is the end of what libvirt and QEMU have said.
func (vm *VM) log() string {
	text, _ := os.ReadFile(filepath.Join(vm.root, "log", "qemu", vm.name+".log"))
	return vm.machine.Said() + string(text[max(0, len(text)-2000):])
}

// Close ends the VM, as a power cut does, and keeps its console in the folder out. One that
// is closed already is fine.
func (vm *VM) Close() error {
	if !exists(vm.root) {
		return nil
	}
	vm.machine.Kill()
	keep(vm.Console, vm.name+"-vm.log")
	return os.RemoveAll(vm.root)
}
