package gputest

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

func (t *trial) makeTwice() {
	want, made := t.mustMake()
	if made.GPU != want.GPU || made.Kind != want.Kind || made.Profile != want.Profile || made.ID != want.ID {
		t.Errorf("made %+v, want %+v", made, want)
	}
	// A MIG partition cannot be given to a VM alone.
	if made.Handle == (gpu.Handle{}) && made.Kind != gpu.KindMIG || made.Parent == "" {
		t.Errorf("made %+v lacks its handle or parent", made)
	}
	listed := t.partitions()
	if i := slices.IndexFunc(listed, func(p gpu.Partition) bool { return p.ID == made.ID }); i < 0 {
		t.Errorf("what was made is not listed: %+v", listed)
	} else if diff := cmp.Diff(made, listed[i]); diff != "" {
		t.Errorf("what was made is listed differently (-made +listed):\n%s", diff)
	}
	free := t.free()
	again, err := t.b.Make(t.Context(), want)
	if err != nil {
		t.Fatalf("making it again: %v", err)
	}
	if diff := cmp.Diff(made, again); diff != "" {
		t.Errorf("making it again made something else:\n%s", diff)
	}
	if diff := cmp.Diff(listed, t.partitions()); diff != "" {
		t.Errorf("making it again changed what is there:\n%s", diff)
	}
	if diff := cmp.Diff(free, t.free()); diff != "" {
		t.Errorf("making it again changed what is free:\n%s", diff)
	}
}

func (t *trial) removeTwice() {
	_, made := t.mustMake()
	var stays gpu.Partition
	if !t.o.Single {
		_, stays = t.mustMake()
	}
	for range 2 {
		if err := t.b.Remove(t.Context(), made); err != nil {
			t.Fatalf("Remove: %v", err)
		}
		for _, p := range t.partitions() {
			if p.ID == made.ID {
				t.Fatal("what was removed is still listed")
			}
		}
	}
	if !t.o.Single && !slices.ContainsFunc(t.partitions(), func(p gpu.Partition) bool { return p.ID == stays.ID }) {
		t.Error("removing one removed another")
	}
	never := t.o.Want(t.o.Profile)
	if err := t.b.Remove(t.Context(), never); err != nil {
		t.Errorf("removing what never was: %v", err)
	}
}

func (t *trial) capacity() {
	if t.o.Vague {
		t.fillVaguely()
	}
	before := t.free()
	_, made := t.mustMake()
	during := t.free()
	if during[t.o.Profile] >= before[t.o.Profile] {
		t.Errorf("%d of %s are available after making one, before it were %d", during[t.o.Profile], t.o.Profile, before[t.o.Profile])
	}
	for name, n := range during {
		if n > before[name] {
			t.Errorf("making a %s raised what is available of %s from %d to %d", t.o.Profile, name, before[name], n)
		}
	}
	if err := t.b.Remove(t.Context(), made); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	if diff := cmp.Diff(before, t.free()); diff != "" {
		t.Errorf("what was free has not come back:\n%s", diff)
	}
}

func (t *trial) otherProfile() {
	if t.o.Other == "" {
		t.Skip("no other profile given")
	}
	want, made := t.mustMake()
	before := t.partitions()
	want.Profile = t.o.Other
	_, err := t.b.Make(t.Context(), want)
	t.wantCode("Make of the same identity with another profile", err, gpu.CodeConflict)
	if diff := cmp.Diff(before, t.partitions()); diff != "" {
		t.Errorf("a conflict changed what is there:\n%s", diff)
	}
	made.Profile, made.Native = t.o.Other, ""
	t.wantCode("Remove of the same identity with another profile", t.b.Remove(t.Context(), made), gpu.CodeConflict)
	if diff := cmp.Diff(before, t.partitions()); diff != "" {
		t.Errorf("a conflict changed what is there:\n%s", diff)
	}
}

func (t *trial) full() {
	t.fill(0)
	before := t.partitions()
	for range 3 {
		if placer, ok := t.b.(gpu.Placer); ok && t.o.Single {
			_, err := placer.Place(t.Context(), t.o.GPU, t.o.Profile, nil)
			t.wantCode("Place on a full gpu", err, gpu.CodeNoCapacity)
		} else {
			_, err := t.make(t.o.Want(t.o.Profile))
			t.wantCode("Make on a full gpu", err, gpu.CodeNoCapacity)
		}
		if diff := cmp.Diff(before, t.partitions()); diff != "" {
			t.Errorf("a refusal changed what is there:\n%s", diff)
		}
	}
	// One place again is one place again.
	if err := t.b.Remove(t.Context(), t.made[0]); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	t.mustMake()
}

func (t *trial) race() {
	if t.o.Vague {
		t.fillVaguely()
	} else {
		t.fill(1)
	}
	before := len(t.partitions())
	var wg sync.WaitGroup
	results := make(chan error, t.o.Racers)
	for range t.o.Racers {
		want := t.o.Want(t.o.Profile)
		wg.Go(func() {
			_, err := t.make(want)
			results <- err
		})
	}
	wg.Wait()
	close(results)
	won := 0
	for err := range results {
		if err == nil {
			won++
			continue
		}
		t.wantCode("Make without a place", err, gpu.CodeNoCapacity)
	}
	if t.o.Places && won > 0 {
		won = 1
	}
	if after := len(t.partitions()); won != 1 || after != before+1 {
		t.Errorf("%d of %d callers got the one place, and %d partitions are there after %d", won, t.o.Racers, after, before)
	}
}

func (t *trial) cancelled() {
	_, made := t.mustMake()
	before := t.partitions()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := t.b.Make(ctx, t.o.Want(t.o.Profile)); !errors.Is(err, context.Canceled) {
		t.Errorf("Make with a cancelled context: %v", err)
	}
	if err := t.b.Remove(ctx, made); !errors.Is(err, context.Canceled) {
		t.Errorf("Remove with a cancelled context: %v", err)
	}
	if diff := cmp.Diff(before, t.partitions()); diff != "" {
		t.Errorf("a cancelled call changed what is there:\n%s", diff)
	}
}
