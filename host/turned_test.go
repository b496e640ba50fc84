package host_test

import (
	"testing"

	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

// Where an instance cannot be made after the mode has changed, all is as it was: the mode,
// and the functions.
func TestModeOnUndoneWithFunctions(t *testing.T) {
	l := newLab(t, sim.H100(string(hopper), 0).WithVGPU(false))
	l.manage(hopper)
	l.mustSetVFs(hopper, 32)
	l.sim.NVML.Fail("CreateGpuInstance", 0, 1)
	l.sim.NVML.Fail("CreateGpuInstance", mig.ErrUnknown, 1)
	op := l.lay(hopper, cut("1g.10gb@0 3g.40gb@4"))
	if op.Status != operation.Undone {
		t.Fatalf("%s, %+v", op.Status, op.Problem)
	}
	s := l.layout(hopper)
	if s.Mode.Current || s.Mode.Pending || s.Wanted != nil || len(l.vfs(hopper).Functions) != 32 {
		t.Errorf("%+v, %+v", s, l.vfs(hopper).Functions)
	}
	if records, err := l.store.PartitionRecords(); err != nil || len(records) != 0 {
		t.Errorf("%+v, %v", records, err)
	}
}
