package host_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// A partition whose device file a process holds is not removed (T17), and one
// whose holders cannot be told counts as held (T23).
func TestHeldPartitionIsNotRemoved(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	op := l.finish(l.CreatePartition(t.Context(), "test", gpu.PartitionWish{Profile: size}, gpu.Idempotency{}))
	id := l.mdevs()[0]
	if op.Status != operation.Done {
		t.Fatalf("create: %+v", op.Problem)
	}
	if err := l.sim.Hold(id, 77, "probe"); err != nil {
		t.Fatal(err)
	}
	_, err := l.DeletePartition(t.Context(), "test", id)
	if e := wantCode(t, err, gpu.CodeGPUBusy); len(e.Blockers) != 1 || e.Blockers[0].ID != "77" || e.Blockers[0].Name != "probe" {
		t.Errorf("refusal %+v", e)
	}
	if err := l.sim.Release(id); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.SetBlind(true); err != nil {
		t.Fatal(err)
	}
	_, err = l.DeletePartition(t.Context(), "test", id)
	wantCode(t, err, gpu.CodeUnavailable)
	if err := l.sim.SetBlind(false); err != nil {
		t.Fatal(err)
	}
	if op := l.finish(l.DeletePartition(t.Context(), "test", id)); op.Status != operation.Done {
		t.Errorf("delete: %+v", op.Problem)
	}
}

func TestIdempotencyKey(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	w, key := gpu.PartitionWish{Profile: size}, gpu.Idempotency{Key: "k1", Request: "digest"}
	first := l.finish(l.CreatePartition(t.Context(), "test", w, key))
	again := l.finish(l.CreatePartition(t.Context(), "test", w, key))
	if first.ID != again.ID || len(l.mdevs()) != 1 {
		t.Errorf("operations %s and %s, mdevs %q", first.ID, again.ID, l.mdevs())
	}
	_, err := l.CreatePartition(t.Context(), "test", w, gpu.Idempotency{Key: "k1", Request: "other"})
	wantCode(t, err, gpu.CodeConflict)
}

// What somebody else made is shown as foreign, counts in capacity and is left
// alone.
func TestForeignPartition(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	foreign := uuid.NewString()
	if err := l.sim.Sysfs.Write(t.Context(), "class/mdev_bus/mbochs/mdev_supported_types/mbochs-large/create", foreign); err != nil {
		t.Fatal(err)
	}
	p, err := l.Partition(t.Context(), foreign)
	if err != nil || p.Origin != gpu.OriginForeign || p.Profile != "mbochs-large" {
		t.Fatalf("partition %+v: %v", p, err)
	}
	if c, _ := l.Capacity(t.Context(), "mbochs-large"); c[0].Available != 3 {
		t.Errorf("capacity %+v, want 3", c)
	}
	_, err = l.DeletePartition(t.Context(), "test", foreign)
	wantCode(t, err, gpu.CodeForeignDevice)
}

// Fifty wishes for one free place: one gets it, the others are refused (T04).
func TestFiftyForOnePlace(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	for i := range 3 {
		l.attach(fmt.Sprintf("l%d", i), gpu.Wish{VM: "db1", Profile: "mbochs-large"})
	}
	type result struct {
		op  operation.Operation
		err error
	}
	results := make(chan result)
	for range 50 {
		go func() {
			op, err := l.CreatePartition(t.Context(), "test", gpu.PartitionWish{Profile: "mbochs-large"}, gpu.Idempotency{})
			if err == nil {
				op, err = l.engine.Wait(t.Context(), op.ID)
			}
			results <- result{op, err}
		}()
	}
	made := 0
	for range 50 {
		r := <-results
		var held *operation.ConflictError
		switch {
		case r.err == nil && r.op.Status == operation.Done:
			made++
		case r.err != nil && (gpu.CodeOf(r.err) == gpu.CodeNoCapacity || asConflict(r.err, &held)):
		default:
			t.Errorf("operation %+v, error %v", r.op, r.err)
		}
	}
	if made != 1 || len(l.mdevs()) != 4 {
		t.Errorf("%d made, mdevs %q", made, l.mdevs())
	}
}
