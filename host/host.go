// Package host holds the use cases: it picks a GPU for a wish, plans the
// operation that carries it out, gives the steps their hands, and compares what
// was asked with what is there. It never keeps what the kernel or libvirt says.
package host

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

// Store is what the host needs of the store: reading records, and writing them
// where no operation is needed.
type Store interface {
	GPURecords() ([]gpu.GPURecord, error)
	PartitionRecords() ([]gpu.PartitionRecord, error)
	PartitionRecord(id string) (gpu.PartitionRecord, error)
	AssignmentRecords() ([]gpu.AssignmentRecord, error)
	AssignmentRecord(name string) (gpu.AssignmentRecord, error)
	IdempotencyRecord(key string) (gpu.IdempotencyRecord, error)
	Apply(rows ...operation.Row) error
	Backup(ctx context.Context, w io.Writer) (int64, error)
}

// VMs is what the host does to VMs. All calls are idempotent. AttachNew is Attach of a
// device that was made a moment ago, to all definitions of a VM that runs: it may
// leave it to libvirt to find that the device is there.
type VMs interface {
	Attach(ctx context.Context, vmUUID string, dev gpu.Hostdev, scope gpu.Scope) error
	AttachNew(ctx context.Context, vmUUID string, dev gpu.Hostdev, scope gpu.Scope) error
	Detach(ctx context.Context, vmUUID, alias string, scope gpu.Scope) error
}

// Config is what New needs.
type Config struct {
	Store     Store
	Engine    *operation.Engine
	Inventory *inventory.Inventory
	VMs       VMs
	Log       *slog.Logger
	Now       func() time.Time
	NewUUID   func() string
	HostID    string
	BootID    string
	Simulated bool
	// DetachTimeout is how long a guest may take to let a device go; default 30 s.
	DetachTimeout time.Duration
	// Placement is how a GPU is chosen where a wish does not say; default gpu.Pack.
	Placement gpu.Placement
	// DrainTimeout is how long steps under way may go on after the end; default 45 s.
	DrainTimeout time.Duration
	Patience     Patience // zero: DefaultPatience
}

// Host carries out the use cases.
type Host struct {
	cfg   Config
	hub   *hub
	state atomic.Pointer[gpu.HostState]
	dirty chan struct{}     // holds one token where something changed since drift was last looked for
	drift map[string]string // what was reported as drifted, with the reason; watchDrift's own
	// compared is what came of that; nil: it has not been done.
	compared atomic.Pointer[gpu.Comparison]
	// repairs is how each layout was put back last; watchDrift's own.
	repairs map[gpu.ID]repair

	detachTimeout atomic.Int64 // nanoseconds
	placement     atomic.Pointer[gpu.Placement]

	// planning serialises snapshot, plan and Add: between them nothing that we do
	// ourselves changes the picture a plan was made from.
	planning sync.Mutex
}

// New returns a Host and registers its steps with the engine.
func New(cfg Config) *Host {
	if cfg.Patience == (Patience{}) {
		cfg.Patience = DefaultPatience()
	}
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 45*time.Second)
	h := &Host{cfg: cfg, hub: newHub(cfg.Now), dirty: make(chan struct{}, 1), repairs: map[gpu.ID]repair{}}
	h.SetDetachTimeout(cmp.Or(cfg.DetachTimeout, 30*time.Second))
	h.SetPlacement(cmp.Or(cfg.Placement, gpu.Pack))
	h.setState(gpu.HostStarting)
	h.register(cfg.Engine)
	return h
}

// SetDetachTimeout changes how long a guest may take to let a device go, from the next
// detach on.
func (h *Host) SetDetachTimeout(d time.Duration) { h.detachTimeout.Store(int64(d)) }

// Placement is how a GPU is chosen where a wish does not say.
func (h *Host) Placement() gpu.Placement { return *h.placement.Load() }

// SetPlacement changes it, for what is asked for from now on.
func (h *Host) SetPlacement(p gpu.Placement) { h.placement.Store(&p) }

func (h *Host) setState(s gpu.HostState) { h.state.Store(&s) }

// Run resumes unfinished operations, then follows changes until ctx ends. The steps under
// way then come to their end first, as long as DrainTimeout allows: a driver that is being
// rebound, or a guest that is letting go of a device, is not left half way.
func (h *Host) Run(ctx context.Context) error {
	h.setState(gpu.HostRestoring)
	if err := h.cfg.Engine.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	h.setState(gpu.HostReady)
	var watch sync.WaitGroup
	defer watch.Wait()
	// Before what watches is waited for: a question to a driver may take its time.
	defer func() {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.cfg.DrainTimeout)
		defer cancel()
		h.cfg.Engine.Drain(drain)
		h.cfg.Engine.Stop()
	}()
	watch.Go(func() { h.watchDrift(ctx) })
	h.cfg.Inventory.Follow(ctx, h.changed)
	return nil
}

// Info describes the host and says whether all is well.
func (h *Host) Info(ctx context.Context) gpu.HostInfo {
	info := gpu.HostInfo{
		HostID: h.cfg.HostID, BootID: h.cfg.BootID, Simulated: h.cfg.Simulated,
		State: *h.state.Load(), Reasons: []string{},
	}
	if info.State != gpu.HostReady {
		return info
	}
	looks, blind, _ := h.survey(ctx)
	if blind != nil {
		info.Reasons = append(info.Reasons, blind.Error())
	}
	for _, l := range looks {
		g := l.GPU
		for _, c := range g.Conditions {
			if c.Status && c.Type == gpu.Stuck {
				info.Reasons = append(info.Reasons, "gpu "+string(g.ID)+": "+c.Message)
			}
		}
	}
	if _, err := h.cfg.Inventory.VMs(ctx); err != nil {
		info.Reasons = append(info.Reasons, err.Error())
	}
	if len(info.Reasons) > 0 {
		info.State = gpu.HostDegraded
	}
	return info
}

// Backup writes a consistent copy of the store.
func (h *Host) Backup(ctx context.Context, w io.Writer) error {
	_, err := h.cfg.Store.Backup(ctx, w)
	return err
}

// VMs lists the VMs with the names of their assignments.
func (h *Host) VMs(ctx context.Context) ([]gpu.VM, error) {
	vms, err := h.cfg.Inventory.VMs(ctx)
	if err != nil {
		return nil, err
	}
	records, err := h.cfg.Store.AssignmentRecords()
	if err != nil {
		return nil, err
	}
	for i := range vms {
		vms[i].Assignments = assignmentsOf(vms[i].UUID, records)
	}
	return vms, nil
}

// VM finds one by UUID or name.
func (h *Host) VM(ctx context.Context, nameOrUUID string) (gpu.VM, error) {
	vm, err := h.cfg.Inventory.VM(ctx, nameOrUUID)
	if err != nil {
		return gpu.VM{}, err
	}
	records, err := h.cfg.Store.AssignmentRecords()
	if err != nil {
		return gpu.VM{}, err
	}
	vm.Assignments = assignmentsOf(vm.UUID, records)
	return vm, nil
}

func assignmentsOf(vm string, records []gpu.AssignmentRecord) []string {
	names := []string{}
	for _, r := range records {
		if r.Wish.VM == vm {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Problem describes an error for an operation's record.
func Problem(err error) operation.Problem {
	p := operation.Problem{Code: string(gpu.CodeOf(err)), Detail: err.Error()}
	if e, ok := errors.AsType[*gpu.Error](err); ok {
		p.Hint = e.Hint
		for _, b := range e.Blockers {
			p.Blockers = append(p.Blockers, operation.Blocker(b))
		}
	}
	return p
}
