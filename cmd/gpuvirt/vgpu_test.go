package main

import (
	"encoding/json"
	"strings"
	"testing"

	"gpuvirt/api"
)

func TestVGPU(t *testing.T) {
	for name, tt := range map[string]struct {
		args   []string
		code   int
		stdout []string
		stderr string
		body   string
	}{
		"show": {
			args:   []string{"vgpu", "show", vgpuSettings.GPU},
			stdout: []string{"equal-share, 2ms, adaptive; wanted: fixed-share, 5ms", "best-effort, equal-share, fixed-share", "1ms to 30ms", "off; wanted: on"},
		},
		"set": {
			args: []string{"vgpu", "set", vgpuSettings.GPU, "--scheduler", "fixed-share", "--time-slice", "5ms"}, stdout: []string{"Scheduler:"},
			body: `{"scheduler":{"policy":"fixed-share","time_slice_ns":5000000}}`,
		},
		"a policy alone": {
			args: []string{"vgpu", "set", vgpuSettings.GPU, "--scheduler", "best-effort", "--no-wait"}, body: `{"scheduler":{"policy":"best-effort"}}`,
		},
		"mixed": {
			args: []string{"vgpu", "set", vgpuSettings.GPU, "--mixed-size", "on", "--scheduler", "equal-share"}, stdout: []string{"Mixed sizes:"},
			body: `{"mixed_size":true,"scheduler":{"policy":"equal-share"}}`,
		},
		"not mixed":      {args: []string{"vgpu", "set", vgpuSettings.GPU, "--mixed-size", "off"}, body: `{"mixed_size":false}`},
		"half mixed":     {args: []string{"vgpu", "set", vgpuSettings.GPU, "--mixed-size", "half"}, code: exitUsage, stderr: "--mixed-size is on or off"},
		"nothing":        {args: []string{"vgpu", "set", vgpuSettings.GPU}, code: exitUsage, stderr: "nothing is asked for"},
		"a slice alone":  {args: []string{"vgpu", "set", vgpuSettings.GPU, "--time-slice", "5ms"}, code: exitUsage, stderr: "--time-slice is for --scheduler"},
		"no slice":       {args: []string{"vgpu", "set", vgpuSettings.GPU, "--scheduler", "x", "--time-slice", "0s"}, code: exitUsage, stderr: "not from 1ns to 4s"},
		"an endless one": {args: []string{"vgpu", "set", vgpuSettings.GPU, "--scheduler", "x", "--time-slice", "5s"}, code: exitUsage, stderr: "not from 1ns to 4s"},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			s := session{args: tt.args}
			s.run(t.Context(), socket)
			if s.code != tt.code || !strings.Contains(s.stderr, tt.stderr) {
				t.Error(&s)
			}
			for _, want := range tt.stdout {
				if !strings.Contains(s.stdout, want) {
					t.Errorf("no %q in\n%s", want, s.stdout)
				}
			}
			if want := "PUT /v1/gpus/" + vgpuSettings.GPU + "/vgpu " + tt.body; tt.body != "" && strings.Join(f.requests, "\n") != want {
				t.Errorf("asked for %q", f.requests)
			}
		})
	}
	_, socket := startFake(t)
	s := session{args: []string{"vgpu", "show", vgpuSettings.GPU, "-o", "json"}}
	s.run(t.Context(), socket)
	var got api.VGPUSettings
	if err := json.Unmarshal([]byte(s.stdout), &got); err != nil || got.Scheduler.Wanted.TimeSliceNS != 5e6 {
		t.Errorf("%v, %s", err, s.stdout)
	}
}
