package host_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
)

// seen is what is observed of a partition, alone and among all, with its conditions.
func (l *lab) seen(id string) (*gpu.Observed, []gpu.Condition) {
	l.t.Helper()
	one, err := l.Partition(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	all, err := l.Partitions(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range all {
		if p.ID == id {
			if diff := cmp.Diff(one, p); diff != "" {
				l.t.Errorf("alone (-) and in the list (+) it is not the same:\n%s", diff)
			}
		}
	}
	return one.Observed, one.Conditions
}

func (l *lab) setGuest(device gpu.Handle, g sim.Guest) {
	l.t.Helper()
	if err := l.sim.SetGuest(device.MdevUUID+device.PCIAddress, g); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) device(partition string) gpu.Handle {
	l.t.Helper()
	p, err := l.Partition(l.t.Context(), partition)
	if err != nil {
		l.t.Fatal(err)
	}
	return p.Handle
}

func ptr[T any](v T) *T { return &v }

// What a guest uses and whether it has its licence is seen in all three generations, as long
// as its VM runs, and what somebody else made is seen too. A guest without licence is told,
// once its driver is ready to ask for one (R115).
func TestGuestIsSeen_R115(t *testing.T) {
	const turing = gpu.ID("0000:08:00.0")
	for _, c := range []struct {
		name    string
		card    sim.Card
		profile string
	}{
		{"types of the card", sim.T4(string(turing), 0), "T4-4Q"},
		{"types of virtual functions", sim.A2(string(turing), 0).WithVGPU(true), "A2-4Q"},
		{"functions that take a type", sim.L40S(string(turing), 0).WithVGPU(false), "L40S-4Q"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, c.card, sim.Mbochs())
			l.manage(turing, "mbochs")
			if c.card.SRIOV != nil {
				l.mustSetVFs(turing, c.card.SRIOV.TotalVFs)
			}
			l.attach("other", gpu.Wish{VM: "web1", Profile: "mbochs-small"})
			l.attach("off", gpu.Wish{VM: "db1", Profile: c.profile})
			second := l.attach("second", gpu.Wish{VM: "web2", Profile: c.profile})
			a := l.attach("gfx", gpu.Wish{VM: "web1", Profile: c.profile})
			device := l.device(a.Partition)

			got, conditions := l.seen(a.Partition)
			if diff := cmp.Diff(&gpu.Observed{Usage: &gpu.Usage{MemoryUsedBytes: ptr(uint64(0))}}, got); diff != "" || len(conditions) != 0 {
				t.Errorf("the guest has not begun: %+v, %s", conditions, diff)
			}
			now := time.Now().UTC().Truncate(time.Microsecond)
			g := sim.Guest{Driver: "550.90.07", License: gpu.LicenseUninitialized, MemoryUsedBytes: 1 << 30, Samples: []mig.VGPUSample{{Time: now, SM: 40, Memory: 0, Encoder: -1, Decoder: -1}}}
			for state, says := range map[gpu.LicenseState]string{
				gpu.LicenseUninitialized: "", gpu.LicenseUnrestricted: "will throttle it", gpu.LicenseRestricted: "throttles it", gpu.LicenseNone: "may throttle it",
			} {
				g.License = state
				l.setGuest(device, g)
				_, conditions := l.seen(a.Partition)
				switch {
				case says == "" && len(conditions) == 0:
				case len(conditions) != 1 || conditions[0].Type != gpu.Degraded || conditions[0].Reason != "Unlicensed" || !strings.Contains(conditions[0].Message, says):
					t.Errorf("%s: %+v", state, conditions)
				}
			}
			g.License, g.Expires = gpu.LicenseHeld, now.Add(time.Hour)
			l.setGuest(device, g)
			got, conditions = l.seen(a.Partition)
			want := &gpu.Observed{GuestDriver: "550.90.07", License: &gpu.License{State: gpu.LicenseHeld, Expires: now.Add(time.Hour)}, Usage: &gpu.Usage{
				MemoryUsedBytes: ptr(uint64(1 << 30)), SM: ptr(0.4), Memory: ptr(0.0), Sampled: now,
			}}
			if diff := cmp.Diff(want, got); diff != "" || len(conditions) != 0 {
				t.Errorf("%+v, %s", conditions, diff)
			}
			if got, _ := l.seen(second.Partition); got == nil || got.License != nil || got.Unknown != "" {
				t.Errorf("another guest: %+v", got)
			}
			for _, name := range []string{"other", "off"} {
				a, err := l.Assignment(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				if got, _ := l.seen(a.Partition); got != nil {
					t.Errorf("%s: %+v", name, got)
				}
			}
			if err := l.sim.Libvirt.Shutdown("web1"); err != nil {
				t.Fatal(err)
			}
			if got, conditions := l.seen(a.Partition); got != nil || len(conditions) != 0 {
				t.Errorf("its vm is off: %+v, %+v", got, conditions)
			}
		})
	}
}

// A library that fails leaves the figures out and says why; a card is asked once, however
// many vGPUs it has, and a plan does not ask at all.
func TestFiguresFail_T33(t *testing.T) {
	l := newL40SLab(t, false)
	a := l.attach("a", gpu.Wish{VM: "web1", Profile: "L40S-8Q"})
	l.attach("b", gpu.Wish{VM: "web2", Profile: "L40S-8Q"})
	all := func() []gpu.Partition {
		t.Helper()
		ps, err := l.Partitions(t.Context())
		if err != nil || len(ps) != 2 {
			t.Fatalf("%+v, %v", ps, err)
		}
		return ps
	}
	l.sim.NVML.Fail("GetActiveVgpus", 0, 1)
	l.sim.NVML.Fail("GetActiveVgpus", mig.ErrUnknown, 1)
	for _, says := range []string{"", "unknown error", ""} {
		for _, p := range all() {
			if p.Observed == nil || !strings.Contains(p.Observed.Unknown, says) || (says == "") != (p.Observed.Unknown == "") || len(p.Conditions) != 0 {
				t.Errorf("want %q: %+v, %+v", says, p.Observed, p.Conditions)
			}
		}
	}
	l.sim.NVML.Fail("GetActiveVgpus", mig.ErrUnknown, 1)
	if plan, err := l.PlanDeletePartition(t.Context(), a.Partition); err != nil || plan.Refusal == nil {
		t.Errorf("%+v, %v", plan, err)
	}
	if p := all()[0]; p.Observed.Unknown == "" {
		t.Error("the plan has asked the library")
	}
	// Without utilisation there is nothing: the library is sick.
	l.sim.NVML.Fail("GetVgpuUtilization", mig.ErrGPULost, 1)
	if p := all()[0]; p.Observed.Unknown == "" || p.Observed.Usage != nil {
		t.Errorf("%+v", p.Observed)
	}
}

// handMade makes a vGPU without gpuvirt and gives it to a running VM, and returns its
// partition's id. One VM has no second vGPU of a card from gpuvirt.
func (l *lab) handMade(vm, profile string, function int, mdev bool) string {
	l.t.Helper()
	ps, _, err := l.Profiles(l.t.Context(), l40s)
	i := slices.IndexFunc(ps, func(p gpu.Profile) bool { return p.Name == profile })
	if err != nil || i < 0 {
		l.t.Fatalf("%+v, %v", ps, err)
	}
	dir := "bus/pci/devices/" + l.vfs(l40s).Functions[function].PCIAddress
	device := gpu.Handle{PCIAddress: l.vfs(l40s).Functions[function].PCIAddress}
	id, file, value := string(l40s)+"/vgpu/"+strconv.Itoa(function), dir+"/nvidia/current_vgpu_type", ps[i].NativeID
	if mdev {
		device = gpu.Handle{MdevUUID: uuid.NewString()}
		id, file, value = device.MdevUUID, dir+"/mdev_supported_types/"+ps[i].NativeID+"/create", device.MdevUUID
	}
	if err := l.sim.Sysfs.Write(l.t.Context(), file, value); err != nil {
		l.t.Fatal(err)
	}
	head, err := l.sim.Libvirt.VMHead(l.t.Context(), vm)
	if err != nil {
		l.t.Fatal(err)
	}
	dev := gpu.Hostdev{Alias: "ua-hand-" + strconv.Itoa(function), Handle: device}
	if err := l.sim.Libvirt.Attach(l.t.Context(), head.UUID, dev, gpu.Scope{Live: true}); err != nil {
		l.t.Fatal(err)
	}
	return id
}

// Several vGPUs of one VM on virtual functions are told apart by their type, and else only
// what they have in common is told of each: never one's figures at another.
func TestSeveralVGPUsOfOneVM_R115(t *testing.T) {
	for _, mdev := range []bool{false, true} {
		l := newL40SLab(t, mdev)
		ours := l.attach("a", gpu.Wish{VM: "web1", Profile: "L40S-8Q"})
		all := []string{
			ours.Partition, l.handMade("web1", "L40S-8Q", 7, mdev), l.handMade("web1", "L40S-8C", 8, mdev), l.handMade("web2", "L40S-8Q", 9, mdev),
		}
		for i, id := range all {
			l.setGuest(l.device(id), sim.Guest{Driver: "550.1", License: gpu.LicenseRestricted, MemoryUsedBytes: uint64(i + 1)}) //nolint:gosec // small
		}
		for i, id := range all {
			got, conditions := l.seen(id)
			if got == nil || got.GuestDriver != "550.1" || got.License == nil || len(conditions) != 1 {
				t.Fatalf("mdev=%t, %d: %+v, %+v", mdev, i, got, conditions)
			}
			own := got.Usage != nil && *got.Usage.MemoryUsedBytes == uint64(i+1) && got.Unknown == "" //nolint:gosec // small
			none := got.Usage == nil && got.Unknown == "the driver does not tell the 2 vGPUs L40S-8Q of this vm apart"
			if alike := !mdev && i < 2; alike && !none || !alike && !own {
				t.Errorf("mdev=%t, %d: %+v", mdev, i, got)
			}
		}
		// What differs between them is nobody's.
		l.setGuest(l.device(all[0]), sim.Guest{})
		got, conditions := l.seen(all[1])
		if got == nil || mdev != (got.GuestDriver != "") || mdev != (got.License != nil) || mdev != (len(conditions) != 0) {
			t.Errorf("mdev=%t: %+v, %+v", mdev, got, conditions)
		}
	}
}

// On GPU instances the instance tells them apart.
func TestVGPUsOfOneVMOnInstances_R115(t *testing.T) {
	l := newLab(t, sim.H100(string(hopper), 0).WithVGPU(false))
	l.manage(hopper)
	l.mustLay(hopper, "")
	l.mustSetVFs(hopper, 32)
	a := l.attach("a", gpu.Wish{VM: "web1", Profile: "H100XM-1-10C"})
	b := l.attach("b", gpu.Wish{VM: "web2", Profile: "H100XM-1-10C"})
	for i, x := range []gpu.Assignment{a, b} {
		l.setGuest(l.device(x.Partition), sim.Guest{MemoryUsedBytes: uint64(i + 1)}) //nolint:gosec // small
	}
	// Both are in one VM now.
	if err := l.sim.Libvirt.Shutdown("web2"); err != nil {
		t.Fatal(err)
	}
	dev := gpu.Hostdev{Alias: "ua-hand", Handle: l.device(b.Partition)}
	if err := l.sim.Libvirt.Attach(t.Context(), sim.Web1, dev, gpu.Scope{Live: true}); err != nil {
		t.Fatal(err)
	}
	for i, x := range []gpu.Assignment{a, b} {
		if got, _ := l.seen(x.Partition); got == nil || got.Unknown != "" || *got.Usage.MemoryUsedBytes != uint64(i+1) { //nolint:gosec // small
			t.Errorf("%s: %+v", x.Name, got)
		}
	}
}

// A midway does something while the driver is asked.
type midway struct {
	*mig.Backend

	act func()
}

func (m midway) RunningVGPUs(ctx context.Context, id gpu.ID) ([]gpu.RunningVGPU, error) {
	out, err := m.Backend.RunningVGPUs(ctx, id)
	m.act()
	return out, err
}

// A VM that ends, or gets another vGPU, while the driver is asked has no figures of before.
func TestVMChangesMidRead_R115(t *testing.T) {
	l := newL40SLab(t, false)
	var act func()
	l.monitor = func(b *mig.Backend) gpu.Backend {
		return midway{b, func() {
			if act != nil {
				act()
			}
		}}
	}
	l.restart()
	a := l.attach("a", gpu.Wish{VM: "web1", Profile: "L40S-8Q"})
	first := func() *gpu.Observed {
		t.Helper()
		p, err := l.Partition(t.Context(), a.Partition)
		if err != nil {
			t.Fatal(err)
		}
		return p.Observed
	}
	if got := first(); got == nil || got.Unknown != "" {
		t.Errorf("%+v", got)
	}
	act = func() { _ = l.sim.Libvirt.Shutdown("web1") }
	if got := first(); got != nil {
		t.Errorf("its vm has ended: %+v", got)
	}
	if err := l.sim.Libvirt.Boot("web1"); err != nil {
		t.Fatal(err)
	}
	act = func() { _ = l.sim.Libvirt.SetDown(true) }
	if got := first(); got == nil || got.Unknown == "" || got.Usage != nil {
		t.Errorf("libvirt has gone: %+v", got)
	}
}

// Without libvirt a mediated device is known all the same, and a function is not.
func TestFiguresWithoutLibvirt(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newL40SLab(t, mdev)
		a := l.attach("a", gpu.Wish{VM: "web1", Profile: "L40S-8Q"})
		if err := l.sim.Libvirt.SetDown(true); err != nil {
			t.Fatal(err)
		}
		p, err := l.Partition(t.Context(), a.Partition)
		if err != nil || (p.Observed != nil) != mdev {
			t.Errorf("mdev=%t: %+v, %v", mdev, p.Observed, err)
		}
	}
}

