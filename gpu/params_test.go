package gpu_test

import (
	"strings"
	"testing"

	"gpuvirt/gpu"
)

func TestParseVGPUParams(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   "",
		"frame_rate_limiter=0":               "frame_rate_limiter=0",
		"frame_rate_limiter=0,enable_uvm=1":  "enable_uvm=1,frame_rate_limiter=0",
		"enable_uvm=1, frame_rate_limiter=0": "enable_uvm=1,frame_rate_limiter=0",
		"a.b-c=~x/[1]:2,disable_vnc=1":       "a.b-c=~x/[1]:2,disable_vnc=1",
	} {
		got, err := gpu.ParseVGPUParams(text)
		if got != want || err != nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
		if again, err := gpu.ParseVGPUParams(got); again != got || err != nil {
			t.Errorf("%q does not read back: %q, %v", got, again, err)
		}
		if !gpu.SameVGPUParams(text, want) {
			t.Errorf("%q is not %q", text, want)
		}
	}
	for _, text := range []string{
		"x", "=1", "x=", "x=1,", ",", " ", "x=1,x=2", "x=a b", "x=a=b", "x=1\ny=2", "x=\x00", "x=é", "1x=1", "x=1;y=2 ",
		"x=" + strings.Repeat("1", gpu.MaxVGPUParams),
	} {
		if got, err := gpu.ParseVGPUParams(text); gpu.CodeOf(err) != gpu.CodeInvalid || got != "" {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if gpu.SameVGPUParams("x=1", "x=2") || gpu.SameVGPUParams("x=1", "") || !gpu.SameVGPUParams("not read", "not read") {
		t.Error("texts are compared wrongly")
	}
}
