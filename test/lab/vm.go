//go:build lab

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"gpuvirt/test/machine"
)

// Limits on what the hypervisor may take: generous, since the machine below
// may be shared. They bound a failure; nothing waits them out.
const (
	bootLimit     = 4 * time.Minute
	shutdownLimit = 2 * time.Minute
)

// maxBoots is how many are tried, one after the other, where kernels die or stand still
// before they answer.
const maxBoots = 3

// Options say what Start boots. The zero value is right for tests.
type Options struct {
	// Suite is the Debian release of the image: trixie (default) or
	// bookworm. Default: $SUITE.
	Suite string
	// Image is the folder that build.sh made. Default: $LAB_IMAGE, else
	// .cache/lab/SUITE in the repository.
	Image string
	// MemoryMiB of the hypervisor. Default 6144: it is touched only as far
	// as guests use it.
	MemoryMiB int
	// QEMUArgs are added to the command line, for devices that a scenario
	// of its own machine needs.
	QEMUArgs []string
	// OneCPU gives the hypervisor one processor instead of two, which then never run at the
	// same moment.
	OneCPU bool
	// Number tells those apart that run at the same time, from 1. Default 1.
	Number int
	// SerialLog is where the hypervisor's console goes. Default:
	// test/lab/out/hypervisor.log, hypervisor-2.log for the second.
	SerialLog string
}

// VM is a running hypervisor.
type VM struct {
	repo      string // root of the working tree
	suite     string
	image     string
	dir       string // sockets and what else lives as long as the VM
	serialLog string
	port      int
	machine   *machine.Process
	opts      Options
	deployed  bool // the working tree's daemon runs in it

	mu     sync.Mutex       // guards master
	master *machine.Process // ssh's control connection, nil when it has to be made anew
}

