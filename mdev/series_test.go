package mdev

import "testing"

func TestSeries_T38(t *testing.T) {
	for name, want := range map[string]string{
		"A2-4Q": "Q", "M60-0B": "B", "T4-16C": "C", "L40S-1A": "A", "RTX6000-Ada-48C": "C", "RTXA6000-2B": "B",
		"A100-2-10C": "C", "A100D-1-10CME": "C", "DC-1-24QGFX": "Q", "DC-4-96QNOME": "Q",
		"nvidia-746": "", "A2": "", "A2-4": "", "A2-4X": "", "A2-04Q": "", "mbochs-small": "", "": "", "x A2-4Q": "",
	} {
		attributes := map[string]string{}
		addSeries(attributes, name)
		if attributes["series"] != want || want == "" && len(attributes) != 0 {
			t.Errorf("%q: %v, want %q", name, attributes, want)
		}
	}
}