// A slowLibrary does not come back from the question which vGPUs run, until it is let go.
type slowLibrary struct {
	mig.Library
	free chan struct{}
}

func (l slowLibrary) Open() (mig.Session, error) {
	s, err := l.Library.Open()
	return slowSession{s, l.free}, err
}

type slowSession struct {
	mig.Session
	free chan struct{}
}

func (s slowSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return slowDevice{d, s.free}, err
}

type slowDevice struct {
	mig.Device
	free chan struct{}
}

func (d slowDevice) VGPUs() ([]mig.ActiveVGPU, error) {
	<-d.free
	return d.Device.VGPUs()
}

// A sooner does something before the driver is asked.
type sooner struct {
	*mig.Backend

	act func()
}

func (s sooner) RunningVGPUs(ctx context.Context, id gpu.ID) ([]gpu.RunningVGPU, error) {
	s.act()
	return s.Backend.RunningVGPUs(ctx, id)
}

// A mediated device that has come to another VM since it was looked who has it: that VM's
// figures are not shown beside the one before.
func TestMdevChangesVMBeforeRead_R115(t *testing.T) {
	l := newL40SLab(t, true)
	act := func() {}
	l.monitor = func(b *mig.Backend) gpu.Backend { return sooner{b, func() { act() }} }
	l.restart()
	a := l.attach("a", gpu.Wish{VM: "web1", Profile: "L40S-8Q"})
	dev := gpu.Hostdev{Alias: "ua-hand", Handle: l.device(a.Partition)}
	act = func() {
		act = func() {}
		if err := l.sim.Libvirt.Shutdown("web1"); err != nil {
			t.Error(err)
		}
		if err := l.sim.Libvirt.Attach(t.Context(), sim.Web2, dev, gpu.Scope{Live: true}); err != nil {
			t.Error(err)
		}
	}
	p, err := l.Partition(t.Context(), a.Partition)
	if err != nil || p.Observed != nil {
		t.Errorf("%+v of %+v, %v", p.Observed, p.Holders, err)
	}
	if p, err = l.Partition(t.Context(), a.Partition); err != nil || p.Observed == nil {
		t.Errorf("later: %+v, %v", p.Observed, err)
	}
}

