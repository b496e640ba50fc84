package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

const (
	gpuA    = "0000:41:00.0" // managed, has room for two
	gpuB    = "0000:c1:00.0" // not managed
	web1    = "0b6f9d3a-6f0c-4a55-8d6e-3f1c9a5e7b21"
	db1     = "77777777-6f0c-4a55-8d6e-3f1c9a5e7b21"
	mdev1   = "aaaaaaaa-1111-4222-8333-bbbbbbbbbbbb"
	slotID  = "0000:41:00.0/mig/0"
	profile = "mbochs-small"
)

var born = time.Date(2026, 11, 23, 12, 0, 0, 0, time.FixedZone("CET", 3600))

// fakeHost is a host with rules, in memory.
type fakeHost struct {
	t        testing.TB
	ops      *fakeOps
	readOnly bool // a write fails the test

	mu          sync.Mutex
	err         error // what every call returns, if not nil
	blind       error // why not all profiles are known
	info        gpu.HostInfo
	mirrors     []string // what is wrong with their folder
	gpus        map[gpu.ID]gpu.GPU
	vms         []gpu.VM
	partitions  map[string]gpu.Partition
	assignments map[string]gpu.Assignment
	idempotency map[string]struct{ request, op string }
	held        string // the operation that holds everything
	writes      int
	backup      func(w io.Writer) error
	events      []gpu.Event // all that are kept
	dropped     uint64      // the newest event that is no longer kept
	listeners   map[chan gpu.Event]bool
	panics      bool
}

func newFakeHost(t testing.TB) *fakeHost {
	h := &fakeHost{
		t: t, ops: &fakeOps{ops: map[string]operation.Operation{}, changed: make(chan struct{})},
		info: gpu.HostInfo{HostID: "host", BootID: "boot", State: gpu.HostReady},
		gpus: map[gpu.ID]gpu.GPU{
			gpuA: {
				ID: gpuA, Vendor: "NVIDIA", Model: "L40S", PCIAddress: gpuA, NUMANode: 0, Managed: true,
				Kinds: []gpu.Kind{gpu.KindMdev}, Labels: map[string]string{"rack": "b7"},
				Modes:      gpu.Modes{ECC: &gpu.ECC{Pending: true}, Compute: gpu.ComputeDefault},
				Conditions: []gpu.Condition{{Type: gpu.Ready, Status: true, Reason: "Healthy", Since: born}},
			},
			gpuB:     {ID: gpuB, Vendor: "NVIDIA", Model: "A16", PCIAddress: gpuB, NUMANode: -1},
			"mbochs": {ID: "mbochs", Vendor: "mbochs", NUMANode: -1, Managed: true},
		},
		vms: []gpu.VM{
			{UUID: web1, Name: "web1", State: gpu.VMRunning, Persistent: true, Hostdevs: []gpu.Hostdev{{Alias: "ua-x", Live: true}}},
			{UUID: db1, Name: "db 1 ü", State: gpu.VMShutoff, Persistent: true},
		},
		partitions: map[string]gpu.Partition{
			mdev1:  {ID: mdev1, GPU: gpuA, Kind: gpu.KindMdev, Profile: profile, Origin: gpu.OriginManaged, State: gpu.PartitionMade, Created: born, Holders: []gpu.Holder{{Kind: "vm", ID: web1, Name: "web1"}}, Observed: seen()},
			slotID: {ID: slotID, GPU: gpuA, Kind: gpu.KindMIG, Profile: "1g.10gb+me", Slot: "0", Origin: gpu.OriginForeign, State: gpu.PartitionMade},
		},
		assignments: map[string]gpu.Assignment{},
		idempotency: map[string]struct{ request, op string }{},
		listeners:   map[chan gpu.Event]bool{},
	}
	h.assignments["old"] = gpu.Assignment{
		Name: "old", Wish: gpu.Wish{VM: web1, Profile: profile, Placement: gpu.Pack, Hotplug: gpu.HotplugAuto},
		VMName: "web1", Partition: mdev1, GPU: gpuA, Created: born, State: gpu.AssignmentAttached, Live: true, Config: true,
	}
	return h
}

// enter begins every call; the caller holds the lock until it is done.
func (h *fakeHost) enter() (leave func(), err error) {
	h.mu.Lock()
	if h.panics {
		h.mu.Unlock()
		panic("a defect")
	}
	return h.mu.Unlock, h.err
}

