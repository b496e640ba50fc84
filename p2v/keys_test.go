package p2v_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

const header = "0b6f9d3a-6f0c-4a55-8d6e-3f1c9a5e7b21" // the UUID of an encrypted volume

// encrypt has the inspection say that the first disk's partition is encrypted.
func (y *yard) encrypt() {
	y.t.Helper()
	r := y.machine.report()
	r.Disks[0].Partitions[0].Content = "crypto_LUKS"
	if len(r.Disks) > 1 {
		r.Disks[1].Content, r.Disks[1].Partitions = "crypto_LUKS", []report.Partition{}
	}
	rec := report.AssessmentRecord{Name: "gpu7", Source: ssh(), State: report.StateDone, Report: r}
	if err := y.store.Apply(operation.Put(report.RecordAssessment, "gpu7", rec)); err != nil {
		y.t.Fatal(err)
	}
}

// opened are the keys of each conversion, by their volumes.
func (y *yard) opened() func() []string {
	var got []string
	y.makers.set(func(what string, job convert.Job) {
		if what != "convert" {
			return
		}
		y.later(time.Minute) // so that no cut-over fits that is to take a second
		for _, k := range job.Keys {
			got = append(got, k.Volume+"="+string(k.Passphrase))
		}
	})
	return func() []string {
		y.makers.set(nil)
		return got
	}
}

// What opens an encrypted volume is asked for before anything is copied, reaches the conversion, is
// kept nowhere, and is wanted again when the daemon was started anew.
func TestKeys(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.encrypt()
	w := move.Wish{Name: "gpu7", Assessment: "gpu7", Copy: move.Copy{Connections: 2}}
	refused := func(code gpu.Code, says string) {
		t.Helper()
		_, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{})
		e, is := errors.AsType[*gpu.Error](err)
		if !is || e.Code != code || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "swordfish") {
			t.Errorf("%s: %v", says, err)
		}
	}
	refused(gpu.CodeConflict, "passphrase")
	w.Keys = []move.Key{{Volume: "nvme0n1p9", Passphrase: "swordfish"}, {Volume: "nvme0n1p1", Passphrase: "swordfish"}}
	refused(gpu.CodeInvalid, "nvme0n1p9")
	w.Keys = []move.Key{{Volume: "nvme0n1p1", Passphrase: "swordfish\nand more"}}
	refused(gpu.CodeInvalid, "line")
	w.VM.Convert = move.ConvertNone
	if p, err := y.Plan(t.Context(), move.Wish{Assessment: "gpu7", VM: w.VM}); err != nil || slices.ContainsFunc(p.Verdict.Blockers, isNoKey) {
		t.Errorf("%+v, %v", p.Verdict, err)
	}
	w.VM.Convert = ""
	w.Keys = []move.Key{{Volume: "nvme0n1p1", Passphrase: "swordfish"}, {Volume: header, Credential: "disk2"}}
	y.credentials = map[string]string{"disk2": "marlin\n"}
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	y.until("ready", phase(move.PhaseReady))
	got := y.opened()
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	if want := []string{"/dev/sda1=swordfish", header + "=marlin"}; !slices.Equal(got(), want) {
		t.Errorf("opened by %q, want %q", got(), want)
	}
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{WhenReady: true, Limit: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Withdraw("gpu7", "tester"); err != nil {
		t.Fatal(err)
	}
	y.until("withdrawn", func(v move.Migration) bool { return v.Pending() == nil })

	y.stop()
	was, err := y.store.MigrationRecord("gpu7")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{y.store.Path()} {
		if kept, err := os.ReadFile(file); err != nil || len(kept) == 0 || bytes.Contains(kept, []byte("swordfish")) {
			t.Errorf("%s has it, or nothing: %v", file, err)
		}
	}
	y.start()
	v := y.until("ready", func(v move.Migration) bool {
		return v.Phase == move.PhaseReady && v.Disks[0].Total > was.Disks[0].Total && v.Forecast != nil
	})
	if !slices.Equal(v.Locked, []string{"nvme0n1p1"}) || !strings.Contains(v.Reason, "--passphrase-file nvme0n1p1=FILE") {
		t.Errorf("%q, %q", v.Locked, v.Reason)
	}
	if _, err := y.Rehearse(t.Context(), "gpu7", "tester", move.CutWish{}); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "wanted again") {
		t.Errorf("got %v", err)
	}
	for _, keys := range [][]move.Key{{{Volume: "sdz", Passphrase: "x"}}, {{Volume: "nvme0n1p1"}}} {
		if _, err := y.SetKeys("gpu7", keys); gpu.CodeOf(err) != gpu.CodeInvalid {
			t.Errorf("%v: got %v", keys, err)
		}
	}
	many := make([]move.Key, 0, 64)
	for i := range cap(many) {
		many = append(many, move.Key{Volume: fmt.Sprintf("0b6f9d3a-6f0c-4a55-8d6e-%012x", i), Passphrase: "x"})
	}
	if _, err := y.SetKeys("gpu7", many); gpu.CodeOf(err) != gpu.CodeInvalid || !strings.Contains(err.Error(), "keys would be 66") {
		t.Errorf("got %v", err)
	}
	if v, err := y.SetKeys("gpu7", []move.Key{{Volume: "nvme0n1p1", Passphrase: "another"}}); err != nil || len(v.Locked) != 0 || v.Reason != "" || len(v.Keys) != 2 {
		t.Errorf("%+v, %v", v, err)
	}
	got = y.opened()
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	if want := []string{header + "=marlin", "/dev/sda1=another"}; !slices.Equal(got(), want) {
		t.Errorf("opened by %q, want %q", got(), want)
	}
	y.credentials = nil
	froze := y.machine.rest.froze
	if a := y.rehearse(move.CutWish{}); a.State != move.Failed || !strings.Contains(a.Problem, `"disk2"`) || y.machine.rest.froze != froze {
		t.Errorf("the server was brought to rest %d times: %+v", y.machine.rest.froze-froze, a)
	}
}

