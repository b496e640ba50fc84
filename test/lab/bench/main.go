//go:build lab

// Command bench runs inside the lab's hypervisor and compares, in alternating
// rounds of one run, what gpuvirt does by REST with the bare calls below it and
// with the tools people use otherwise. It prints ratios of medians: the machine
// is emulated, so times mean nothing.
//
// An attach by REST also makes the mdev and keeps both on disk. It is compared
// with attaching an mdev that is there, and with making one and attaching it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"gpuvirt/api"
	"gpuvirt/client"
	"gpuvirt/internal/sysfs"
)

const (
	parent  = "mbochs"
	profile = "mbochs-small"
)

func main() {
	vm := flag.String("vm", "bench", "running guest to attach to")
	rounds := flag.Int("rounds", 15, "rounds of each comparison")
	flag.Parse()
	if err := run(context.Background(), *vm, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// way is one way to do the same thing: do is timed, undo is not.
type way struct {
	name     string
	do, undo func() error
}

func run(ctx context.Context, vm string, rounds int) (err error) {
	rest := client.New(client.Options{})
	fs, err := sysfs.Open("/sys")
	if err != nil {
		return err
	}
	conn, err := libvirt.NewConnect("qemu:///system")
	if err != nil {
		return err
	}
	dom, err := conn.LookupDomainByName(vm)
	if err != nil {
		return err
	}
	b := bench{ctx: ctx, rest: rest, fs: fs, dom: dom, vm: vm, fixed: uuid.NewString(), fresh: uuid.NewString()}
	if err := compare("create", rounds, b.creates()); err != nil {
		return err
	}
	// The other ways attach an mdev that is there already; REST makes one each time.
	if err := b.make(b.fixed); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.remove(b.fixed)) }()
	for _, id := range []string{b.fixed, b.fresh} {
		if err := os.WriteFile(xmlFile(id), []byte(hostdev(id)), 0o600); err != nil {
			return err
		}
	}
	return compare("attach", rounds, b.attaches())
}

// compare times the ways in turn, round by round, so that whatever else the
// machine does falls on all of them alike.
func compare(what string, rounds int, ways []way) error {
	times := make([][]time.Duration, len(ways))
	for r := range rounds + 1 {
		for i, w := range ways {
			began := time.Now()
			if err := w.do(); err != nil {
				return fmt.Errorf("cannot %s by %s: %w", what, w.name, err)
			}
			if took := time.Since(began); r > 0 { // the first round warms up
				times[i] = append(times[i], took)
			}
			if err := w.undo(); err != nil {
				return fmt.Errorf("cannot undo %s by %s: %w", what, w.name, err)
			}
		}
	}
	first := median(times[0])
	for i := 1; i < len(ways); i++ {
		fmt.Printf("%s: %s / %s = %.3f\n", what, ways[0].name, ways[i].name, float64(first)/float64(median(times[i])))
	}
	return nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

type bench struct {
	ctx   context.Context
	rest  *client.Client
	fs    *sysfs.Root
	dom   *libvirt.Domain
	vm    string
	fixed string // an mdev that is there throughout the attach rounds
	fresh string // one that is made to be attached
}

func (b *bench) make(id string) error {
	return b.fs.Write(b.ctx, "class/mdev_bus/"+parent+"/mdev_supported_types/"+profile+"/create", id)
}

// remove blocks until QEMU has closed the device.
func (b *bench) remove(id string) error {
	return b.fs.Write(b.ctx, "bus/mdev/devices/"+id+"/remove", "1")
}

func tool(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func (b *bench) creates() []way {
	id := uuid.NewString()
	var made string
	return []way{
		{
			"REST", func() error {
				op, err := b.rest.CreatePartition(b.ctx, api.PartitionRequest{Profile: profile, GPU: parent})
				if err != nil {
					return err
				}
				if err := b.finish(op); err != nil {
					return err
				}
				for _, k := range op.Keys {
					if p, ok := strings.CutPrefix(k, "partition/"); ok {
						made = p
					}
				}
				return nil
			}, func() error {
				op, err := b.rest.DeletePartition(b.ctx, made)
				if err != nil {
					return err
				}
				return b.finish(op)
			},
		},
		{"sysfs write", func() error { return b.make(id) }, func() error { return b.remove(id) }},
		{
			"mdevctl start", func() error { return tool("mdevctl", "start", "-u", id, "-p", parent, "-t", profile) },
			func() error { return tool("mdevctl", "stop", "-u", id) },
		},
	}
}

// hostdev is the device that the other ways attach.
func hostdev(id string) string {
	return "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'><source><address uuid='" +
		id + "'/></source><alias name='ua-bench-" + id[:8] + "'/></hostdev>"
}

// xmlFile is where virsh finds it.
func xmlFile(id string) string { return "/run/bench-" + id + ".xml" }

const both = libvirt.DOMAIN_DEVICE_MODIFY_LIVE | libvirt.DOMAIN_DEVICE_MODIFY_CONFIG

func (b *bench) attach(id string) error { return b.dom.AttachDeviceFlags(hostdev(id), both) }

func (b *bench) virsh(id string) error {
	return tool("virsh", "attach-device", b.vm, xmlFile(id), "--live", "--config")
}

func (b *bench) detach(id string) error {
	if err := b.dom.DetachDeviceFlags(hostdev(id), both); err != nil {
		return err
	}
	return b.gone(id)
}

// after does a second thing when the first has succeeded.
func after(err error, then func(string) error, id string) error {
	if err != nil {
		return err
	}
	return then(id)
}

func (b *bench) attaches() []way {
	detach := func() error { return b.detach(b.fixed) }
	return []way{
		{
			"REST", func() error {
				_, op, err := b.rest.PutAssignment(b.ctx, "bench", api.AssignmentRequest{VM: b.vm, Profile: profile})
				if err != nil {
					return err
				}
				return b.finish(*op)
			}, func() error {
				op, err := b.rest.DeleteAssignment(b.ctx, "bench")
				if err != nil {
					return err
				}
				return b.finish(op)
			},
		},
		{"libvirt call", func() error { return b.attach(b.fixed) }, detach},
		{"virsh attach-device", func() error { return b.virsh(b.fixed) }, detach},
		{
			"(sysfs write + libvirt call)", func() error { return after(b.make(b.fresh), b.attach, b.fresh) },
			func() error { return after(b.detach(b.fresh), b.remove, b.fresh) },
		},
		{
			"(mdevctl start + virsh attach-device)",
			func() error {
				return after(tool("mdevctl", "start", "-u", b.fresh, "-p", parent, "-t", profile), b.virsh, b.fresh)
			},
			func() error { return after(b.detach(b.fresh), b.remove, b.fresh) },
		},
	}
}

// finish waits until an operation is carried out.
func (b *bench) finish(op api.Operation) error {
	op, err := b.rest.WaitOperation(b.ctx, op.ID, nil)
	if err != nil {
		return err
	}
	if op.Status != "done" {
		return fmt.Errorf("operation %s ended %s", op.ID, op.Status)
	}
	return nil
}

// gone waits until the guest has let the device go.
func (b *bench) gone(id string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 600 {
		xml, err := b.dom.GetXMLDesc(0)
		if err != nil {
			return err
		}
		if !strings.Contains(xml, id) {
			return nil
		}
		<-tick.C
	}
	return errors.New("the guest keeps the device")
}
