// Package vmapi owns libvirt: it finds VMs, reads their host devices, attaches
// and detaches partitions and tells of changes. Nothing else imports libvirt.
//
// What libvirt does not answer is never guessed: while it cannot be reached every
// call fails at once with gpu.CodeUnavailable, and a VM that cannot be read is an
// error, not a VM without devices. A domain is never redefined; only our own
// devices, found by alias, are added and removed. Whole VMs are defined and
// undefined too, for migrations: those only that bear the mark of one (Marked).
package vmapi

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// Config says how to reach libvirt and how patient to be.
type Config struct {
	URI string       // default "qemu:///system"
	Log *slog.Logger // default: none

	CallTimeout   time.Duration // of calls that read; default 20 s
	ChangeTimeout time.Duration // of calls that attach or ask to detach; default 5 min
	DetachTimeout time.Duration // for the guest to let go of a device; default 30 s

	MinBackoff time.Duration // first wait before connecting again; default 200 ms
	MaxBackoff time.Duration // longest such wait; default 5 s
}

// A Client is a connection to libvirt that comes back by itself. Run owns it; the
// other methods may be called at any time, by any goroutine.
type Client struct {
	cfg   Config
	log   *slog.Logger
	open  opener
	feed  *feed
	slots chan struct{}  // one token per call under way
	work  sync.WaitGroup // everything that is inside libvirt

	detachTimeout atomic.Int64 // nanoseconds

	mu      sync.Mutex
	running bool
	hv      hypervisor // nil while there is no connection
	down    *gpu.Error // why there is none
	since   time.Time  // of the last change of hv
	lost    chan error // tells Run that hv is gone
	late    map[*request]struct{}
}

// New returns a client that answers gpu.CodeUnavailable until Run has connected.
func New(cfg Config) *Client { return newClient(cfg, openLibvirt) }

func newClient(cfg Config, open opener) *Client {
	if cfg.URI == "" {
		cfg.URI = "qemu:///system"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		value *time.Duration
		dflt  time.Duration
	}{
		{&cfg.CallTimeout, 20 * time.Second},
		{&cfg.ChangeTimeout, 5 * time.Minute},
		{&cfg.DetachTimeout, 30 * time.Second},
		{&cfg.MinBackoff, 200 * time.Millisecond},
		{&cfg.MaxBackoff, 5 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.dflt
		}
	}
	c := &Client{
		cfg:   cfg,
		log:   cfg.Log,
		open:  open,
		feed:  newFeed(),
		slots: make(chan struct{}, maxCalls),
		down:  gpu.Errorf(gpu.CodeUnavailable, "cannot reach libvirt at %q: not connected yet", cfg.URI),
		since: time.Now(),
		late:  map[*request]struct{}{},
	}
	c.SetDetachTimeout(cfg.DetachTimeout)
	return c
}

// SetDetachTimeout changes how long a guest may take to let go of a device, from the next
// detach on.
func (c *Client) SetDetachTimeout(d time.Duration) { c.detachTimeout.Store(int64(d)) }

// Events tells of changes of VMs, to one listener, while Run runs. Events are
// hints: whoever gets one looks again. One with an empty UUID means: look again
// at everything; they come after every connect and when the listener was too
// slow. The channel is never closed.
func (c *Client) Events() <-chan gpu.VMEvent { return c.feed.out }

// Info tells what libvirt is and whether it answers.
type Info struct {
	URI        string
	Connected  bool
	Since      time.Time // of the last connect or disconnect
	Reason     string    // why it is not connected, empty if it is
	Driver     string    // "QEMU"
	Library    string    // version of libvirt at the other end
	Hypervisor string    // version of QEMU, empty if there is none
	LateCalls  int       // calls that libvirt has not answered though their callers have gone
}

// Info returns the state of the connection. It fails only if libvirt is
// connected and does not tell its versions; the other fields are valid then.
func (c *Client) Info(ctx context.Context) (Info, error) {
	c.mu.Lock()
	info := Info{URI: c.cfg.URI, Connected: c.hv != nil, Since: c.since, LateCalls: len(c.late)}
	if c.hv == nil {
		info.Reason = c.down.Error()
	}
	c.mu.Unlock()
	if !info.Connected {
		return info, nil
	}
	v, err := call(ctx, c, request{what: "versions"}, hypervisor.Versions)
	if err != nil {
		return info, fault(err, "cannot read the versions of libvirt")
	}
	info.Driver, info.Library, info.Hypervisor = v.driver, v.library, v.hypervisor
	return info, nil
}

// LibvirtVersion returns the version of the libvirt that is connected: "11.3.0".
func (c *Client) LibvirtVersion(ctx context.Context) (string, error) {
	v, err := call(ctx, c, request{what: "versions"}, hypervisor.Versions)
	if err != nil {
		return "", fault(err, "cannot read the version of libvirt")
	}
	return v.library, nil
}