func (h *fakeHost) write(what string) error {
	if h.readOnly {
		h.t.Errorf("%s was called, but nothing may write", what)
	}
	if h.held != "" {
		return fmt.Errorf("cannot %s: %w", what, &operation.ConflictError{Key: "gpu/" + gpuA, Holder: h.held, Summary: "other"})
	}
	h.writes++
	return nil
}

func (h *fakeHost) Info(context.Context) gpu.HostInfo {
	leave, _ := h.enter()
	defer leave()
	return h.info
}

func (h *fakeHost) GPUs(context.Context) ([]gpu.GPU, error) {
	leave, err := h.enter()
	defer leave()
	return slices.Collect(maps.Values(h.gpus)), err
}

func (h *fakeHost) GPU(_ context.Context, id gpu.ID) (gpu.GPU, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.GPU{}, err
	}
	return h.gpu(id)
}

func (h *fakeHost) gpu(id gpu.ID) (gpu.GPU, error) {
	g, ok := h.gpus[id]
	if !ok {
		return g, gpu.Errorf(gpu.CodeNotFound, "cannot find gpu %q", id)
	}
	return g, nil
}

func (h *fakeHost) PatchGPU(_ context.Context, _ string, id gpu.ID, p gpu.GPUPatch, dryRun bool) (gpu.GPU, gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.GPU{}, gpu.Plan{}, err
	}
	g, err := h.gpu(id)
	if err != nil {
		return g, gpu.Plan{}, err
	}
	if dryRun {
		return g, gpu.Plan{Summary: "patch", Changes: true}, nil
	}
	if err := h.write("PatchGPU"); err != nil {
		return g, gpu.Plan{}, err
	}
	if p.Managed != nil {
		g.Managed = *p.Managed
	}
	if p.Quarantined != nil {
		g.Quarantined = *p.Quarantined
	}
	if p.Placement != nil {
		g.Placement = *p.Placement
	}
	if p.Policy != nil {
		g.Policy = *p.Policy
	}
	if p.Labels != nil {
		g.Labels = *p.Labels
	}
	h.gpus[id] = g
	return g, gpu.Plan{}, nil
}

func (h *fakeHost) Profiles(_ context.Context, id gpu.ID) (profiles []gpu.Profile, blind, err error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return nil, nil, err
	}
	if _, err := h.gpu(id); err != nil {
		return nil, nil, err
	}
	return []gpu.Profile{
		{Name: profile, Kind: gpu.KindMdev, GPU: id, MaxInstances: 2, Available: h.room()},
		{Name: "1g.10gb+me", Kind: gpu.KindMIG, GPU: id, Attributes: map[string]string{"name": "x"}},
	}, h.blind, nil
}

func (h *fakeHost) room() int {
	n := 2
	for _, p := range h.partitions {
		if p.Kind == gpu.KindMdev {
			n--
		}
	}
	return max(n, 0)
}

func (h *fakeHost) Capacity(_ context.Context, name string) ([]gpu.ProfileCapacity, error) {
	leave, err := h.enter()
	defer leave()
	if err == nil && name != "" && name != profile {
		err = gpu.Errorf(gpu.CodeProfileUnknown, "cannot find profile %q", name)
	}
	if err != nil {
		return nil, err
	}
	return []gpu.ProfileCapacity{{Profile: profile, Kind: gpu.KindMdev, Available: h.room(), GPUs: []gpu.GPUCapacity{{GPU: gpuA, Available: h.room()}}}}, nil
}

func (h *fakeHost) Partitions(context.Context) ([]gpu.Partition, error) {
	leave, err := h.enter()
	defer leave()
	return slices.Collect(maps.Values(h.partitions)), err
}

func (h *fakeHost) Partition(_ context.Context, id string) (gpu.Partition, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.Partition{}, err
	}
	return h.partition(id)
}

func (h *fakeHost) partition(id string) (gpu.Partition, error) {
	p, ok := h.partitions[id]
	if !ok {
		return p, gpu.Errorf(gpu.CodeNotFound, "cannot find partition %q", id)
	}
	return p, nil
}

func (h *fakeHost) fits(id gpu.ID, name string) error {
	if id != "" {
		g, err := h.gpu(id)
		if err != nil {
			return err
		}
		if !g.Managed {
			return gpu.Errorf(gpu.CodeGPUUnmanaged, "cannot use gpu %q: it is not managed", id)
		}
	}
	if name != profile {
		return gpu.Errorf(gpu.CodeProfileUnknown, "no gpu can make profile %q", name)
	}
	if h.room() == 0 {
		return gpu.Errorf(gpu.CodeNoCapacity, "no gpu has room for %q", name).WithBlockers(gpu.Blocker{Kind: "partition", ID: mdev1})
	}
	return nil
}

