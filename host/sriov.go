package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

const (
	kindVFs = "gpu.sriov"
	stepVFs = "sriov.set"
)

// vfsArgs are the arguments of sriov.set.
type vfsArgs struct {
	GPU      gpu.ID       `json:"gpu"`
	Identity gpu.Identity `json:"identity"`
	Num      int          `json:"num"`
	Was      int          `json:"was"` // how many there were before
}

// virtualizer returns the backend that turns virtual functions on and off, and the GPU
// as it is now.
func (h *Host) virtualizer(ctx context.Context, id gpu.ID) (gpu.Virtualizer, inventory.Look, error) {
	l, err := h.look(ctx, id)
	if err != nil {
		return nil, l, err
	}
	if l.GPU.SRIOV.TotalVFs == 0 {
		if why := unreadable(l.GPU); why != "" {
			return nil, l, gpu.Errorf(gpu.CodeUnavailable, "cannot tell whether gpu %q can have virtual functions: %s", id, why)
		}
		return nil, l, gpu.Errorf(gpu.CodeNotFound, "cannot find virtual functions of gpu %q: it has no SR-IOV", id)
	}
	v, err := virtualizerOf(h.cfg.Inventory)
	return v, l, err
}

func virtualizerOf(inv *inventory.Inventory) (gpu.Virtualizer, error) {
	b, err := inv.Backend(gpu.KindVF)
	if err != nil {
		return nil, err
	}
	v, ok := b.(gpu.Virtualizer)
	if !ok {
		return nil, gpu.Errorf(gpu.CodeInvalid, "nothing on this host can turn virtual functions on")
	}
	return v, nil
}

// VFs returns how many virtual functions a GPU should have, and which it has.
func (h *Host) VFs(ctx context.Context, id gpu.ID) (gpu.VFState, error) {
	v, l, err := h.virtualizer(ctx, id)
	if err != nil {
		return gpu.VFState{}, err
	}
	s, _, err := h.vfState(ctx, v, l)
	return s, err
}

// vfState returns the partitions of the GPU, too.
func (h *Host) vfState(ctx context.Context, v gpu.Virtualizer, l inventory.Look) (s gpu.VFState, on []gpu.Partition, err error) {
	id := l.GPU.ID
	s = gpu.VFState{GPU: id, TotalVFs: l.GPU.SRIOV.TotalVFs}
	functions, err := v.Functions(ctx, id)
	if err != nil {
		return s, nil, err
	}
	rec, err := h.gpuRecord(l.GPU)
	if err != nil {
		return s, nil, err
	}
	on, err = h.partitionsOf(ctx, l)
	if err != nil {
		return s, nil, err
	}
	vms, err := h.cfg.Inventory.VMs(ctx)
	if err != nil {
		return s, nil, err
	}
	for _, f := range functions {
		s.Functions = append(s.Functions, h.functionState(ctx, f, on, vms))
	}
	s.Wanted = rec.VFs
	s.Equal = rec.VFs == nil || *rec.VFs == len(functions)
	return s, on, nil
}

func (h *Host) functionState(ctx context.Context, f gpu.Function, on []gpu.Partition, vms []gpu.VM) gpu.FunctionState {
	// Only a function that a VFIO driver has can be open, and that is a partition.
	for _, p := range on {
		if onFunction(p, f) && p.State != gpu.PartitionMissing {
			return gpu.FunctionState{Function: f, Partition: p.ID, Holders: withHolders(ctx, h.cfg.Inventory, p, vms, nil).Holders}
		}
	}
	out := gpu.FunctionState{Function: f, Holders: []gpu.Holder{}}
	for _, vm := range vms {
		if hasDevice(vm, f.PCIAddress) {
			out.Holders = append(out.Holders, gpu.Holder{Kind: "vm", ID: vm.UUID, Name: vm.Name})
		}
	}
	return out
}

// onFunction reports whether a partition is on a virtual function, or is that function.
func onFunction(p gpu.Partition, f gpu.Function) bool {
	return p.Parent == f.PCIAddress || p.Handle.PCIAddress == f.PCIAddress
}

// hasDevice reports whether a definition of a VM names a PCI device of the host.
func hasDevice(vm gpu.VM, address string) bool {
	return slices.ContainsFunc(vm.Hostdevs, func(d gpu.Hostdev) bool { return d.Handle.PCIAddress == address })
}

