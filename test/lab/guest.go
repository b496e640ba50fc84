//go:build lab

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"text/template"
	"time"
)

// GuestOptions describe an inner guest. The zero value is right for most.
type GuestOptions struct {
	// UUID of the domain. Default: libvirt chooses.
	UUID string
	// MemoryMiB, default 256.
	MemoryMiB int
	// Ports is the number of hot-plug ports (pcie-root-port), default 12.
	Ports int
	// KeepsDevices makes a guest that never lets a device go: its kernel
	// masks the ACPI event that tells of hot plug, in either direction. A
	// device has to be there when it starts.
	KeepsDevices bool
	// Autostart with libvirtd.
	Autostart bool
	// MDevs are the mdev UUIDs that the domain has from the beginning.
	MDevs []string
	// PCI are the addresses of the hypervisor's PCI devices that the domain has from
	// the beginning. Their drivers have to be those that VFIO wants.
	PCI []string
	// Start it, too, and wait until it is up.
	Start bool
}

// guestCmdline leaves out what a kernel does at boot that these guests do not
// need: twice emulated, it takes longer than all the rest. lastbus=0 stops a
// search for PCI buses that ACPI does not know of.
const guestCmdline = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable nowatchdog no_timer_check " +
	"random.trust_cpu=on rodata=off init_on_alloc=0 lsm=capability audit=0 cgroup_disable=memory ipv6.disable=1 " +
	"8250.nr_uarts=1 pci=lastbus=0 pcie_ports=compat cryptomgr.notests " +
	"initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted"

// Where build.sh put the guest, and where its serial port goes to.
const (
	guestFiles = "/usr/local/share/lab"
	guestLogs  = "/var/log/libvirt/qemu"
)

// Without an HPET, as virt-install leaves it out: a kernel that has gone over to a better timer lets it tick,
// and QEMU wakes up 250 times a second for that, a sixth of the hypervisor's processor.
var guestXML = template.Must(template.New("domain").Funcs(template.FuncMap{"hostdev": HostdevPCI}).Parse(`<domain type='kvm'>
  <name>{{.Name}}</name>
  {{- with .UUID}}
  <uuid>{{.}}</uuid>
  {{- end}}
  <memory unit='MiB'>{{.MemoryMiB}}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader type='rom'>{{.Files}}/guest-bios</loader>
    <kernel>{{.Files}}/guest-vmlinux</kernel>
    <initrd>{{.Files}}/guest-initrd</initrd>
    <cmdline>{{.Cmdline}}{{if .KeepsDevices}} acpi_mask_gpe=0x01{{end}}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='host-passthrough'/>
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <controller type='pci' index='0' model='pcie-root'/>
    {{- range .RootPorts}}
    <controller type='pci' model='pcie-root-port'/>
    {{- end}}
    <serial type='file'>
      <source path='{{.Log}}'/>
      <target port='0'/>
    </serial>
    {{- range .MDevs}}
    <hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>
      <source><address uuid='{{.}}'/></source>
    </hostdev>
    {{- end}}
    {{- range .PCI}}
    {{hostdev . ""}}
    {{- end}}
    <memballoon model='none'/>
  </devices>
</domain>
`))

// DefineGuest defines a guest in the VM's libvirt and returns its UUID.
func (vm *VM) DefineGuest(ctx context.Context, name string, opts GuestOptions) (string, error) {
	if opts.MemoryMiB == 0 {
		opts.MemoryMiB = 256
	}
	if opts.Ports == 0 {
		opts.Ports = 12
	}
	var xml strings.Builder
	err := guestXML.Execute(&xml, struct {
		GuestOptions
		Name, Files, Log, Cmdline string
		RootPorts                 []struct{}
	}{opts, name, guestFiles, guestLog(name), guestCmdline, make([]struct{}, opts.Ports)})
	if err != nil {
		return "", fmt.Errorf("cannot write the XML of guest %q: %w", name, err)
	}
	command := "set -e; virsh -q define /dev/stdin >&2; virsh domuuid " + quote(name)
	if opts.Autostart {
		command += "; virsh -q autostart " + quote(name) + " >&2"
	}
	out, err := vm.run(ctx, command, strings.NewReader(xml.String()))
	if err != nil {
		return "", fmt.Errorf("cannot define guest %q: %w", name, err)
	}
	if opts.Start {
		err = vm.StartGuest(ctx, name)
	}
	return strings.TrimSpace(out), err
}

// StartGuest starts a defined guest and waits until it is up.
func (vm *VM) StartGuest(ctx context.Context, name string) error {
	if _, err := vm.Run(ctx, "virsh -q start "+quote(name)); err != nil {
		return fmt.Errorf("cannot start guest %q: %w", name, err)
	}
	return vm.WaitGuestUp(ctx, name)
}

// WaitGuestUp waits until a guest that somebody started is up.
func (vm *VM) WaitGuestUp(ctx context.Context, name string) error {
	_, err := vm.WaitGuestLine(ctx, name, guestUp)
	return err
}

