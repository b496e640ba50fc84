package daemon

import (
	"strings"
	"testing"
)

// What a request for a migration has wrong is named, and nothing that is right.
func TestMigrationRequests(t *testing.T) {
	h := newHarness(t)
	for name, c := range map[string]struct{ target, body, want string }{
		"no name":        {"/v1/migrations", `{"assessment":"carried"}`, `field "name" is missing`},
		"no connections": {"/v1/migrations", `{"name":"new","assessment":"carried","copy":{"connections":0}}`, `field "copy.connections" cannot be 0`},
		"no interval":    {"/v1/migrations?dry_run=true", `{"name":"new","assessment":"carried","copy":{"interval_seconds":0}}`, `field "copy.interval_seconds" cannot be 0`},
		"threads":        {"/v1/migrations", `{"name":"new","assessment":"carried","plan":{"threads":-1}}`, `field "plan.threads" cannot be below 0`},
		"downtime":       {"/v1/migrations", `{"name":"new","assessment":"carried","plan":{"downtime_seconds":-1}}`, `field "plan.downtime_seconds" cannot be below 0`},
		"named twice": {
			"/v1/migrations", `{"name":"new","assessment":"carried","plan":{"partitions":[{"source":"0000:41:00.0"},{"profile":"x"},{"source":"0000:41:00.0","none":true}]}}`,
			`field "plan.partitions" names GPU "0000:41:00.0" of the server twice`,
		},
		"patched": {"PATCH /v1/migrations/gpu7", `{"copy":{"connections":0}}`, `field "copy.connections" cannot be 0`},
	} {
		method, target, found := strings.Cut(c.target, " ")
		if !found {
			method, target = "POST", c.target
		}
		if a := h.do(t, call{method: method, target: target, body: c.body, bad: true}); a.status != 400 || a.problem(t).Detail != c.want && !strings.HasPrefix(a.problem(t).Detail, c.want) {
			t.Errorf("%s: got %d %s", name, a.status, a.body)
		}
	}
	if h.host.writes != 0 {
		t.Errorf("%d writes", h.host.writes)
	}
	// What a migration would do is told of one without a name.
	if a := h.do(t, call{method: "POST", target: "/v1/migrations?dry_run=true", body: `{"assessment":"carried"}`}); a.status != 200 || strings.Contains(a.body, `"problem"`) {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

// There is no forecast of a cut-over once the server was told to power off.
func TestMigrationForecast(t *testing.T) {
	h := newHarness(t)
	for name, want := range map[string]bool{"gpu7": true, "asked": false, "off": false} {
		a := h.do(t, call{method: "GET", target: "/v1/migrations/" + name})
		if got := strings.Contains(a.body, `"forecast"`); a.status != 200 || got != want {
			t.Errorf("%s: %v, %d %s", name, got, a.status, a.body)
		}
	}
}