// A library that hangs over figures costs figures: lists are answered, of other cards too,
// no card counts as stuck, and what is asked for is done (T44).
func TestFiguresHang_T44(t *testing.T) {
	l := newLab(t, sim.T4("0000:08:00.0", 0), sim.T4("0000:88:00.0", 1))
	free := make(chan struct{})
	l.monitor = func(*mig.Backend) gpu.Backend {
		return mig.NewBackend(slowLibrary{l.sim.NVML, free}, l.sim.Sysfs, mig.Options{GlanceTimeout: 50 * time.Millisecond})
	}
	l.restart()
	l.manage("0000:08:00.0", "0000:88:00.0")
	l.attach("a", gpu.Wish{VM: "web1", Profile: "T4-4Q", GPU: "0000:08:00.0"})
	for range 2 {
		ps, err := l.Partitions(t.Context())
		if err != nil || len(ps) != 1 || ps[0].Observed == nil || !strings.Contains(ps[0].Observed.Unknown, "has not answered within") {
			t.Errorf("%+v, %v", ps, err)
		}
	}
	b := l.attach("b", gpu.Wish{VM: "web2", Profile: "T4-8Q", GPU: "0000:88:00.0"})
	if info := l.Info(t.Context()); info.State != gpu.HostReady {
		t.Errorf("%+v", info)
	}
	close(free)
	for deadline := time.Now().Add(time.Minute); ; {
		p, err := l.Partition(t.Context(), b.Partition)
		if err == nil && p.Observed != nil && p.Observed.Unknown == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it has come back, and there is nothing: %+v, %v", p.Observed, err)
		}
	}
}
