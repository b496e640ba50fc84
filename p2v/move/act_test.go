package move

import (
	"testing"

	"gpuvirt/gpu"
)

func TestAllows(t *testing.T) {
	for name, c := range map[string]struct {
		m Migration
		// acts that change something, and that are refused; the others change nothing
		changes, refused []Act
	}{
		"reserved":     {Migration{Phase: PhaseReserved}, []Act{ActSync, ActChange, ActRollback}, []Act{ActRetry}},
		"syncing":      {Migration{Phase: PhaseSyncing}, []Act{ActSync, ActChange, ActRollback}, []Act{ActRetry}},
		"ready":        {Migration{Phase: PhaseReady}, []Act{ActSync, ActChange, ActRollback}, []Act{ActRetry}},
		"rehearsing":   {Migration{Phase: PhaseRehearsing}, []Act{ActSync, ActChange, ActRollback}, []Act{ActRetry}},
		"cutting over": {Migration{Phase: PhaseCuttingOver}, []Act{ActChange, ActRollback}, []Act{ActSync, ActRetry}},
		"waiting":      {Migration{Phase: PhaseWaiting}, []Act{ActRetry, ActChange, ActRollback}, []Act{ActSync}},
		"rolling back": {Migration{Phase: PhaseRollingBack}, []Act{ActChange}, []Act{ActSync, ActRetry}},
		"rolled back":  {Migration{Phase: PhaseRolledBack, Record: Record{Ended: PhaseRolledBack}}, nil, []Act{ActSync, ActRetry, ActChange}},
		"failed":       {Migration{Phase: PhaseFailed}, []Act{ActRetry, ActChange}, []Act{ActSync, ActRollback}},
		"abandoned":    {Migration{Phase: PhaseFailed, Abandoned: true}, []Act{ActChange}, []Act{ActSync, ActRetry, ActRollback}},
	} {
		want := map[Act]string{}
		for _, a := range c.changes {
			want[a] = "changes"
		}
		for _, a := range c.refused {
			want[a] = "refused"
		}
		for _, a := range []Act{ActSync, ActRetry, ActChange, ActRollback} {
			got := ""
			switch changes, err := c.m.Allows(a); {
			case gpu.CodeOf(err) == gpu.CodeConflict && err != nil:
				got = "refused"
			case err != nil:
				got = err.Error()
			case changes:
				got = "changes"
			}
			if got != want[a] {
				t.Errorf("%s: %s: %q, want %q", name, a, got, want[a])
			}
		}
	}
	if _, err := (Migration{}).Allows("sing"); err == nil {
		t.Error("no act")
	}
}

// A limit that somebody gives counts in place of the budget, also one that is shorter.
func TestCutoverFits(t *testing.T) {
	for name, c := range map[string]struct {
		limit int
		final float64
		fits  bool
	}{
		"budget":      {0, 100, true},
		"no budget":   {0, 700, false},
		"short limit": {30, 100, false},
		"long limit":  {900, 700, true},
	} {
		m := Migration{Phase: PhaseReady, Record: Record{VM: &VM{}, Forecast: &Forecast{FinalSeconds: c.final, BudgetSeconds: 600, Fits: c.final <= 600}}}
		w := CutWish{Limit: c.limit, Unrehearsed: "a test"}
		if err := m.Refuses(Cutover, w); (err == nil) != c.fits {
			t.Errorf("%s: %v", name, err)
		}
		w.WhenReady = true
		if waits := m.Waits(Attempt{State: Asked, Wish: w}); waits == c.fits {
			t.Errorf("%s: waits %v", name, waits)
		}
	}
}
