package host_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/host"
	"gpuvirt/internal/sim"
)

// asked notes how devices are given to VMs, and fails some of it.
type asked struct {
	*sim.Libvirt

	mu   sync.Mutex
	how  []string
	fail []error // of the next calls
}

var _ host.VMs = (*asked)(nil)

func (a *asked) note(how string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.how = append(a.how, how)
	if len(a.fail) == 0 {
		return nil
	}
	err := a.fail[0]
	a.fail = a.fail[1:]
	return err
}

func (a *asked) Attach(ctx context.Context, vm string, dev gpu.Hostdev, scope gpu.Scope) error {
	if err := a.note("looks"); err != nil {
		return err
	}
	return a.Libvirt.Attach(ctx, vm, dev, scope)
}

func (a *asked) AttachNew(ctx context.Context, vm string, dev gpu.Hostdev, scope gpu.Scope) error {
	if err := a.note("new"); err != nil {
		return err
	}
	return a.Libvirt.AttachNew(ctx, vm, dev, scope)
}

// Only what was made a moment ago, for all that the VM has, is given to it unseen.
func TestAttachLooksUnlessNew(t *testing.T) {
	for _, tc := range []struct {
		name string
		wish gpu.Wish
		fail []error
		want []string
	}{
		{"a running VM", gpu.Wish{VM: "web1"}, nil, []string{"new"}},
		{"one that gets it at its next start", gpu.Wish{VM: "web1", Hotplug: gpu.HotplugNever}, nil, []string{"looks"}},
		{
			"one that may have got it before the answer was lost",
			gpu.Wish{VM: "web1"},
			[]error{gpu.Errorf(gpu.CodeUnavailable, "libvirt does not answer")},
			[]string{"new", "looks"},
		},
		{
			"one that is not as it was",
			gpu.Wish{VM: "web1"},
			[]error{gpu.Errorf(gpu.CodeConflict, "the VM does not run")},
			[]string{"new", "looks"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			vms := &asked{Libvirt: l.sim.Libvirt, fail: tc.fail}
			l.stop()
			l.vms = vms
			l.start()
			l.manage(card)
			tc.wish.Profile = size
			if a := l.attach("gfx", tc.wish); a.State != gpu.AssignmentAttached {
				t.Errorf("assignment %+v", a)
			}
			vms.mu.Lock()
			defer vms.mu.Unlock()
			if !slices.Equal(vms.how, tc.want) {
				t.Errorf("asked %q, want %q", vms.how, tc.want)
			}
		})
	}
}
