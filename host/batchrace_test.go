package host_test

import (
	"context"
	"sync"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

// A GPU that an operation was changing when the first wish of a batch looked at it is looked
// at again for the next.
func TestApplyBesideAnOperation(t *testing.T) {
	const second = gpu.ID("0000:81:00.0")
	other := sim.L40S(string(second), 0).WithVGPU(false)
	other.SRIOV.TotalVFs = shareVFs
	l := newLab(t, shared(false), other)
	l.manage(l40s, second)
	l.mustSetVFs(l40s, shareVFs)
	l.mustSetVFs(second, shareVFs)
	addVMs(t, l, 4)
	begun, planned := make(chan struct{}), make(chan struct{})
	l.sim.NVML.OnCall(func(sim.Call) {
		close(begun)
		<-planned
	})
	_, op, err := l.PutVGPUSettings(t.Context(), "test", second, mixedSize(true))
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	l.sim.NVML.OnCall(nil)
	var once sync.Once
	l.looked = func(vm string) {
		if vm != "vm2" {
			return
		}
		once.Do(func() {
			close(planned)
			if op := l.finish(*op, nil); op.Status != operation.Done {
				t.Errorf("%+v", op.Problem)
			}
		})
	}
	all := wishes("a=vm1:L40S-8Q", "b=vm2:L40S-8Q", "c=vm3:L40S-24Q")
	all[1].Wish.GPU, all[2].Wish.GPU = second, second
	plan, err := l.PlanApplyAssignments(t.Context(), all)
	if err != nil || plan.Refusal != nil {
		t.Errorf("%+v, %v", plan.Refusal, err)
	}
}

// A visited libvirt tells its lab of which VM somebody looks at the head.
type visited struct {
	*sim.Libvirt
	lab *lab
}

func (v visited) VMHead(ctx context.Context, nameOrUUID string) (gpu.VMHead, error) {
	if v.lab.looked != nil {
		v.lab.looked(nameOrUUID)
	}
	return v.Libvirt.VMHead(ctx, nameOrUUID)
}
