package gpu_test

import (
	"strings"
	"testing"

	"gpuvirt/gpu"
)

func TestSchedulerIs(t *testing.T) {
	is := gpu.Scheduler{Policy: gpu.FixedShare, TimeSliceNS: 2_000_000}
	adapted := is
	adapted.Adaptive = true
	for _, tt := range []struct {
		is, want gpu.Scheduler
		same     bool
	}{
		{is, is, true},
		{is, gpu.Scheduler{Policy: gpu.FixedShare}, true},
		{adapted, gpu.Scheduler{Policy: gpu.FixedShare}, true},
		{adapted, is, false},
		{is, gpu.Scheduler{Policy: gpu.EqualShare}, false},
		{is, gpu.Scheduler{Policy: gpu.FixedShare, TimeSliceNS: 2_000_999}, true},
		{is, gpu.Scheduler{Policy: gpu.FixedShare, TimeSliceNS: 1_999_000}, false},
		{gpu.Scheduler{Policy: gpu.BestEffort}, gpu.Scheduler{Policy: gpu.BestEffort}, true},
	} {
		if got := tt.is.Is(tt.want); got != tt.same {
			t.Errorf("%+v is %+v: %t", tt.is, tt.want, got)
		}
	}
}

func TestVGPUWish(t *testing.T) {
	yes, no := true, false
	equal, fixed := &gpu.Scheduler{Policy: gpu.EqualShare}, &gpu.Scheduler{Policy: gpu.FixedShare}
	old := gpu.VGPUWish{MixedSize: &yes, Scheduler: equal}
	if got := (gpu.VGPUWish{Scheduler: fixed}).Over(old); !got.Equal(gpu.VGPUWish{MixedSize: &yes, Scheduler: fixed}) || !old.Equal(gpu.VGPUWish{MixedSize: &yes, Scheduler: equal}) {
		t.Errorf("%s over %s", got, old)
	}
	if got := (gpu.VGPUWish{MixedSize: &no}).Over(old); *got.MixedSize || got.Scheduler != equal {
		t.Errorf("%s", got)
	}
	if old.Empty() || !(gpu.VGPUWish{}).Empty() || old.Equal(gpu.VGPUWish{}) {
		t.Error("what is empty is not")
	}
	// A state that nobody has told of is the driver's own, and functions that are off have none.
	s := gpu.VGPUState{Wanted: old, Actual: gpu.Timeslicing{Scheduler: gpu.SchedulerState{Unavailable: "it sleeps"}}}
	if got := strings.Join(s.Differences(gpu.SRIOV{TotalVFs: 4, NumVFs: 4}), "; "); got != "asked for scheduler equal-share, but what is cannot be told: it sleeps; asked for mixed sizes on, but they are off" {
		t.Errorf("%q", got)
	}
	for _, v := range []gpu.SRIOV{{TotalVFs: 4}} {
		if got := s.Differences(v); len(got) != 0 {
			t.Errorf("%q", got)
		}
	}
	s.Actual.MIG = true
	if got := s.Differences(gpu.SRIOV{TotalVFs: 4, NumVFs: 4}); len(got) != 0 {
		t.Errorf("%q", got)
	}
}