func (h *fakeHost) CreatePartition(_ context.Context, actor string, w gpu.PartitionWish, idem gpu.Idempotency) (operation.Operation, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return operation.Operation{}, err
	}
	if known, ok := h.idempotency[idem.Key]; ok && idem.Key != "" {
		if known.request != idem.Request {
			return operation.Operation{}, gpu.Errorf(gpu.CodeConflict, "the key was used for another request")
		}
		return h.ops.Get(known.op)
	}
	if err := errors.Join(h.fits(w.GPU, w.Profile)); err != nil {
		return operation.Operation{}, err
	}
	if err := h.write("CreatePartition"); err != nil {
		return operation.Operation{}, err
	}
	op := h.ops.add("make", actor, operation.Running)
	id := fmt.Sprintf("%s-made", strings.ToLower(op.ID))
	h.partitions[id] = gpu.Partition{ID: id, GPU: gpuA, Kind: gpu.KindMdev, Profile: w.Profile, Origin: gpu.OriginManaged, State: gpu.PartitionMaking, Created: born}
	h.idempotency[idem.Key] = struct{ request, op string }{idem.Request, op.ID}
	return op, nil
}

func (h *fakeHost) PlanPartition(_ context.Context, w gpu.PartitionWish) (gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	return gpu.Plan{
		Summary: "make", Steps: []gpu.PlanStep{{Kind: "mdev.make", Summary: "make it"}}, Changes: true,
		Refusal: h.fits(w.GPU, w.Profile),
	}, err
}

func (h *fakeHost) DeletePartition(_ context.Context, actor, id string) (operation.Operation, error) {
	leave, err := h.enter()
	defer leave()
	if err == nil {
		err = h.mayDelete(id)
	}
	if err == nil {
		err = h.write("DeletePartition")
	}
	if err != nil {
		return operation.Operation{}, err
	}
	delete(h.partitions, id)
	return h.ops.add("remove", actor, operation.Running), nil
}

func (h *fakeHost) AdoptPartition(_ context.Context, _, id string, dryRun bool) (gpu.Partition, gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.Partition{}, gpu.Plan{}, err
	}
	p, err := h.partition(id)
	if err != nil || dryRun {
		return p, gpu.Plan{Summary: "adopt", Changes: true}, err
	}
	if err := h.write("AdoptPartition"); err != nil {
		return p, gpu.Plan{}, err
	}
	p.Origin = gpu.OriginManaged
	h.partitions[id] = p
	return p, gpu.Plan{}, nil
}

func (h *fakeHost) mayDelete(id string) error {
	p, err := h.partition(id)
	if err == nil && p.Origin == gpu.OriginForeign {
		err = gpu.Errorf(gpu.CodeForeignDevice, "cannot remove partition %q: it is not ours", id)
	}
	return err
}

func (h *fakeHost) PlanDeletePartition(_ context.Context, id string) (gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.Plan{}, err
	}
	return gpu.Plan{Summary: "remove", Changes: true, Refusal: h.mayDelete(id)}, nil
}

func (h *fakeHost) VMs(context.Context) ([]gpu.VM, error) {
	leave, err := h.enter()
	defer leave()
	return slices.Clone(h.vms), err
}

func (h *fakeHost) VM(_ context.Context, name string) (gpu.VM, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.VM{}, err
	}
	return h.vm(name)
}

func (h *fakeHost) CheckStart(_ context.Context, vm string, devices []gpu.Handle) ([]gpu.StartFinding, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil || vm != web1 {
		return nil, err
	}
	return []gpu.StartFinding{{Code: gpu.CodeDrift, Message: fmt.Sprintf("not with %v", devices), Assignment: "old", Partition: mdev1}}, nil
}

func (h *fakeHost) vm(name string) (gpu.VM, error) {
	for _, vm := range h.vms {
		if vm.UUID == name || vm.Name == name {
			return vm, nil
		}
	}
	return gpu.VM{}, gpu.Errorf(gpu.CodeVMNotFound, "cannot find vm %q", name)
}

func (h *fakeHost) Assignments(context.Context) ([]gpu.Assignment, error) {
	leave, err := h.enter()
	defer leave()
	return slices.Collect(maps.Values(h.assignments)), err
}

func (h *fakeHost) Assignment(_ context.Context, name string) (gpu.Assignment, error) {
	leave, err := h.enter()
	defer leave()
	a, ok := h.assignments[name]
	if err == nil && !ok {
		err = gpu.Errorf(gpu.CodeNotFound, "cannot find assignment %q", name)
	}
	return a, err
}

