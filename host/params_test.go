package host_test

import (
	"syscall"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
)

// Parameters that cannot be read are not known: that is no drift, and such a vGPU is not
// adopted without them.
func TestParamsUnknown(t *testing.T) {
	l := newL40SLab(t, false)
	a := l.attach("gfx", gpu.Wish{VM: "web1", Profile: "L40S-8Q", Params: "disable_vnc=1"})
	theirs := l.handMade("web2", "L40S-8Q", 1, false)
	for i := range 2 {
		l.inject(sim.Fault{Op: "read", Path: "devices/*/*/" + l.vfs(l40s).Functions[i].PCIAddress + "/nvidia/vgpu_params", Errno: syscall.EIO, Times: 1000})
	}
	p, err := l.Partition(t.Context(), a.Partition)
	if err != nil || len(p.Conditions) != 1 || p.Conditions[0].Reason != gpu.ReasonParamsUnknown || p.Conditions[0].Type != gpu.Degraded {
		t.Errorf("%+v, %v", p.Conditions, err)
	}
	if _, _, err := l.AdoptPartition(t.Context(), "test", theirs, false); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Errorf("%v", err)
	}
	l.clear()
	l.adopt(theirs)
	l.detach("gfx")
}
