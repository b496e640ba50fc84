package host_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/host"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

func asConflict(err error, target **operation.ConflictError) bool { return errors.As(err, target) }

func (l *lab) restore(wait time.Duration) ([]host.Restored, error) {
	l.t.Helper()
	gpus, err := l.store.GPURecords()
	if err != nil {
		l.t.Fatal(err)
	}
	records, err := l.store.PartitionRecords()
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), wait)
	defer cancel()
	changed := make(chan struct{})
	go func() {
		for range l.sim.Devices() {
			select {
			case changed <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return host.Restore(ctx, gpus, records, l.inv, changed, slog.New(slog.DiscardHandler))
}

// After a reboot all mdevs are gone; restore brings each back under its UUID, on
// its parent, and a second one writes nothing (T10).
func TestRestoreAfterReboot(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	a := l.attach("live", gpu.Wish{VM: "web1", Profile: size})
	b := l.attach("config", gpu.Wish{VM: "db1", Profile: "mbochs-large"})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if got, err := l.Assignment(t.Context(), "live"); err != nil || got.State != gpu.AssignmentDrifted {
		t.Errorf("before the restore: %+v: %v", got, err)
	}
	done, err := l.restore(time.Minute)
	if err != nil || len(done) != 2 || !done[0].Made || !done[1].Made {
		t.Fatalf("restored %+v: %v", done, err)
	}
	for _, want := range []gpu.Assignment{a, b} {
		p, err := l.Partition(t.Context(), want.Partition)
		if err != nil || p.State != gpu.PartitionMade || p.GPU != card || p.Profile != want.Wish.Profile || p.Origin != gpu.OriginManaged {
			t.Errorf("partition %+v: %v", p, err)
		}
	}
	before := l.writes()
	if _, err := l.restore(time.Minute); err != nil || l.writes() != before {
		t.Errorf("the second restore: %v, %d writes", err, l.writes()-before)
	}
}

// A parent that is not there yet is waited for (T05); one that never comes fails
// loudly and is not taken for gone (T11).
func TestRestoreWaitsForItsParent(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	a := l.attach("gfx", gpu.Wish{VM: "db1", Profile: size})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Appear(string(card), time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := l.restore(2 * time.Second); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Errorf("error %v", err)
	}
	if got, err := l.Assignment(t.Context(), "gfx"); err != nil || got.Partition != a.Partition {
		t.Errorf("the assignment is gone: %+v, %v", got, err)
	}
	if err := l.sim.Appear(string(card), 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if done, err := l.restore(time.Minute); err != nil || !done[0].Made {
		t.Errorf("restored %+v: %v", done, err)
	}
}

// Another card at the same address is not given the first one's partitions (T12).
func TestRestoreRefusesAnotherCard(t *testing.T) {
	l := newLab(t)
	l.manage(t4)
	l.attach("gfx", gpu.Wish{VM: "db1", Profile: "T4-1Q"})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Change(string(t4), func(c *sim.Card) { c.PCI.SubsystemDevice = "0xffff" }); err != nil {
		t.Fatal(err)
	}
	if _, err := l.restore(time.Minute); gpu.CodeOf(err) != gpu.CodeDrift {
		t.Errorf("error %v, want drift", err)
	}
	if got := l.mdevs(); len(got) != 0 {
		t.Errorf("mdevs %q", got)
	}
}