// Start boots a hypervisor and returns when it answers. The caller must Close
// it; should the calling process die first, the hypervisor dies with it.
func Start(ctx context.Context, opts Options) (*VM, error) {
	repo, err := machine.RepoRoot()
	if err != nil {
		return nil, err
	}
	opts.fill(repo)
	// The name of a suite leads to its newest image: stay with one.
	if image, err := filepath.EvalSymlinks(opts.Image); err == nil {
		opts.Image = image
	}
	if _, err := os.Stat(filepath.Join(opts.Image, "complete")); err != nil {
		return nil, fmt.Errorf("cannot use image %q: %w; test/lab/build.sh makes it", opts.Image, err)
	}
	if err := os.MkdirAll(filepath.Dir(opts.SerialLog), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the log's folder: %w", err)
	}
	dir, err := machine.RunFolder("gpuvirt-lab-")
	if err != nil {
		return nil, err
	}
	vm := &VM{repo: repo, suite: opts.Suite, image: opts.Image, dir: dir, serialLog: opts.SerialLog, opts: opts}
	if err := vm.boot(ctx); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

func (o *Options) fill(repo string) {
	if o.Suite == "" {
		o.Suite = os.Getenv("SUITE")
	}
	if o.Suite == "" {
		o.Suite = "trixie"
	}
	if o.Image == "" {
		o.Image = os.Getenv("LAB_IMAGE")
	}
	if o.Image == "" {
		cache := os.Getenv("LAB_CACHE")
		if cache == "" {
			cache = filepath.Join(repo, ".cache", "lab")
		}
		o.Image = filepath.Join(cache, o.Suite)
	}
	if o.MemoryMiB == 0 {
		o.MemoryMiB = 6144
	}
	o.Number = max(o.Number, 1)
	if o.SerialLog == "" {
		name := "hypervisor.log"
		if o.Number > 1 {
			name = fmt.Sprintf("hypervisor-%d.log", o.Number)
		}
		o.SerialLog = filepath.Join(repo, "test", "lab", "out", name)
	}
}

// errNotUp is that of a hypervisor that runs and is not up in time.
var errNotUp = fmt.Errorf("it is not up after %v", bootLimit)

// boot boots the hypervisor, again where it dies or stands still before it answers:
// nothing of gpuvirt is in it yet, so it is the emulator that failed. What can be known
// of that goes to standard error, as all that is left of a machine that ran elsewhere.
func (vm *VM) boot(ctx context.Context) error {
	for tried := 1; ; tried++ {
		err := vm.bootOnce(ctx)
		why := vm.Died()
		if why == "" && errors.Is(err, errNotUp) {
			why = errNotUp.Error() + vm.standstill(ctx)
		}
		if err == nil || ctx.Err() != nil || why == "" {
			return err
		}
		fmt.Fprintf(os.Stderr, "lab: boot %d of at most %d failed: %s\n", tried, maxBoots, why)
		if tried == maxBoots {
			return err
		}
		vm.disconnect()
		vm.machine.Kill()
	}
}

// standstill tells where a machine that does not answer is: the end of its console, and
// its processors at two moments.
func (vm *VM) standstill(ctx context.Context) string {
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	var s strings.Builder
	say := func(what, said string, err error) {
		if err != nil {
			said = err.Error()
		}
		fmt.Fprintf(&s, "\n%s:\n%s", what, said)
	}
	console, err := os.ReadFile(vm.serialLog)
	say("the end of its console", string(console[max(0, len(console)-2000):]), err)
	for _, command := range []string{"info status", "info registers -a", "info registers -a", "info lapic"} {
		said, err := vm.Monitor(ctx, command)
		if strings.Contains(command, "registers") { // where it is, and whether it waits
			said = strings.Join(slices.DeleteFunc(strings.Split(said, "\n"), func(line string) bool { return !strings.HasPrefix(line, "CPU#") && !strings.HasPrefix(line, "RIP=") }), "\n")
		}
		say(command, said, err)
	}
	return s.String()
}

func (vm *VM) bootOnce(ctx context.Context) error {
	opts := vm.opts
	var err error
	if vm.port, err = machine.FreePort(); err != nil {
		return err
	}
	// The key is copied: ssh refuses one that others may read, and the cache
	// may have been copied around.
	key, err := os.ReadFile(filepath.Join(vm.image, "id_ed25519"))
	if err != nil {
		return fmt.Errorf("cannot read the lab's key: %w", err)
	}
	if err := os.WriteFile(filepath.Join(vm.dir, "key"), key, 0o600); err != nil {
		return fmt.Errorf("cannot write the lab's key: %w", err)
	}
	if err := os.RemoveAll(opts.SerialLog); err != nil {
		return fmt.Errorf("cannot remove the old console log: %w", err)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
		// Software emulation only: a /dev/kvm that does not boot this kernel
		// is worse than none. EPYC's SVM is emulated too, which is what
		// makes KVM work inside.
		"-accel", "tcg,thread=multi",
		"-machine", "q35,kernel-irqchip=split,hpet=off",
		"-cpu", "EPYC,-sse4a",
		"-m", fmt.Sprint(opts.MemoryMiB),
		"-device", "intel-iommu,intremap=on",
		"-kernel", filepath.Join(vm.image, "vmlinux"),
		"-initrd", filepath.Join(vm.image, "initrd"),
		"-append", "root=/dev/vda rw console=ttyS0 intel_iommu=on " +
			// What only costs time under emulation.
			"mitigations=off tsc=reliable nowatchdog no_timer_check random.trust_cpu=on init_on_alloc=0 lsm=capability audit=0 " +
			"cryptomgr.notests initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted " +
			"loglevel=4 systemd.show_status=error",
		"-drive", "file=" + filepath.Join(vm.image, "disk.img") + ",format=raw,if=none,id=root,snapshot=on,cache=unsafe",
		"-device", "virtio-blk-pci,drive=root",
		"-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", vm.port),
		"-device", "virtio-net-pci,netdev=net,romfile=",
		"-serial", "file:" + opts.SerialLog,
		"-qmp", "unix:" + vm.path("qmp") + ",server=on,wait=off",
	}
	args = append(args, cardArgs()...)
	if !opts.OneCPU {
		args = append(args, "-smp", "2")
	}
	cmd := exec.Command("qemu-system-x86_64", append(args, opts.QEMUArgs...)...)
	if vm.machine, err = machine.Start(cmd); err != nil {
		return fmt.Errorf("cannot start qemu: %w; test/lab/deps.sh installs it", err)
	}
	limited, stop := context.WithTimeoutCause(ctx, bootLimit, errNotUp)
	defer stop()
	ctx, end := context.WithCancelCause(limited)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer end(nil)
	watch.Go(func() { vm.watch(ctx, end) })
	if err := vm.connect(ctx); err != nil {
		return fmt.Errorf("cannot reach the booting hypervisor: %w (console: %s)", err, opts.SerialLog)
	}
	return vm.settle(ctx)
}

