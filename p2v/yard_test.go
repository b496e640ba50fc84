package p2v_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/freeze"
)

// boot is of the kernel of the test's machine.
const boot = "4be8eff5-d1ef-44b8-aff3-0cbf4ca0b5ad"

// A rester is the kernel of the test's machine, as far as it is brought to rest.
type rester struct {
	mu     sync.Mutex
	frozen int    // how many of its file systems are
	froze  int    // how often
	off    bool   // it was told to power off
	deaf   bool   // it does not do it
	tree   string // of /proc and /sys
	mount  string
	still  func() // called while it is frozen, at once
	gone   func()
	end    <-chan struct{} // of the test
}

func (r *rester) Open(string, int) (*os.File, error) { return os.Open(r.mount) }
func (r *rester) Sync()                              {}
func (r *rester) SyncFS(*os.File) error              { return nil }
func (r *rester) Pin()                               {}

func (r *rester) Freeze(*os.File) error {
	r.mu.Lock()
	r.frozen++
	r.froze++
	still := r.still
	r.mu.Unlock()
	if still != nil {
		still()
	}
	return nil
}

func (r *rester) Thaw(*os.File) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.frozen == 0 {
		return errors.New("it is not frozen")
	}
	r.frozen--
	return nil
}

func (r *rester) PowerOff() error {
	r.mu.Lock()
	deaf, gone := r.deaf, r.gone
	r.off = !deaf
	r.mu.Unlock()
	if !deaf {
		gone()
		<-r.end // it does not come back
	}
	return errors.New("it does not")
}

