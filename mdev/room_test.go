package mdev

import "testing"

func TestOnInstance(t *testing.T) {
	for name, want := range map[string]bool{
		"A100D-1-10CME": true, "A100D-2-20C": true, "DC-1-24QGFX": true, "DC-4-96C": true, "H100XM-7-80C": true,
		"A100-20C": false, "L40S-8Q": false, "RTX5000-Ada-1Q": false, "DC-24Q": false, "RTX6000-Ada-48Q": false, "nvidia-1145": false,
	} {
		if got := onInstancePattern.MatchString(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// One more than is certain is never offered (T40, R85).
func TestRoom_T40(t *testing.T) {
	for _, tc := range []struct {
		free, most, used int
		same             bool
		want             int
	}{
		{13, 4, 3, true, 1},
		{16, 4, 0, true, 4},
		{2, 24, 1, true, 2},
		{5, 4, 4, true, 0},
		{5, 4, 5, true, 0},
		{0, 4, 0, true, 0},
		{13, 0, 3, true, 1},
		{13, 4, 1, false, 1},
		{0, 0, 0, false, 0},
	} {
		if got := room(tc.free, tc.most, tc.used, tc.same); got != tc.want {
			t.Errorf("%+v: %d", tc, got)
		}
	}
}
