package p2v_test

import (
	"errors"
	"slices"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
)

// A host that cannot convert says so before days of copying, whoever wants it all the same may have
// it, and who converts nothing is not kept.
func TestNoConverter(t *testing.T) {
	for name, c := range map[string]struct {
		wish    func(*move.Wish)
		refused bool
	}{
		"as it is":          {func(*move.Wish) {}, true},
		"waived":            {func(w *move.Wish) { w.Plan.Waivers = append(w.Plan.Waivers, waived("no-converter")...) }, false},
		"nothing converted": {func(w *move.Wish) { w.VM.Convert = move.ConvertNone }, false},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			w := y.wish()
			y.tools.Converter = assess.Found(errors.New("virt-v2v-in-place is missing"))
			c.wish(&w)
			_, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{})
			e, is := errors.AsType[*gpu.Error](err)
			if is != c.refused || is && !slices.ContainsFunc(e.Blockers, func(b gpu.Blocker) bool { return b.ID == "no-converter" }) {
				t.Errorf("%+v", err)
			}
		})
	}
}

// What was laid for the VM is looked for as a plan is made.
func TestNoLicenceFile(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	w := y.wish()
	w.Plan.LicenceToken = true
	plan, err := y.Plan(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	if b := plan.Verdict.Blockers; len(b) != 1 || b[0].ID != "no-licence-file" || !slices.Contains(b[0].Evidence, "nobody has brought one") {
		t.Errorf("%+v", b)
	}
}
