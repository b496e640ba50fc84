package host_test

import (
	"context"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

// slowly attaches when it is let.
type slowly struct {
	*sim.Libvirt
	begun chan struct{} // one for each call
	let   chan struct{}
}

func (s *slowly) AttachNew(ctx context.Context, vm string, dev gpu.Hostdev, scope gpu.Scope) error {
	s.begun <- struct{}{}
	select {
	case <-s.let:
		return s.Libvirt.AttachNew(ctx, vm, dev, scope)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A host that ends lets the device that a VM is just being given come to it, and the next
// one finds nothing half done.
func TestStepEndsWithTheHost_T07(t *testing.T) {
	l := newLab(t)
	l.stop()
	vms := &slowly{Libvirt: l.sim.Libvirt, begun: make(chan struct{}, 1), let: make(chan struct{})}
	l.vms, l.drain = vms, time.Minute
	l.start()
	l.manage(card)
	_, op, err := l.PutAssignment(t.Context(), "test", "gfx", gpu.Wish{VM: "web1", Profile: size})
	if err != nil || op == nil {
		t.Fatal(op, err)
	}
	<-vms.begun
	ended := make(chan struct{})
	go func() {
		l.stop()
		close(ended)
	}()
	// It has ended for whoever asks for something new, and waits for what is under way.
	for {
		if _, err := l.engine.Add(t.Context(), operation.Plan{Kind: "x"}); err != nil {
			break
		}
		<-time.After(time.Millisecond)
	}
	select {
	case <-ended:
		t.Fatal("it did not wait")
	default:
	}
	close(vms.let)
	<-ended
	vm, err := l.sim.Libvirt.VM(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	if len(vm.Hostdevs) == 0 {
		t.Error("the vm did not get it")
	}
	l.vms = nil
	l.start()
	if op, err := l.engine.Wait(t.Context(), op.ID); err != nil || op.Status != operation.Done {
		t.Errorf("%+v, %v", op, err)
	}
}
