package host_test

import (
	"errors"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

// Settings that are put while others are being set are refused, also where what was read
// looks as it should be, and the others are done before all is read.
func TestSettingsBesideOthers(t *testing.T) {
	l := newShareLab(t, false)
	l.mustSet(l40s, scheduler(gpu.EqualShare, 2e6))
	begun, read, slow := make(chan struct{}), make(chan struct{}), make(chan func(), 2)
	l.stop()
	l.library = late{l.sim.NVML, slow}
	l.start()
	l.sim.NVML.OnCall(func(sim.Call) {
		close(begun)
		<-read
	})
	_, op, err := l.PutVGPUSettings(t.Context(), "test", l40s, scheduler(gpu.EqualShare, 3e6))
	if err != nil || op == nil {
		t.Fatalf("%+v, %v", op, err)
	}
	<-begun
	l.sim.NVML.OnCall(nil)
	slow <- func() {} // the look, before the plan
	slow <- func() {
		close(read)
		if op := l.finish(*op, nil); op.Status != operation.Done {
			t.Errorf("%+v", op.Problem)
		}
	}
	s, again, err := l.PutVGPUSettings(t.Context(), "test", l40s, scheduler(gpu.EqualShare, 2e6))
	if _, held := errors.AsType[*operation.ConflictError](err); !held || again != nil {
		t.Errorf("%+v, %v: %s is wanted and %s is", again, err, s.Wanted.Scheduler, s.Actual.Scheduler.Actual)
	}
	if s := l.settings(l40s); !s.Equal {
		t.Errorf("%+v", s)
	}
}

// A late library keeps whoever has read a scheduler waiting.
type late struct {
	mig.Library
	wait chan func()
}

func (l late) Open() (mig.Session, error) {
	s, err := l.Library.Open()
	return lateSession{s, l.wait}, err
}

type lateSession struct {
	mig.Session
	wait chan func()
}

func (s lateSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return lateDevice{d, s.wait}, err
}

type lateDevice struct {
	mig.Device
	wait chan func()
}

func (d lateDevice) MixedSize() (mig.MixedSize, error) {
	select {
	case f := <-d.wait:
		f()
	default:
	}
	return d.Device.MixedSize()
}