// settle waits until systemd has finished what a boot has to do.
func (vm *VM) settle(ctx context.Context) error {
	// It prints "degraded" and fails when some unit failed: scenarios make
	// units fail, so that is for them to judge.
	_, err := vm.Run(ctx, "systemctl is-system-running --wait || true")
	return err
}

// kernelDied is what the kernel says on the console when it is at its end, or when one
// of its processors has had no timer for 40 s, which it does not get back. It need not
// begin a line: what getty or systemd wrote last may not have ended one.
var kernelDied = regexp.MustCompile(`\[ *[0-9]+\.[0-9]+\] (?:BUG: |Oops: |Kernel panic|rcu: rcu_preempt kthread starved for [0-9]{5})[^\r\n]*`)

// Died returns what the hypervisor's kernel said when it died, empty while it
// lives. Now and then it does while a guest runs, reading through translations of
// the guest's memory: nested virtualization under emulation is not flawless.
func (vm *VM) Died() string {
	console, err := os.ReadFile(vm.serialLog)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(kernelDied.Find(console)))
}

// Renew boots a new hypervisor in place of one that died, whose console is kept
// beside the new one.
func (vm *VM) Renew(ctx context.Context) error {
	vm.disconnect()
	vm.machine.Kill()
	vm.deployed = false
	if err := os.Rename(vm.serialLog, vm.serialLog+".died"); err != nil {
		return fmt.Errorf("cannot keep the console of the hypervisor that died: %w", err)
	}
	return vm.boot(ctx)
}

// Close ends the hypervisor and removes what Start made.
func (vm *VM) Close() error {
	vm.disconnect()
	if vm.machine != nil {
		vm.machine.Kill()
	}
	return os.RemoveAll(vm.dir)
}

// Suite is the Debian release that runs in the VM.
func (vm *VM) Suite() string { return vm.suite }

// Reboot restarts the hypervisor in the orderly way and returns when it
// answers again.
func (vm *VM) Reboot(ctx context.Context) error {
	return vm.restart(ctx, "reboot", func() error {
		// The connection may break before the command has answered.
		_, err := vm.Run(ctx, "systemctl reboot")
		if err != nil && ExitCode(err) < 0 {
			return err
		}
		ctx, cancel := context.WithTimeoutCause(ctx, shutdownLimit, errors.New("it does not go down"))
		defer cancel()
		return vm.hangUp(ctx)
	})
}

// PowerCut resets the hypervisor at once, as if power had failed: what its
// kernel had not written to the disk is lost, what it had written stays. It
// returns when the hypervisor answers again.
func (vm *VM) PowerCut(ctx context.Context) error {
	return vm.restart(ctx, "cut power", func() error { return vm.QMP(ctx, "system_reset") })
}

func (vm *VM) restart(ctx context.Context, verb string, do func() error) error {
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	before, err := vm.Run(ctx, bootID)
	if err != nil {
		return fmt.Errorf("cannot %s: %w", verb, err)
	}
	if err := do(); err != nil {
		return fmt.Errorf("cannot %s: %w (console: %s)", verb, err, vm.serialLog)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("it does not come up"))
	defer cancel()
	err = machine.WaitFor(ctx, time.Second, func() (bool, error) {
		vm.disconnect()
		after, err := vm.Run(ctx, bootID)
		return err == nil && after != before, err
	})
	if err != nil {
		return fmt.Errorf("cannot reach the hypervisor after a restart: %w (console: %s)", err, vm.serialLog)
	}
	return vm.settle(ctx)
}

func (vm *VM) path(name string) string { return filepath.Join(vm.dir, name) }
