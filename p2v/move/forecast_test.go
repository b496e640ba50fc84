package move

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
)

// rehearsed is a record with a forecast of a last pass, and a rehearsal that took so long to convert
// and to boot.
func rehearsed(final, conversion, boot float64) Record {
	r := Record{Name: "gpu7", VM: &VM{}, Forecast: &Forecast{FinalSeconds: final, SettledSeconds: 1, BudgetSeconds: 600}}
	if conversion > 0 {
		r.Attempts = []Attempt{{Kind: Rehearsal, State: Passed, Began: time.Date(2026, 11, 24, 13, 0, 1, 0, time.UTC), Conversion: conversion, Boot: boot}}
	}
	r.Weigh()
	return r
}

// What a cut-over would take is all that it consists of, as far as that is known, and what it may
// take is the budget, or a limit that somebody gives.
func TestCutoverFitsAsAWhole(t *testing.T) {
	for name, c := range map[string]struct {
		final, conversion, boot float64
		limit                   int
		says, hint              string // of the refusal; empty: it fits
	}{
		"estimated":                    {final: 100},
		"estimated, of a short limit":  {final: 10, limit: 100, says: "180 s are the conversion (estimated", hint: "gpuvirt migrate rehearse gpu7 measures"},
		"estimated, of the budget":     {final: 430, says: "at rest for 610 s, and may be for 600 s: 430 s are the last pass", hint: "--every"},
		"the last pass":                {final: 700, says: "700 s are the last pass", hint: "--when-ready"},
		"measured":                     {final: 100, conversion: 300, boot: 100},
		"measured, of a short limit":   {final: 10, conversion: 300, boot: 10, limit: 60, says: "300 s are the conversion (measured 2026-11-24T13:00:01Z, by a rehearsal)", hint: "--limit 372s"},
		"less than was estimated":      {final: 10, conversion: 20, boot: 10, limit: 60},
		"the boot":                     {final: 10, conversion: 100, boot: 500, says: "the downtime would be 610 s at least, and 600 s are allowed: 500 s are the boot", hint: "--limit 732s"},
		"the boot, and a limit":        {final: 10, conversion: 100, boot: 500, limit: 300, says: "the downtime would be", hint: "--limit 732s"},
		"the boot, and a longer limit": {final: 10, conversion: 100, boot: 500, limit: 620},
	} {
		t.Run(name, func(t *testing.T) {
			r := rehearsed(c.final, c.conversion, c.boot)
			m := Migration{Phase: PhaseReady, Record: r}
			w := CutWish{Limit: c.limit, Unrehearsed: "a test"}
			err := m.Refuses(Cutover, w)
			if c.says == "" {
				if err != nil {
					t.Error(err)
				}
			} else if e, is := err.(*gpu.Error); !is || e.Code != gpu.CodeConflict || !strings.Contains(e.Error(), c.says) || !strings.Contains(e.Hint, c.hint) { //nolint:errorlint // it is not wrapped
				t.Errorf("%+v", err)
			}
			w.WhenReady = true
			if err := m.Refuses(Cutover, w); err != nil {
				t.Errorf("when it is ready: %v", err)
			}
			if waits := r.Waits(Attempt{State: Asked, Wish: w}); waits == (c.says == "") {
				t.Errorf("it waits: %v", waits)
			}
			if c.limit == 0 && r.Forecast.Fits != (c.says == "") {
				t.Errorf("%+v", r.Forecast)
			}
		})
	}
}

// A forecast tells what it rests on.
func TestForecastTellsItsBasis(t *testing.T) {
	f := rehearsed(10, 0, 0).Forecast
	if f.Conversion.Basis != Estimated || f.Conversion.Seconds != 180 || f.Boot.Basis != Unknown || f.PowerOff.Basis != Unknown || f.RestSeconds != 190 || f.DowntimeSeconds != 190 {
		t.Errorf("nothing was tried: %+v", f)
	}
	r := rehearsed(10, 30, 40)
	if f = r.Forecast; f.Conversion.Basis != Measured || f.Conversion.At != r.Attempts[0].Began || f.Boot.Basis != Measured || f.RestSeconds != 40 || f.DowntimeSeconds != 80 || !f.Converges {
		t.Errorf("it was rehearsed: %+v", f)
	}
	// The newest that has come so far counts; one that was broken off before says nothing.
	r.Try(Attempt{Kind: Cutover, State: Failed, Conversion: 50})
	r.Try(Attempt{Kind: Rehearsal, State: Failed})
	r.Weigh()
	if f = r.Forecast; f.Conversion.Seconds != 50 || !strings.Contains(f.Conversion.Text, "cut-over") || f.Boot.Seconds != 40 {
		t.Errorf("a cut-over has failed since: %+v", f)
	}
	// What the limit has ended takes longer than it did by then, and not less than what was measured.
	r.Try(Attempt{Kind: Cutover, State: Failed, ConversionCut: 20})
	r.Weigh()
	if f = r.Forecast; f.Conversion.Seconds != 50 || f.Conversion.Basis != Measured {
		t.Errorf("it was ended early: %+v", f)
	}
	r.Try(Attempt{Kind: Cutover, State: Failed, ConversionCut: 100})
	r.Weigh()
	if f = r.Forecast; f.Conversion.Seconds != 120 || f.Conversion.Basis != Estimated {
		t.Errorf("it was ended: %+v", f)
	}
	r.Wanted.Convert = ConvertNone
	r.Weigh()
	if f = r.Forecast; f.Conversion.Seconds != 0 || f.Conversion.Basis != Estimated || f.RestSeconds != 10 {
		t.Errorf("nothing is converted: %+v", f)
	}
	// Comparing all of the disks is of those that ask for it alone.
	r.Attempts[0].Comparison = 1000
	r.Weigh()
	if !r.Forecast.Fits || r.Waits(Attempt{State: Asked, Wish: CutWish{WhenReady: true}}) || !r.Waits(Attempt{State: Asked, Wish: CutWish{WhenReady: true, Verify: true}}) {
		t.Errorf("compared: %+v", r.Forecast)
	}
	// A server that is off is away however long it takes.
	r = rehearsed(10000, 30, 40)
	r.DisksFrom = []DiskFrom{{Disk: "sda", Image: "/srv/x.raw"}}
	r.Weigh()
	if m := (Migration{Phase: PhaseReady, Record: r}); !r.Forecast.Fits || m.Refuses(Cutover, CutWish{Unrehearsed: "x", SourceOff: true}) != nil || m.Refuses(Cutover, CutWish{Unrehearsed: "x", SourceOff: true, Limit: 60}) == nil {
		t.Errorf("%+v", r.Forecast)
	}
}

// A record of a version before has no parts, and means what it did.
func TestForecastBefore(t *testing.T) {
	var r Record
	const text = `{"name":"gpu7","forecast":{"final_seconds":500,"settled_seconds":3,"budget_seconds":600,"fits":true,"converges":true},"attempts":[{"kind":"rehearsal","state":"passed","rest_seconds":4}]}`
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	for limit, waits := range map[int]bool{0: false, 499: true, 500: false} {
		if got := r.Waits(Attempt{State: Asked, Wish: CutWish{WhenReady: true, Limit: limit}}); got != waits {
			t.Errorf("a limit of %d: waits %v", limit, got)
		}
	}
	again, err := json.Marshal(r)
	if err != nil || strings.Contains(string(again), "basis") || strings.Contains(string(again), "conversion") {
		t.Errorf("%s, %v", again, err)
	}
	r.Weigh()
	if f := r.Forecast; f.Conversion.Seconds != 180 || f.Fits {
		t.Errorf("%+v", f)
	}
}