// GuestLog is what the guest has said on its serial port since it was last
// started; empty when it never was since the hypervisor booted.
func (vm *VM) GuestLog(ctx context.Context, name string) (string, error) {
	return vm.Run(ctx, "cat "+guestLog(name)+" 2>/dev/null || true")
}

// WaitGuestLine waits for a line of the guest's serial log, of its present
// run, that matches re, and returns that line.
func (vm *VM) WaitGuestLine(ctx context.Context, name string, re *regexp.Regexp) (string, error) {
	var found string
	err := vm.followGuest(ctx, name, func(line string, _ bool) bool {
		if re.MatchString(line) {
			found = line
		}
		return found != ""
	})
	if err != nil {
		return "", fmt.Errorf("cannot see a line %q of guest %q: %w", re, name, err)
	}
	return found, nil
}

// WaitGuestPCI waits until the guest is up and its kernel has exactly n PCI
// devices of that kind, written "vendor:device" such as MBochs.
func (vm *VM) WaitGuestPCI(ctx context.Context, name, kind string, n int) error {
	seen, have, up := guestPCI{}, 0, false
	err := vm.followGuest(ctx, name, func(line string, present bool) bool {
		seen.line(line)
		up = up || guestUp.MatchString(line)
		have = seen.count(kind)
		return present && up && have == n
	})
	if err != nil {
		return fmt.Errorf("cannot see %d devices %s in guest %q, there are %d: %w", n, kind, name, have, err)
	}
	return nil
}

// GuestPCI are the PCI devices that the guest's kernel has now: address to
// "vendor:device".
func (vm *VM) GuestPCI(ctx context.Context, name string) (map[string]string, error) {
	log, err := vm.GuestLog(ctx, name)
	if err != nil {
		return nil, err
	}
	seen := guestPCI{}
	for line := range strings.Lines(log) {
		seen.line(strings.TrimRight(line, "\r\n"))
	}
	return seen, nil
}

// What a guest calls a device of the sample drivers. pci.go has more kinds.
const (
	MBochs = "1234:1111"
	MDPY   = "1b36:000f"
	MTTY   = "4348:3253"
)

var (
	guestUp   = regexp.MustCompile(`^GUEST up$`)
	pciAdd    = regexp.MustCompile(`^GUEST pci add (\S+) (\S+) class`)
	pciRemove = regexp.MustCompile(`^GUEST pci remove (\S+)$`)
)

type guestPCI map[string]string

func (g guestPCI) line(line string) {
	if m := pciAdd.FindStringSubmatch(line); m != nil {
		g[m[1]] = m[2]
	}
	if m := pciRemove.FindStringSubmatch(line); m != nil {
		delete(g, m[1])
	}
}

func (g guestPCI) count(kind string) int {
	n := 0
	for _, k := range g {
		if k == kind {
			n++
		}
	}
	return n
}

func guestLog(name string) string { return guestLogs + "/" + name + ".serial" }

// followGuest hands over the lines of a guest's log until done says so. present
// is false for lines that were old when the call began, save the last of them:
// only from there on do the lines tell how things are. It costs the VM nothing
// to wait, unlike asking it again and again.
func (vm *VM) followGuest(ctx context.Context, name string, done func(line string, present bool) bool) error {
	if err := vm.connect(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var kicker sync.WaitGroup
	defer kicker.Wait()
	defer cancel()
	kicker.Go(func() { vm.kick(ctx, name) })
	log := guestLog(name)
	cmd := vm.ssh(ctx,
		"stat -c %s "+log+" 2>/dev/null || echo 0; exec tail -c +1 -s 0.2 -F "+log+" 2>/dev/null")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start ssh: %w", err)
	}
	defer cmd.Wait()
	defer cancel()

	r := bufio.NewReader(out)
	var old, read int
	if _, err := fmt.Fscanln(r, &old); err != nil {
		return fmt.Errorf("cannot read %s: %w", log, cause(ctx, err))
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("cannot follow %s: %w", log, cause(ctx, err))
		}
		read += len(line)
		if done(strings.TrimRight(line, "\r\n"), read >= old) {
			return nil
		}
	}
}

// silence is how long after a start a guest may say nothing: its first line comes
// after a tenth of that on a quiet machine.
const silence = 75 * time.Second

// kick resets a guest that stays silent. Now and then a guest starts whose kernel
// never comes, the CPU spinning: that is nested virtualization under emulation, the
// lab's own trouble. The QEMU process and its devices stay what they are.
func (vm *VM) kick(ctx context.Context, name string) {
	tick := time.NewTicker(silence)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			// Whether it helps shows in the log that is being followed.
			_, _ = vm.Run(ctx, "[ -s "+guestLog(name)+" ] || virsh -q reset "+quote(name))
		}
	}
}

// cause prefers the reason why we gave up over what that made of a pipe.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
