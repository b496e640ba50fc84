package daemon

import (
	"strings"
	"testing"
)

// What an inspection or a source has wrong is named, before anything is reached or kept.
func TestAssessmentRequests(t *testing.T) {
	h := newHarness(t)
	source := func(field, value string) string {
		return `{"name":"gpu8","source":{"address":"gpu8.example","host_key":"SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8","credential":"gpu8","` + field + `":` + value + `}}`
	}
	good := inspectionBody()
	for name, c := range map[string]struct {
		body, want string
		status     int
	}{
		"neither":          {`{"name":"gpu8"}`, `either a field "source" or a field "inspection"`, 400},
		"both":             {`{"name":"gpu8","source":` + sourceBody + `,"inspection":` + good + `}`, `either a field "source" or a field "inspection"`, 400},
		"no name":          {`{"source":` + sourceBody + `}`, `field "name" is malformed`, 400},
		"no key":           {`{"name":"gpu8","source":{"address":"a","credential":"c"}}`, "host_key is missing", 400},
		"a path":           {strings.Replace(source("port", "22"), `"credential":"gpu8"`, `"credential":"../gpu8"`, 1), "no name of a file", 400},
		"an option":        {strings.Replace(source("port", "22"), "gpu8.example", "-oProxyCommand=id", 1), "neither a name nor an IP address", 400},
		"a shell":          {source("user", `"root;id"`), "no name of a user", 400},
		"password":         {source("password", `"x"`), `field "source.password" is unknown`, 400},
		"window":           {`{"name":"gpu8","source":` + sourceBody + `,"window_seconds":-1}`, "no number of seconds", 400},
		"a long window":    {`{"name":"gpu8","source":` + sourceBody + `,"window_seconds":9000000000000000000}`, "no number of seconds", 400},
		"newer":            {`{"name":"gpu8","inspection":{"version":2,"new":1}}`, `field "inspection.version" is 2, and this daemon reads 1`, 400},
		"no inspection":    {`{"name":"gpu8","inspection":{"hello":1}}`, `field "inspection.version" is missing`, 400},
		"null in it":       {`{"name":"gpu8","inspection":{"version":1,"gpus":null}}`, `field "inspection.gpus" must not be null`, 400},
		"terminal":         {`{"name":"gpu8","inspection":` + strings.Replace(good, `"hostname":"gpu7"`, `"hostname":"\u001b[2J"`, 1) + `}`, "hostname has a character that cannot be shown", 400},
		"more in a bucket": {`{"name":"gpu8","inspection":{"version":1,"usage":{"gpus":[{"memory_bytes":{"samples":1,"buckets":[{"b":1,"n":2}]}}]}}}`, "usage.gpus.0.memory_bytes: its buckets", 400},
		"too large":        {`{"name":"` + strings.Repeat("x", int(maxInspection)) + `"}`, "larger than", 413},
	} {
		t.Run(name, func(t *testing.T) {
			a := h.do(t, call{method: "POST", target: "/v1/assessments", body: c.body, bad: true})
			if a.status != c.status || !strings.Contains(a.problem(t).Detail, c.want) {
				t.Errorf("got %d %.300s, want %d %q", a.status, a.body, c.status, c.want)
			}
		})
	}
	if h.host.writes != 0 {
		t.Errorf("%d writes", h.host.writes)
	}
	// What is not there yet, and what is held.
	for target, want := range map[string]string{
		"GET /v1/assessments/gpu7/inspection": "nothing was seen of the server",
		"DELETE /v1/assessments/gpu7":         "is held by operation",
		"GET /v1/assessments/gpu9":            `cannot find assessment "gpu9"`,
	} {
		method, path, _ := strings.Cut(target, " ")
		if a := h.do(t, call{method: method, target: path}); !strings.Contains(a.problem(t).Detail, want) {
			t.Errorf("%s: got %d %s", target, a.status, a.body)
		}
	}
}

// What an assessment finds is worked out with the operator's figures, and says so.
func TestFindingsOfThePolicy(t *testing.T) {
	h := newHarness(t)
	for _, target := range []string{"/v1/assessments", "/v1/assessments/carried"} {
		a := h.do(t, call{method: "GET", target: target})
		if text := a.body; !strings.Contains(text, `"boot_seconds":240,`) || !strings.Contains(text, `"fixed_seconds":60,`) {
			t.Errorf("%s: %d %s", target, a.status, text)
		}
	}
}
