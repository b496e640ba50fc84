package daemon

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
	"gpuvirt/gpu"
)

func ptr[T any](v T) *T { return &v }

// seen is all that can be seen of a vGPU.
func seen() *gpu.Observed {
	return &gpu.Observed{
		GuestDriver: "550.90.07", License: &gpu.License{State: gpu.LicenseHeld, Expires: born},
		Usage: &gpu.Usage{
			MemoryUsedBytes: ptr(uint64(0)), SM: ptr(0.5), Memory: ptr(0.25), Encoder: ptr(0.0), Decoder: ptr(1.0), Sampled: born,
		},
		Unknown: "it does not tell",
	}
}

// A usage of zero is told, and what is not known is left out.
func TestObserved(t *testing.T) {
	for _, c := range []struct {
		in   *gpu.Observed
		want string
	}{
		{nil, `{"observed":null}`},
		{&gpu.Observed{}, `{"observed":{}}`},
		{&gpu.Observed{License: &gpu.License{State: gpu.LicenseNone}}, `{"observed":{"license":{"state":"unlicensed"}}}`},
		{&gpu.Observed{Usage: &gpu.Usage{SM: ptr(0.0)}}, `{"observed":{"usage":{"sm_ratio":0}}}`},
		{seen(), `{"observed":{"guest_driver":"550.90.07","license":{"state":"licensed","expires":"2026-11-23T11:00:00Z"},` +
			`"usage":{"memory_used_bytes":0,"sm_ratio":0.5,"memory_ratio":0.25,"encoder_ratio":0,"decoder_ratio":1,"sampled":"2026-11-23T11:00:00Z"},` +
			`"unknown":"it does not tell"}}`},
	} {
		got, err := encode(map[string]*api.Observed{"observed": observedOf(c.in)})
		if diff := cmp.Diff(c.want+"\n", string(got)); diff != "" || err != nil {
			t.Error(err, diff)
		}
	}
}

// What is known of profiles is served, and with it why the rest is not.
func TestProfilesNotAllKnown(t *testing.T) {
	h := newHarness(t)
	h.host.blind = gpu.Errorf(gpu.CodeUnavailable, "the library does not answer")
	a := h.get(t, "/v1/gpus/"+gpuA+"/profiles?limit=1")
	var list api.ProfileList
	if err := json.Unmarshal([]byte(a.body), &list); err != nil || a.status != 200 || len(list.Items) != 1 || list.Next == "" || list.Unknown != "the library does not answer" {
		t.Errorf("%d %s: %v", a.status, a.body, err)
	}
}