// A cut-over that waits until it is ready waits for passphrases, too, and goes on when they are
// given.
func TestKeysAreWaitedFor(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib, 2*mib))
	y.encrypt()
	y.budget = 1e-9 // which nothing fits
	w := y.wishWith(move.Key{Volume: "nvme0n1p1", Passphrase: "swordfish"}, move.Key{Volume: "nvme1n1", Passphrase: "marlin"})
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	y.until("synced", passes(1))
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{WhenReady: true, Unrehearsed: "a test"}); err != nil {
		t.Fatal(err)
	}
	y.stop()
	rec, err := y.store.MigrationRecord("gpu7")
	if err != nil {
		t.Fatal(err)
	}
	rec.Plan.DowntimeSeconds = 600
	if err := y.store.Apply(operation.Put(move.RecordMigration, "gpu7", rec)); err != nil {
		t.Fatal(err)
	}
	y.start()
	v := y.until("ready", func(v move.Migration) bool {
		return v.Phase == move.PhaseReady && v.Disks[0].Total > rec.Disks[0].Total
	})
	if a := v.Pending(); a == nil || a.State != move.Asked || len(v.Locked) != 2 {
		t.Errorf("%+v, %q", a, v.Locked)
	}
	// Until then it is copied at its pace, and no faster.
	<-time.After(300 * time.Millisecond)
	if n := y.until("", func(move.Migration) bool { return true }).Disks[0].Total - v.Disks[0].Total; n > 1 {
		t.Errorf("%d passes were made while it waited", n)
	}
	got := y.opened()
	if _, err := y.SetKeys("gpu7", w.Keys); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
	if want := []string{"/dev/sda1=swordfish", "/dev/sdb=marlin"}; !slices.Equal(got(), want) {
		t.Errorf("opened by %q, want %q", got(), want)
	}
}

func isNoKey(c assess.Concern) bool { return c.ID == "no-key" }

// Where nothing is converted nobody needs a passphrase.
func TestKeysOfNothing(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.encrypt()
	w := move.Wish{Name: "gpu7", Assessment: "gpu7", Keys: []move.Key{{Volume: "nvme0n1p1", Credential: "gone"}}}
	w.VM.Convert = move.ConvertNone
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	y.until("ready", phase(move.PhaseReady))
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
}