// taken lists the PCI devices that definitions of VMs name. libvirt reserves none of
// them for a VM that is off, and the kernel knows nothing of it.
func (h *Host) taken(ctx context.Context, kind gpu.Kind) ([]gpu.Handle, error) {
	if kind == gpu.KindMIG { // no VM can have one
		return nil, nil
	}
	vms, err := h.cfg.Inventory.VMs(ctx)
	if err != nil {
		return nil, err
	}
	var out []gpu.Handle
	for _, vm := range vms {
		for _, d := range vm.Hostdevs {
			if d.Handle.PCIAddress != "" {
				out = append(out, d.Handle)
			}
		}
	}
	return out, nil
}

// vfsUnused refuses to change the number of virtual functions of a GPU while anything
// is on it: those that are there go first, and a driver may be bound anew for it, which
// takes MIG instances and mediated devices with it.
func vfsUnused(s gpu.VFState, on []gpu.Partition, n int) error {
	if s.Wanted == nil && len(s.Functions) > 0 {
		return gpu.Errorf(gpu.CodeForeignDevice, "cannot change the virtual functions of gpu %q: somebody else has turned on the %d that are there", s.GPU, len(s.Functions)).
			WithHint("if nobody needs them, ask for these first, and then for others: gpuvirt sriov set %s %d", s.GPU, len(s.Functions))
	}
	var blockers []gpu.Blocker
	for _, p := range on {
		note := ""
		if p.State == gpu.PartitionMissing {
			if len(s.Functions) == 0 && s.Wanted != nil && *s.Wanted == n {
				continue // it waits for just these
			}
			note = "gpuvirt made it, and it is not there"
		}
		blockers = append(blockers, gpu.Blocker{Kind: "partition", ID: p.ID, Name: p.Profile, Note: note})
	}
	for _, f := range s.Functions {
		blockers = append(blockers, blockersOf(f.Holders, "it has virtual function "+f.PCIAddress)...)
	}
	if len(blockers) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeGPUBusy, "cannot change the virtual functions of gpu %q: something uses it", s.GPU).
		WithBlockers(blockers...).WithHint("detach its assignments and delete its partitions first")
}

// vfsPlan is what a number of virtual functions asks for: an operation, or rows alone
// where the GPU has as many.
type vfsPlan struct {
	op   operation.Plan
	rows []operation.Row
}

func (h *Host) planVFs(ctx context.Context, id gpu.ID, n int) (vfsPlan, error) {
	v, l, err := h.virtualizer(ctx, id)
	if err != nil {
		return vfsPlan{}, err
	}
	g := l.GPU
	if code, why := closed(g); code != "" {
		e := gpu.Errorf(code, "cannot change the virtual functions of gpu %q: %s", id, why)
		if code == gpu.CodeGPUUnmanaged {
			e.Hint = "put it under management first: gpuvirt gpu manage " + string(id)
		}
		return vfsPlan{}, e
	}
	if l.Err != nil {
		return vfsPlan{}, l.Err
	}
	if n < 0 || n > g.SRIOV.TotalVFs {
		return vfsPlan{}, gpu.Errorf(gpu.CodeInvalid, "cannot give gpu %q %d virtual functions: it can have 0 to %d", id, n, g.SRIOV.TotalVFs)
	}
	s, on, err := h.vfState(ctx, v, l)
	if err != nil {
		return vfsPlan{}, err
	}
	old, err := h.gpuRecord(g)
	if err != nil {
		return vfsPlan{}, err
	}
	p := vfsPlan{op: operation.Plan{Kind: kindVFs, Keys: []string{"gpu/" + string(id)}}}
	p.op.Summary = fmt.Sprintf("give gpu %s %d virtual functions", id, n)
	if old.VFs == nil || *old.VFs != n {
		now := old
		now.VFs = &n
		p.rows = append(p.rows, operation.Put(gpu.RecordGPU, string(id), now))
	}
	if len(s.Functions) == n {
		return p, nil
	}
	if err := vfsUnused(s, on, n); err != nil {
		return vfsPlan{}, err
	}
	if err := v.CheckVFs(ctx, id, n); err != nil {
		return vfsPlan{}, err
	}
	p.op.Rows = p.rows
	if len(p.rows) > 0 {
		p.op.Release = []operation.Row{operation.Put(gpu.RecordGPU, string(id), old)}
	}
	summary := fmt.Sprintf("turn on %d virtual functions of %s", n, id)
	if n == 0 {
		summary = "turn off the virtual functions of " + string(id)
	}
	p.op.Steps = []operation.PlanStep{{
		Kind: stepVFs, Summary: summary, Args: vfsArgs{GPU: id, Identity: g.Identity, Num: n, Was: len(s.Functions)},
	}}
	if n > 0 {
		p.op.Steps = append(p.op.Steps, h.vgpuStepsAfterVFs(ctx, g, old.VGPU)...)
	}
	return p, nil
}

