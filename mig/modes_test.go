package mig_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
)

// All GPUs of NVIDIA are asked in one session, those that MIG cannot cut too, and no
// others.
func TestModes(t *testing.T) {
	odd := sim.T4("0000:88:00.0", 1)
	odd.Modes = gpu.Modes{Compute: gpu.ComputeProhibited}
	h := simulated(t, sim.A100("0000:41:00.0", 0), odd, sim.GVTg("0000:00:02.0"), sim.Mbochs())
	counted := &countingLibrary{Library: h.NVML}
	b := mig.NewBackend(counted, h.Sysfs, mig.Options{})
	all := []gpu.ID{"0000:41:00.0", "0000:88:00.0", "0000:00:02.0", "mbochs", "0000:99:00.0", ""}
	want := map[gpu.ID]gpu.Modes{
		"0000:41:00.0": {ECC: &gpu.ECC{Current: true, Pending: true}, Compute: gpu.ComputeDefault},
		"0000:88:00.0": {Compute: gpu.ComputeProhibited},
	}
	got, err := b.Modes(t.Context(), all...)
	if diff := cmp.Diff(want, got); diff != "" || err != nil || counted.opened.Load() != 1 {
		t.Errorf("%d sessions, %v, %s", counted.opened.Load(), err, diff)
	}
	// One that does not answer hides no other.
	h.NVML.Fail("GetModes", mig.ErrGPULost, 1)
	if got, err := b.Modes(t.Context(), all...); err != nil || len(got) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := b.Modes(t.Context(), "0000:00:02.0", "mbochs"); err != nil || len(got) != 0 || counted.opened.Load() != 2 {
		t.Errorf("others' cards: %+v, %v, %d sessions", got, err, counted.opened.Load())
	}
	h.NVML.Fail("Init", mig.ErrDriverNotLoaded, 1)
	_, err = b.Modes(t.Context(), all...)
	wantCode(t, err, gpu.CodeDriverMissing)
	if n := h.NVML.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}

// What is only shown is not waited for, and does not make a GPU count as stuck that is
// slow. It begins no session while virtual functions change.
func TestGlanceDoesNotWait_T33_T44(t *testing.T) {
	h, _ := two(t)
	l := &hangingLibrary{Library: h.NVML, free: make(chan struct{})}
	gate := mig.NewGate(l)
	b := mig.NewBackend(gate, h.Sysfs, mig.Options{GlanceTimeout: 300 * time.Millisecond})
	l.hang.Store(true)
	for range 2 { // the second has no session of their own
		_, err := b.Modes(t.Context(), id)
		wantCode(t, err, gpu.CodeUnavailable)
	}
	if n := h.NVML.Sessions(); n != 1 {
		t.Errorf("%d sessions are open", n)
	}
	if ids, err := b.IDs(t.Context()); err != nil || len(ids) == 0 {
		t.Errorf("a slow answer to what is only shown: %v, %v", ids, err)
	}
	close(l.free)
	open, err := gate.Shut(t.Context()) // waits for the session
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Modes(t.Context(), id)
	wantCode(t, err, gpu.CodeUnavailable)
	open()
	if m, err := b.Modes(t.Context(), id); err != nil || m[id].ECC == nil {
		t.Errorf("%+v, %v", m, err)
	}
}
