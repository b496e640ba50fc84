package report

import (
	"encoding/json"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// A percentile is never less than the true one, and at most two hundredths more; and it is
// the same whether the samples came in one part or in several, in any order.
func TestSeries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		samples := rapid.SliceOfN(rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(1e-4, 1), rapid.Float64Range(1, 2e12)), 1, 200).Draw(t, "samples")
		cut := rapid.IntRange(0, len(samples)).Draw(t, "cut")
		var whole, a, b Series
		for i, v := range samples {
			whole.Add(v)
			if i < cut {
				a.Add(v)
			} else {
				b.Add(v)
			}
		}
		b.Merge(a)
		if diff := cmp.Diff(whole, b, cmpopts.EquateApprox(1e-9, 0)); diff != "" {
			t.Fatalf("in parts (-whole +parts):\n%s", diff)
		}
		if err := whole.check(); err != nil {
			t.Fatal(err)
		}
		slices.Sort(samples)
		for _, q := range []float64{0.01, 0.5, 0.9, 0.95, 0.99, 1} {
			want := samples[int(math.Ceil(q*float64(len(samples))))-1]
			if got := whole.Quantile(q); got < want*(1-1e-12) || got > want*growth*(1+1e-12) {
				t.Fatalf("quantile %v of %v: %v, want %v", q, samples, got, want)
			}
		}
		if whole.Max != samples[len(samples)-1] {
			t.Fatalf("max %v of %v", whole.Max, samples)
		}
	})
}

func TestSeriesWithout(t *testing.T) {
	var s Series
	for _, v := range []float64{-1, math.NaN(), math.Inf(1)} {
		s.Add(v)
	}
	if s.Seen() || s.Quantile(0.95) != 0 || s.Mean() != 0 {
		t.Errorf("a series without samples: %+v", s)
	}
	text, err := json.Marshal(s)
	if err != nil || string(text) != `{"samples":0,"max":0,"sum":0}` {
		t.Errorf("%s %v", text, err)
	}
}