// VM returns a VM by UUID, or by name if no VM has that UUID.
func (c *Client) VM(ctx context.Context, nameOrUUID string) (gpu.VM, error) {
	id, err := parseUUID(nameOrUUID)
	if err == nil {
		vm, err := c.read(ctx, id, false)
		if err == nil || gpu.CodeOf(err) != gpu.CodeVMNotFound {
			return vm, err
		}
	}
	id, err = call(ctx, c, request{what: "lookup"}, func(hv hypervisor) (string, error) {
		return hv.Lookup(nameOrUUID)
	})
	if err != nil {
		return gpu.VM{}, fault(err, "cannot find VM %q", nameOrUUID)
	}
	return c.read(ctx, id, false)
}

// VMHead is VM for who need not know more than which VM it is and what it can be
// given: of its devices, and of a definition that cannot be read, it says nothing.
func (c *Client) VMHead(ctx context.Context, nameOrUUID string) (gpu.VMHead, error) {
	find := func(id, name string) (gpu.VMHead, error) {
		return call(ctx, c, request{what: "find", vm: id}, func(hv hypervisor) (gpu.VMHead, error) {
			return hv.Head(id, name)
		})
	}
	head, err := gpu.VMHead{}, error(nil)
	id, notUUID := parseUUID(nameOrUUID)
	if notUUID == nil {
		head, err = find(id, "")
	}
	if notUUID != nil || isCode(err, libvirt.ERR_NO_DOMAIN) {
		head, err = find("", nameOrUUID)
	}
	if err != nil {
		e := fault(err, "cannot find VM %q", nameOrUUID)
		if e.Code == gpu.CodeConflict {
			e.Code = gpu.CodeUnavailable // as with reading
		}
		return gpu.VMHead{}, e
	}
	return head, nil
}

// VMs returns all VMs. VMs that could not be read are missing from the answer and
// named by the error, as blockers too; the others are still returned. Whoever
// concludes that no VM has a device needs a nil error (T23).
func (c *Client) VMs(ctx context.Context) ([]gpu.VM, error) {
	ids, err := call(ctx, c, request{what: "list"}, hypervisor.Domains)
	if err != nil {
		return nil, fault(err, "cannot list VMs")
	}
	vms := make([]gpu.VM, len(ids))
	errs := make([]error, len(ids))
	next := make(chan int)
	var wg sync.WaitGroup
	for range maxCalls / 2 { // the other half is for those who wait for one VM
		wg.Go(func() {
			for i := range next {
				vms[i], errs[i] = c.read(ctx, ids[i], false)
			}
		})
	}
	for i := range ids {
		next <- i
	}
	close(next)
	wg.Wait()
	return readable(ids, vms, errs)
}

// readable sorts out what VMs has read.
func readable(ids []string, vms []gpu.VM, errs []error) ([]gpu.VM, error) {
	good := make([]gpu.VM, 0, len(vms))
	var bad []error
	var blockers []gpu.Blocker
	for i, vm := range vms {
		switch {
		case errs[i] == nil:
			good = append(good, vm)
		case gpu.CodeOf(errs[i]) == gpu.CodeVMNotFound: // it went away since the list was made
		default:
			bad = append(bad, errs[i])
			blockers = append(blockers, gpu.Blocker{Kind: "vm", ID: ids[i], Note: "cannot be read"})
		}
	}
	if len(bad) == 0 {
		return good, nil
	}
	return good, gpu.Errorf(gpu.CodeUnavailable, "cannot read %d of %d VMs: %w", len(bad), len(vms), errors.Join(bad...)).
		WithBlockers(blockers...)
}

// read returns one VM. A brief reading does without autostart and tells of the
// state only whether the VM runs.
func (c *Client) read(ctx context.Context, id string, brief bool) (gpu.VM, error) {
	def, err := call(ctx, c, request{what: "read", vm: id}, func(hv hypervisor) (definition, error) {
		return hv.Read(id, brief)
	})
	if err != nil {
		return gpu.VM{}, unreadable(id, err)
	}
	return understand(id, def)
}

// unreadable makes the error of a reading that libvirt has failed at.
func unreadable(id string, err error) *gpu.Error {
	e := fault(err, "cannot read VM %q", id)
	if e.Code == gpu.CodeConflict {
		e.Code = gpu.CodeUnavailable // a reading conflicts with nothing: libvirt just failed
	}
	return e
}

// understand is interpret for who asked for the VM of a UUID.
func understand(id string, def definition) (gpu.VM, error) {
	vm, err := interpret(def)
	if err == nil && vm.UUID != id {
		err = errors.New("libvirt answered with VM " + vm.UUID)
	}
	if err != nil {
		return gpu.VM{}, fault(err, "cannot read VM %q", id)
	}
	return vm, nil
}
