package report

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func series(t *rapid.T) Series {
	var s Series
	// Whole numbers: sums of them are exact, in whatever order.
	for _, v := range rapid.SliceOfN(rapid.IntRange(0, 1<<20), 0, 4).Draw(t, "samples") {
		s.Add(float64(v))
	}
	return s
}

func usage(t *rapid.T) Usage {
	name := func(what string) string { return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, what) }
	at := func() time.Time {
		return time.Unix(int64(rapid.IntRange(1, 1000).Draw(t, "time")), 0).UTC()
	}
	u := Usage{
		Start: at(), End: at(), IntervalSeconds: float64(rapid.IntRange(1, 9).Draw(t, "interval")),
		Samples: rapid.IntRange(0, 9).Draw(t, "n"), Source: rapid.SampledFrom([]string{"", "dcgm", "nvidia-smi"}).Draw(t, "source"),
		Cost: GPUCost{CPUSeconds: float64(rapid.IntRange(0, 9).Draw(t, "cpu"))},
	}
	for range rapid.IntRange(0, 4).Draw(t, "gpus") {
		pci := name("gpu")
		u.Merge(Usage{GPUs: []GPUUsage{{PCI: pci, UUID: "of " + pci, SM: series(t), Memory: series(t), Activity: rapid.Bool().Draw(t, "activity")}}})
	}
	for range rapid.IntRange(0, 4).Draw(t, "processes") {
		u.Merge(Usage{Processes: []ProcessUsage{{PCI: name("gpu"), Exe: name("exe"), Unit: name("unit"), Memory: series(t), DRAM: series(t), Encoder: series(t), Decoder: series(t)}}})
	}
	return u
}

func merged(parts ...Usage) Usage {
	var u Usage
	for _, p := range parts {
		u.Merge(p)
	}
	return u
}

func TestMergeInAnyGroupingAndOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := usage(t), usage(t), usage(t)
		before, err := json.Marshal([]Usage{a, b, c})
		if err != nil {
			t.Fatal(err)
		}
		one := merged(a, b, c)
		if diff := cmp.Diff(one, merged(a, merged(b, c))); diff != "" {
			t.Errorf("grouped otherwise:\n%s", diff)
		}
		if diff := cmp.Diff(one, merged(c, a, b)); diff != "" {
			t.Errorf("in another order:\n%s", diff)
		}
		if diff := cmp.Diff(a, merged(a)); diff != "" {
			t.Errorf("alone:\n%s", diff)
		}
		after, err := json.Marshal([]Usage{a, b, c})
		if err != nil {
			t.Fatal(err)
		}
		if string(before) != string(after) {
			t.Error("a part was changed by being merged into another")
		}
	})
}

// Activity is only said of a whole whose every sample has it.
func TestMergeActivity(t *testing.T) {
	var s Series
	s.Add(0.5)
	part := func(sm Series, activity bool) Usage {
		return Usage{GPUs: []GPUUsage{{PCI: "a", SM: sm, Activity: activity}}}
	}
	for name, test := range map[string]struct {
		parts []Usage
		want  bool
	}{
		"both":             {[]Usage{part(s, true), part(s, true)}, true},
		"one":              {[]Usage{part(s, true), part(s, false)}, false},
		"one, first":       {[]Usage{part(s, false), part(s, true)}, false},
		"one without any":  {[]Usage{part(s, true), part(Series{}, false)}, true},
		"first without it": {[]Usage{part(Series{}, false), part(s, true)}, true},
	} {
		if got := merged(test.parts...).GPUs[0].Activity; got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Programs whose names never come again do not make a report that grows without end.
func TestMergeIsBounded(t *testing.T) {
	var u Usage
	for i := range maxItems + 10 {
		u.Merge(Usage{Processes: []ProcessUsage{{PCI: "a", Exe: time.Unix(int64(i), 0).String()}}})
	}
	if len(u.Processes) != maxItems {
		t.Errorf("%d programs", len(u.Processes))
	}
}