// PutVFs starts giving a GPU n virtual functions. Where it has as many it returns no
// operation, and writes nothing that is written already.
func (h *Host) PutVFs(ctx context.Context, actor string, id gpu.ID, n int) (gpu.VFState, *operation.Operation, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	busy := h.held([]string{"gpu/" + string(id)}) // what is read beside an operation may hold no more when it is over
	p, err := h.planVFs(ctx, id, n)
	if err := cmp.Or(err, busy); err != nil {
		return gpu.VFState{}, nil, err
	}
	if len(p.op.Steps) > 0 {
		p.op.Actor = actor
		op, err := h.add(ctx, p.op)
		if err != nil {
			return gpu.VFState{}, nil, err
		}
		return gpu.VFState{}, &op, nil
	}
	if len(p.rows) > 0 {
		if err := h.cfg.Store.Apply(p.rows...); err != nil {
			return gpu.VFState{}, nil, err
		}
		h.cfg.Log.Info("virtual functions recorded", "gpu", id, "actor", actor, "num", n)
		h.hub.emit("gpu.changed", string(id), map[string]string{"num_vfs": strconv.Itoa(n)})
	}
	s, err := h.VFs(ctx, id)
	return s, nil, err
}

// PlanPutVFs is the dry run of PutVFs.
func (h *Host) PlanPutVFs(ctx context.Context, id gpu.ID, n int) (gpu.Plan, error) {
	if _, _, err := h.virtualizer(ctx, id); err != nil {
		return gpu.Plan{}, err
	}
	p, err := h.planVFs(ctx, id, n)
	plan, err := h.plan(p.op, err)
	if err != nil || plan.Refusal != nil {
		return plan, err
	}
	if len(p.op.Steps) == 0 && len(p.rows) > 0 {
		plan.Summary, plan.Changes = fmt.Sprintf("record the %d virtual functions of gpu %s", n, id), true
		plan.Steps = append(plan.Steps, gpu.PlanStep{Kind: "gpu.record", Summary: "record what is there as wanted"})
	}
	return plan, nil
}

func (h *Host) doVFs(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a vfsArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	err := h.setVFs(ctx, a, a.Num)
	if gpu.CodeOf(err) == gpu.CodeUnavailable && t.Resumed() {
		err = h.patient(t, err) // a GPU that is not there just after boot is not gone
	}
	return nil, unclean(err)
}

// undoVFs gives the GPU as many as it had. Where somebody uses those that are there
// meanwhile, they stay.
func (h *Host) undoVFs(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a vfsArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	err := h.patient(t, h.setVFs(ctx, a, a.Was))
	if err == nil && a.Was > 0 {
		h.vgpuAgain(ctx, a)
	}
	if gpu.CodeOf(err) == gpu.CodeGPUBusy {
		if _, again := errors.AsType[*operation.RetryError](err); !again {
			h.cfg.Log.WarnContext(ctx, "the virtual functions stay, as somebody uses them", "gpu", a.GPU, "err", err)
			return nil, nil
		}
	}
	return nil, err
}

func (h *Host) setVFs(ctx context.Context, a vfsArgs, n int) error {
	v, l, err := h.virtualizer(ctx, a.GPU)
	if err != nil {
		return err
	}
	if !sameCard(a.Identity, l.GPU.Identity) {
		return gpu.Errorf(gpu.CodeDrift, "another card (%s) is where %s was when its virtual functions were asked for", describe(l.GPU.Identity), describe(a.Identity))
	}
	s, on, err := h.vfState(ctx, v, l)
	if err != nil || len(s.Functions) == n {
		return err
	}
	// An instance that an undo has just removed, or that is to be made later, keeps nothing on;
	// one of which that is not known does.
	on = slices.DeleteFunc(on, func(p gpu.Partition) bool {
		return p.Kind == gpu.KindMIG && p.Instance == "" && p.State != gpu.PartitionMade
	})
	if err := vfsUnused(s, on, n); err != nil {
		return err
	}
	return v.SetVFs(context.WithoutCancel(ctx), a.GPU, n)
}
