package p2v_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
)

// A dry run refuses whatever a start refuses, with the same words.
func TestRefusalIsThatOfCreate(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.vms.docs["u"] = "<name>web1</name><uuid>u</uuid>"
	y.holders.set(func(h *holders) {
		h.gpus, h.profiles = []gpu.GPU{{ID: card}}, []gpu.Profile{{Name: "L40S-8Q"}, {Name: "L40S-48Q"}}
	})
	for name, c := range map[string]struct {
		change func(*move.Wish)
		code   gpu.Code
		text   string
		hint   string
		is     gpu.Blocker
	}{
		"too little memory": {func(w *move.Wish) { w.Plan.MemoryBytes = 1 << 20 }, gpu.CodeInvalid, "memory are not enough", "", gpu.Blocker{}},
		"threads":           {func(w *move.Wish) { w.Plan.Threads = 1 << 40 }, gpu.CodeInvalid, "CPUs", "", gpu.Blocker{}},
		"a NIC that is not there": {
			func(w *move.Wish) { w.VM.NICs = []move.NIC{{MAC: "aa:bb:cc:dd:ee:ff", Network: "default"}} }, gpu.CodeInvalid, "aa:bb:cc:dd:ee:ff", "", gpu.Blocker{},
		},
		"no name of a VM": {func(w *move.Wish) { w.VM.Name = "a b/c" }, gpu.CodeInvalid, "a b/c", "", gpu.Blocker{}},
		"a VM that is there": {
			func(w *move.Wish) { w.VM.Name = "web1" }, gpu.CodeConflict, `there is a VM "web1"`, "--vm", gpu.Blocker{Kind: "vm", ID: "u", Name: "web1"},
		},
		"no such concern": {
			func(w *move.Wish) { w.Plan.Waivers = waived("bogus") }, gpu.CodeInvalid, `"bogus"`, "", gpu.Blocker{},
		},
		"no such profile": {
			func(w *move.Wish) { w.Plan.Partitions = []assess.WishPartition{{Profile: "bogus"}} }, gpu.CodeInvalid, `there is no profile "bogus" on this host`, "L40S-8Q", gpu.Blocker{},
		},
		"a key of what is not encrypted": {
			func(w *move.Wish) { w.Keys = []move.Key{{Volume: "nvme0n1p1", Credential: "x"}} }, gpu.CodeInvalid, "is not encrypted", "", gpu.Blocker{},
		},
		"a key of a disk with partitions": {
			func(w *move.Wish) { w.Keys = []move.Key{{Volume: "nvme0n1", Credential: "x"}} }, gpu.CodeInvalid, "is not encrypted", "", gpu.Blocker{},
		},
	} {
		w := y.wish()
		c.change(&w)
		for _, err := range []error{func() error { _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); return err }(), y.Refusal(t.Context(), w)} {
			e, is := errors.AsType[*gpu.Error](err)
			if !is || e.Code != c.code || !strings.Contains(err.Error(), c.text) || !strings.Contains(e.Hint, c.hint) ||
				c.is != (gpu.Blocker{}) && !slices.Contains(e.Blockers, c.is) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if all, err := y.Migrations.Migrations(); err != nil || len(all) != 0 {
		t.Errorf("%v %v", all, err)
	}
	// Without a name nothing is told that nobody has named.
	w := y.wish()
	w.Name = ""
	if err := y.Refusal(t.Context(), w); err != nil {
		t.Error(err)
	}
	w.Keys = []move.Key{{Volume: "sdz", Credential: "x"}}
	if err := y.Refusal(t.Context(), w); err == nil || !strings.Contains(err.Error(), `cannot migrate the server of assessment "gpu7"`) {
		t.Errorf("got %v", err)
	}
}

// A server that is being moved already: the migration is named, not its operation alone.
func TestServerIsMovedAlready(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	w := y.wish()
	y.begin()
	w.Name = "other"
	for _, err := range []error{func() error { _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); return err }(), y.Refusal(t.Context(), w)} {
		e, is := errors.AsType[*gpu.Error](err)
		if !is || e.Code != gpu.CodeConflict || !strings.Contains(err.Error(), "migration gpu7 moves this server") || !strings.Contains(e.Hint, "gpuvirt migrate show gpu7") ||
			!slices.Equal(e.Blockers, []gpu.Blocker{{Kind: "migration", ID: "gpu7"}}) {
			t.Errorf("got %v", err)
		}
	}
}

// A migration that cannot begin, and takes itself back, says why, for as long as it is kept.
func TestMigrationSaysWhyItEnded(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.vms.fail("define", gpu.Errorf(gpu.CodeConflict, "there is a VM of that name"))
	y.begin()
	v := y.until("rolled back", phase(move.PhaseRolledBack))
	if !strings.Contains(v.Reason, "there is a VM of that name") {
		t.Errorf("got %q", v.Reason)
	}
	rec, err := y.store.MigrationRecord("gpu7")
	if err != nil || !strings.Contains(rec.Why, "there is a VM of that name") {
		t.Errorf("kept: %q, %v", rec.Why, err)
	}
	// One that somebody takes back needs no reason.
	y.vms.fail("define", nil)
	if _, err := y.Delete(t.Context(), "gpu7"); err != nil {
		t.Fatal(err)
	}
	y.begin()
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	if v = y.until("rolled back", phase(move.PhaseRolledBack)); v.Reason != "" {
		t.Errorf("got %q", v.Reason)
	}
}
