package host_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

func kindsOf(p gpu.Plan) (out []string) {
	for _, s := range p.Steps {
		out = append(out, s.Kind)
	}
	return out
}

// The mode changes without virtual functions: a plan turns them off for it, and on again
// before the instances that it makes, which they would wipe.
func TestModeWithFunctionsOn(t *testing.T) {
	l := newLab(t, sim.H100(string(hopper), 0).WithVGPU(false))
	l.manage(hopper)
	l.mustSetVFs(hopper, 32)
	plan, err := l.PlanPutLayout(t.Context(), hopper, cut("1g.10gb@0 3g.40gb@4"))
	want := []string{"sriov.set", "mig.mode", "sriov.set", "partition.make", "partition.make"}
	if err != nil || plan.Refusal != nil || !slices.Equal(kindsOf(plan), want) {
		t.Fatalf("%+v, %v", plan, err)
	}
	l.mustLay(hopper, "1g.10gb@0 3g.40gb@4")
	if got := show(l.layout(hopper)); got != "1g.10gb@0 3g.40gb@4" || len(l.vfs(hopper).Functions) != 32 || !l.vfs(hopper).Equal {
		t.Errorf("%q, %+v", got, l.vfs(hopper))
	}
	plan, err = l.PlanPutLayout(t.Context(), hopper, gpu.Layout{})
	want = []string{"partition.remove", "partition.remove", "sriov.set", "mig.mode", "sriov.set"}
	if err != nil || plan.Refusal != nil || !slices.Equal(kindsOf(plan), want) {
		t.Fatalf("%+v, %v", plan, err)
	}
	if op := l.lay(hopper, gpu.Layout{}); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if s := l.layout(hopper); s.Mode.Current || s.Mode.Pending || !s.Equal || len(l.vfs(hopper).Functions) != 32 {
		t.Errorf("%+v, %+v", s, l.vfs(hopper))
	}
}

// Where the driver refuses all the same, all is as it was: the mode, the functions, the
// instances with their records, and what is asked for.
func TestModeOffRefusedWithFunctionsOn(t *testing.T) {
	l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
	l.mustLay(hopper, "1g.10gb@0 3g.40gb@4")
	l.sim.NVML.Fail(sim.Activation, mig.ErrInUse, 1)
	op := l.lay(hopper, gpu.Layout{})
	if op.Status != operation.Undone || op.Problem == nil || op.Problem.Code != string(gpu.CodeGPUBusy) {
		t.Fatalf("%s, %+v", op.Status, op.Problem)
	}
	s := l.layout(hopper)
	if show(s) != "1g.10gb@0 3g.40gb@4" || !s.Mode.Current || !s.Mode.Pending || !s.Equal || !s.Wanted.Enabled || len(l.vfs(hopper).Functions) != 32 || !l.vfs(hopper).Equal {
		t.Errorf("%+v, %+v", s, l.vfs(hopper))
	}
	if records, err := l.store.PartitionRecords(); err != nil || len(records) != 2 || records[0].State != gpu.PartitionMade {
		t.Errorf("%+v, %v", records, err)
	}
	if op := l.lay(hopper, gpu.Layout{}); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
}

// A function that a VM's definition names is not turned off for the mode, and nothing goes
// before that is found out.
func TestModeOffUnderAFunction(t *testing.T) {
	l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
	l.mustLay(hopper, "1g.10gb@0")
	l.names("db1", l.vfs(hopper).Functions[3].PCIAddress)
	n, calls := l.wrote(), len(l.sim.NVML.Calls())
	_, op, err := l.PutLayout(t.Context(), "test", hopper, gpu.Layout{})
	e := wantCode(t, err, gpu.CodeGPUBusy)
	if op != nil || len(e.Blockers) != 1 || e.Blockers[0].Name != "db1" || !strings.Contains(err.Error(), "cannot change the MIG mode") || l.wrote() != n {
		t.Errorf("%+v, %v, %+v", op, err, e)
	}
	for _, c := range l.sim.NVML.Calls()[calls:] {
		if strings.HasPrefix(c.Name, "Set") || strings.HasPrefix(c.Name, "Destroy") {
			t.Errorf("%+v", c)
		}
	}
}

// A daemon that dies with the functions off for the mode goes on with both, also when the host
// was rebooted meanwhile.
func TestModeOffBrokenOff_T01(t *testing.T) {
	for _, reboot := range []bool{false, true} {
		l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
		l.mustLay(hopper, "1g.10gb@0 3g.40gb@4")
		dir := ""
		l.sim.NVML.OnCall(func(c sim.Call) {
			if c.Name == "SetMigMode" && dir == "" {
				dir = l.image()
			}
		})
		l.lay(hopper, gpu.Layout{})
		l.sim.NVML.OnCall(nil)
		h, err := sim.Open(filepath.Join(dir, "sim"))
		if err == nil && reboot {
			err = h.Reboot()
		}
		if err == nil {
			err = h.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		m := openLab(t, dir)
		m.settledOn(hopper)
		if s := m.layout(hopper); s.Mode.Current || !s.Equal || show(s) != "" || !m.vfs(hopper).Equal || len(m.vfs(hopper).Functions) != 32 {
			t.Errorf("reboot %t: %+v, %+v", reboot, s, m.vfs(hopper))
		}
	}
}

// settledOn waits until no operation works on a GPU.
func (l *lab) settledOn(id gpu.ID) {
	l.t.Helper()
	for range time.Tick(5 * time.Millisecond) {
		if _, held := l.engine.Holder("gpu/" + string(id)); !held {
			return
		}
	}
}