// mayPut returns the stored assignment if the wish is the same.
func (h *fakeHost) mayPut(name string, w gpu.Wish) (gpu.Assignment, gpu.Wish, error) {
	vm, err := h.vm(w.VM)
	if err != nil {
		return gpu.Assignment{}, w, err
	}
	w.VM = vm.UUID
	if a, ok := h.assignments[name]; ok {
		w.Placement = cmp.Or(w.Placement, a.Wish.Placement)
		if a.Wish == w {
			return a, w, nil
		}
		err := gpu.Errorf(gpu.CodeConflict, "cannot change assignment %q", name)
		err.Diff = map[string][2]string{"profile": {a.Wish.Profile, w.Profile}}
		return gpu.Assignment{}, w, err
	}
	return gpu.Assignment{}, w, h.fits(w.GPU, w.Profile)
}

func (h *fakeHost) PutAssignment(_ context.Context, actor, name string, w gpu.Wish) (gpu.Assignment, *operation.Operation, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.Assignment{}, nil, err
	}
	a, w, err := h.mayPut(name, w)
	if err != nil || a.Name != "" {
		return a, nil, err
	}
	if err := h.write("PutAssignment"); err != nil {
		return a, nil, err
	}
	op := h.ops.add("attach", actor, operation.Running)
	part := gpu.Partition{ID: strings.ToLower(op.ID) + "-part", GPU: gpuA, Kind: gpu.KindMdev, Profile: w.Profile, Origin: gpu.OriginManaged, State: gpu.PartitionMade}
	h.partitions[part.ID] = part
	a = gpu.Assignment{Name: name, Wish: w, VMName: "web1", Partition: part.ID, GPU: gpuA, Created: born, State: gpu.AssignmentAttaching, Operation: op.ID}
	h.assignments[name] = a
	return a, &op, nil
}

func (h *fakeHost) PlanAssignment(_ context.Context, name string, w gpu.Wish) (gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.Plan{}, err
	}
	a, _, refusal := h.mayPut(name, w)
	return gpu.Plan{Summary: "attach", Changes: a.Name == "", Refusal: refusal}, nil
}

func (h *fakeHost) DeleteAssignment(_ context.Context, actor, name string) (operation.Operation, error) {
	leave, err := h.enter()
	defer leave()
	if _, ok := h.assignments[name]; err == nil && !ok {
		err = gpu.Errorf(gpu.CodeNotFound, "cannot find assignment %q", name)
	}
	if err == nil {
		err = h.write("DeleteAssignment")
	}
	if err != nil {
		return operation.Operation{}, err
	}
	delete(h.partitions, h.assignments[name].Partition)
	delete(h.assignments, name)
	return h.ops.add("detach", actor, operation.Running), nil
}

func (h *fakeHost) PlanDeleteAssignment(_ context.Context, name string) (gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	plan := gpu.Plan{Summary: "detach", Changes: true, MustBeIdle: []string{"vm/" + web1}}
	if _, ok := h.assignments[name]; !ok {
		plan.Refusal = gpu.Errorf(gpu.CodeNotFound, "cannot find assignment %q", name)
	}
	return plan, err
}

func (h *fakeHost) Backup(_ context.Context, w io.Writer) error {
	leave, err := h.enter()
	defer leave()
	if err == nil && h.backup != nil {
		err = h.backup(w)
	} else if err == nil {
		_, err = w.Write([]byte("a copy"))
	}
	return err
}

func (h *fakeHost) Events(ctx context.Context, after uint64) (past []gpu.Event, complete bool, live <-chan gpu.Event) {
	leave, _ := h.enter()
	defer leave()
	ch := make(chan gpu.Event, 8)
	h.listeners[ch] = true
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.cut(ch)
	})
	if after == 0 {
		return nil, true, ch
	}
	for _, e := range h.events {
		if e.Seq > after {
			past = append(past, e)
		}
	}
	return past, after >= h.dropped, ch
}

func (h *fakeHost) cut(ch chan gpu.Event) {
	if h.listeners[ch] {
		delete(h.listeners, ch)
		close(ch)
	}
}

func (h *fakeHost) emit(typ, object string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := gpu.Event{Seq: h.dropped + uint64(len(h.events)) + 1, Time: born, Type: typ, Object: object}
	h.events = append(h.events, e)
	for ch := range h.listeners {
		select {
		case ch <- e:
		default:
			h.cut(ch)
		}
	}
}