// set changes what it does.
func (r *rester) set(change func(*rester)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

func (r *rester) is() (frozen, off bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.frozen > 0, r.off
}

// plant writes the tree of a machine with these disks.
func (r *rester) plant(dir string, disks []block.Disk) error {
	r.tree, r.mount = filepath.Join(dir, "tree"), dir
	files := map[string]string{
		"proc/swaps": "Filename Type Size Used Priority\n", "proc/sys/kernel/random/boot_id": boot + "\n",
		"proc/sys/kernel/hung_task_panic": "0\n", "proc/sys/kernel/hung_task_timeout_secs": "120\n",
	}
	links := map[string]string{"proc/self/ns/mnt": "mnt:[1]"}
	mounts := ""
	for i, d := range disks {
		for number, at := range map[string]string{fmt.Sprintf("259:%d", 2*i): d.Name, fmt.Sprintf("259:%d", 2*i+1): d.Name + "/" + d.Name + "p1"} {
			name := filepath.Base(at)
			files["sys/devices/"+at+"/dev"] = number + "\n"
			files["sys/devices/"+at+"/stat"] = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
			links["sys/class/block/"+name], links["sys/dev/block/"+number] = "../../devices/"+at, "../../devices/"+at
			if at != name {
				files["sys/devices/"+at+"/partition"] = "1\n"
				mounts += fmt.Sprintf("%d 1 %s / /m%d rw - ext4 /dev/%s rw\n", 30+i, number, i, name)
			}
		}
	}
	files["proc/self/mountinfo"] = mounts
	for name, text := range files {
		path := filepath.Join(r.tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	for name, to := range links {
		path := filepath.Join(r.tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(to, path); err != nil {
			return err
		}
	}
	return nil
}

// serveRest is the program that brings it to rest.
func (m *machine) serveRest(u *up, names []string) io.ReadWriteCloser {
	near, far := net.Pipe()
	u.rest.Go(func() { // nobody waits for one that was powered off: it does not come back
		_ = freeze.Serve(u.ctx, far, names, freeze.Config{
			Root: m.rest.tree, Kernel: m.rest, Systemctl: func(context.Context, ...string) (string, error) { return "", nil },
		})
	})
	return near
}

// vms are the VMs of the test's host.
type vms struct {
	mu       sync.Mutex
	docs     map[string]string // by UUID
	marks    map[string]string
	runs     map[string]bool
	networks map[string]bool
	trials   []gpu.Trial
	started  int
	fails    map[string]error // by what is asked: "start"
	agent    func(uuid, command string) (string, error)
	// on is called when a VM was started.
	on func(trial *gpu.Trial)
}

func newVMs() *vms {
	return &vms{
		docs: map[string]string{}, marks: map[string]string{}, runs: map[string]bool{}, networks: map[string]bool{}, fails: map[string]error{}, agent: wellGuest,
	}
}

func (v *vms) enter(what string) (func(), error) {
	v.mu.Lock()
	return v.mu.Unlock, v.fails[what]
}

func (v *vms) fail(what string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fails[what] = err
}

func between(text, before, after string) string {
	_, text, _ = strings.Cut(text, before)
	text, _, _ = strings.Cut(text, after)
	return text
}

func (v *vms) VM(_ context.Context, uuid string) (gpu.VM, error) {
	leave, err := v.enter("vm")
	defer leave()
	for id, doc := range v.docs { // or its name
		if strings.Contains(doc, "<name>"+uuid+"</name>") {
			uuid = id
		}
	}
	if _, there := v.docs[uuid]; err == nil && !there {
		err = gpu.Errorf(gpu.CodeVMNotFound, "there is no such VM")
	}
	vm := gpu.VM{UUID: uuid, Persistent: true, Mark: v.marks[uuid], State: gpu.VMShutoff}
	if v.runs[uuid] {
		vm.State = gpu.VMRunning
	}
	return vm, err
}

func (v *vms) Define(_ context.Context, doc string) error {
	leave, err := v.enter("define")
	defer leave()
	if err == nil {
		id := between(doc, "<uuid>", "</uuid>")
		v.docs[id], v.marks[id] = doc, between(doc, "<!--", "-->")
	}
	return err
}

func (v *vms) Undefine(_ context.Context, uuid, mark string) error {
	leave, err := v.enter("undefine")
	defer leave()
	switch _, there := v.docs[uuid]; {
	case err != nil || !there:
		return err
	case v.marks[uuid] != mark:
		return gpu.Errorf(gpu.CodeConflict, "it is somebody else's")
	case v.runs[uuid]:
		return gpu.Errorf(gpu.CodeConflict, "it runs")
	}
	delete(v.docs, uuid)
	return nil
}

func (v *vms) Fits(context.Context, string) error {
	leave, err := v.enter("fits")
	defer leave()
	return err
}

func (v *vms) Startable(context.Context, string) error {
	leave, err := v.enter("startable")
	defer leave()
	return err
}

func (v *vms) Start(_ context.Context, uuid string) error {
	leave, err := v.enter("start")
	defer leave()
	if err == nil && !v.runs[uuid] {
		v.runs[uuid] = true
		v.started++
		if v.on != nil {
			v.on(nil)
		}
	}
	return err
}

func (v *vms) StartTrial(_ context.Context, uuid, _ string, t gpu.Trial) error {
	leave, err := v.enter("trial")
	defer leave()
	if err == nil && !v.networks[t.Network] {
		err = errors.New("there is no such network")
	}
	if err == nil {
		v.runs[uuid] = true
		v.trials = append(v.trials, t)
		if v.on != nil {
			v.on(&t)
		}
	}
	return err
}

func (v *vms) Stop(_ context.Context, uuid string) error {
	leave, err := v.enter("stop")
	defer leave()
	if err == nil {
		delete(v.runs, uuid)
	}
	return err
}

func (v *vms) Agent(_ context.Context, uuid, command string) (string, error) {
	v.mu.Lock()
	runs, agent := v.runs[uuid], v.agent
	v.mu.Unlock()
	if !runs {
		return "", gpu.Errorf(gpu.CodeConflict, "it does not run")
	}
	return agent(uuid, command)
}

func (v *vms) CreateNetwork(_ context.Context, doc string) error {
	leave, err := v.enter("network")
	defer leave()
	if err == nil {
		v.networks[between(doc, "<name>", "</name>")] = true
	}
	return err
}

func (v *vms) DestroyNetwork(_ context.Context, name string) error {
	leave, err := v.enter("no network")
	defer leave()
	if err == nil {
		delete(v.networks, name)
	}
	return err
}

// set changes what they do.
func (v *vms) set(change func(*vms)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(v)
}

// left says what is left of VMs.
func (v *vms) left() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []string
	for id := range v.docs {
		out = append(out, "defined: "+id)
	}
	for id := range v.runs {
		out = append(out, "runs: "+id)
	}
	for n := range v.networks {
		out = append(out, "network: "+n)
	}
	return out
}

// wellGuest answers for a guest that is as it should be.
func wellGuest(_, command string) (string, error) {
	var c struct{ Execute string }
	if err := json.Unmarshal([]byte(command), &c); err != nil {
		return "", err
	}
	switch c.Execute {
	case "guest-ping":
		return `{"return":{}}`, nil
	case "guest-info":
		return `{"return":{"version":"8.2","supported_commands":[{"name":"guest-exec","enabled":false}]}}`, nil
	case "guest-get-osinfo":
		return `{"return":{"pretty-name":"Debian GNU/Linux 12","kernel-release":"6.1"}}`, nil
	case "guest-get-host-name":
		return `{"return":{"host-name":"gpu7"}}`, nil
	case "guest-get-time":
		return fmt.Sprintf(`{"return":%d}`, time.Now().UnixNano()), nil
	case "guest-get-fsinfo":
		return `{"return":[{"mountpoint":"/","type":"ext4"}]}`, nil
	}
	return `{"error":{"class":"CommandNotFound","desc":"none"}}`, nil
}

// illGuest answers for one that lacks its filesystem.
func illGuest(uuid, command string) (string, error) {
	if strings.Contains(command, "guest-get-fsinfo") {
		return `{"return":[{"mountpoint":"/","type":"xfs"}]}`, nil
	}
	return wellGuest(uuid, command)
}

// makers make disks of a mirror, as convert does; what they wrote is told by the overlay's text.
type makers struct {
	mu    sync.Mutex
	fails map[string]error
	// on is called by what is done: "convert".
	on    func(what string, job convert.Job)
	n     int
	edits []convert.Edit // of the last one
}

func (c *makers) step(what string, job convert.Job) error {
	c.mu.Lock()
	err, on := c.fails[what], c.on
	c.n++
	c.mu.Unlock()
	if on != nil {
		on(what, job)
	}
	return err
}

func (c *makers) Probe(context.Context) (convert.Tools, error) {
	return convert.Tools{Appliance: convert.Appliance{State: convert.ApplianceKVM}}, c.step("probe", convert.Job{})
}

func (c *makers) Overlay(ctx context.Context, mirror, path string) (convert.Overlay, error) {
	if err := c.waits(ctx, c.step("overlay", convert.Job{})); err != nil {
		return convert.Overlay{}, err
	}
	return convert.Overlay{Path: path, Mirror: mirror}, os.WriteFile(path, []byte("over "+mirror), 0o600)
}

func (c *makers) Customize(_ context.Context, job convert.Job, edits []convert.Edit) (convert.Result, error) {
	c.mu.Lock()
	c.edits = edits
	c.mu.Unlock()
	return convert.Result{}, c.step("customize", job)
}

// edited are what was last changed in the guest.
func (c *makers) edited() (out []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.edits {
		out = append(out, e.ID)
	}
	return out
}

func (c *makers) Convert(ctx context.Context, job convert.Job) (convert.Result, error) {
	return convert.Result{}, c.waits(ctx, c.step("convert", job))
}

// waits waits until it is given up, where it is to.
func (c *makers) waits(ctx context.Context, err error) error {
	if errors.Is(err, errWaits) {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return err
}

// set changes what they do.
func (c *makers) set(on func(what string, job convert.Job)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = on
}

func (c *makers) fail(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fails == nil {
		c.fails = map[string]error{}
	}
	c.fails[what] = err
}

// holders hold partitions by assignments, each by an operation of the same engine.
type holders struct {
	mu       sync.Mutex
	engine   *operation.Engine
	held     map[string]gpu.Assignment
	gpus     []gpu.GPU
	profiles []gpu.Profile     // of each of them
	begun    map[string]string // by Idempotency-Key: operations
	making   map[string]string // by assignment: the operation that has made it, or does
	fails    error
	taken    error // why nobody gets a partition any more
	late     bool  // who asks beforehand is not told
	slow     chan struct{}
	waits    error // what a person has to do before one is given
	asked    atomic.Int64
	wish     func() // called before somebody is told what an assignment is for
}

// set changes what they hold.
func (h *holders) set(change func(*holders)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h)
}

const stepHold = "test.hold"

func (h *holders) handle(e *operation.Engine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.engine = e
	e.Handle(stepHold, operation.Handler{Do: func(_ context.Context, t *operation.Task) ([]operation.Row, error) {
		var args struct {
			Wishes []gpu.NamedWish
			Drop   string
		}
		if err := t.Args(&args); err != nil {
			return nil, err
		}
		h.mu.Lock()
		slow := h.slow
		h.mu.Unlock()
		if slow != nil {
			<-slow
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.fails != nil {
			for _, w := range args.Wishes {
				delete(h.held, w.Name)
			}
			return nil, h.fails
		}
		if h.waits != nil {
			for _, w := range args.Wishes {
				h.held[w.Name] = gpu.Assignment{Name: w.Name, Wish: w.Wish, State: gpu.AssignmentAttaching}
			}
			return nil, h.waits
		}
		for _, w := range args.Wishes {
			h.held[w.Name] = gpu.Assignment{Name: w.Name, Wish: w.Wish, GPU: w.Wish.GPU, State: gpu.AssignmentAttached}
		}
		delete(h.held, args.Drop)
		return nil, nil
	}, Undo: func(_ context.Context, t *operation.Task) ([]operation.Row, error) {
		var args struct {
			Wishes []gpu.NamedWish
			Drop   string
		}
		if err := t.Args(&args); err != nil {
			return nil, err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, w := range args.Wishes {
			delete(h.held, w.Name)
		}
		return nil, nil
	}})
}

func (h *holders) Assignment(_ context.Context, name string) (gpu.Assignment, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a, there := h.held[name]
	if !there {
		return a, gpu.Errorf(gpu.CodeNotFound, "cannot find assignment %q", name)
	}
	return a, nil
}

func (h *holders) AssignmentWish(name string) (gpu.Wish, error) {
	h.mu.Lock()
	wish := h.wish
	h.mu.Unlock()
	if wish != nil {
		wish()
	}
	a, err := h.Assignment(context.Background(), name)
	return a.Wish, err
}

func (h *holders) ApplyAssignments(ctx context.Context, actor string, wishes []gpu.NamedWish, idem gpu.Idempotency) ([]gpu.Assignment, *operation.Operation, error) {
	h.asked.Add(1)
	h.mu.Lock()
	e, id, taken := h.engine, h.begun[idem.Key], h.taken
	h.mu.Unlock()
	if idem.Key != "" && id != "" {
		op, err := e.Get(id)
		return nil, &op, err
	}
	if slices.ContainsFunc(wishes, func(w gpu.NamedWish) bool { _, err := h.Assignment(ctx, w.Name); return err != nil }) {
		if taken != nil {
			return nil, nil, taken
		}
		// They are there from now on, as with the host.
		h.set(func(h *holders) {
			for _, w := range wishes {
				h.held[w.Name] = gpu.Assignment{Name: w.Name, Wish: w.Wish, State: gpu.AssignmentAttaching}
			}
		})
		op, err := h.add(ctx, actor, wishes[0].Wish.VM, map[string]any{"Wishes": wishes, "Drop": ""})
		h.set(func(h *holders) {
			h.begun[idem.Key] = op.ID
			for _, w := range wishes {
				h.making[w.Name] = op.ID
				if err != nil {
					delete(h.held, w.Name)
				}
			}
		})
		return nil, &op, err
	}
	for _, w := range wishes {
		h.mu.Lock()
		a, id := h.held[w.Name], h.making[w.Name]
		h.mu.Unlock()
		if a.State == gpu.AssignmentAttaching {
			op, err := e.Get(id)
			return nil, &op, err
		}
	}
	return nil, nil, nil
}

func (h *holders) PlanApplyAssignments(context.Context, []gpu.NamedWish) (gpu.Plan, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.late {
		return gpu.Plan{}, nil
	}
	return gpu.Plan{Refusal: h.taken}, nil
}

func (h *holders) DeleteAssignment(ctx context.Context, actor, name string) (operation.Operation, error) {
	h.mu.Lock()
	vm := h.held[name].Wish.VM
	h.mu.Unlock()
	return h.add(ctx, actor, vm, map[string]any{"Wishes": []gpu.NamedWish{}, "Drop": name})
}

func (h *holders) add(ctx context.Context, actor, vm string, args any) (operation.Operation, error) {
	h.mu.Lock()
	e := h.engine
	h.mu.Unlock()
	return e.Add(ctx, operation.Plan{Kind: "test.hold", Actor: actor, Keys: []string{"gpu/test", "vm/" + vm}, Steps: []operation.PlanStep{{Kind: stepHold, Args: args}}})
}

func (h *holders) names() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for n := range h.held {
		out = append(out, n)
	}
	return out
}
