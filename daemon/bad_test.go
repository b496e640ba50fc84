package daemon

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// names are what a path may not hold.
func badNames() map[string]string {
	return map[string]string{
		"slash": "a/b", "newline": "a\nb", "name with newline": "web1\n", "dots": "..", "dot": ".", "nul": "a\x00b", "invalid utf-8": "a\xff\xfeb",
		"long": strings.Repeat("x", 10_000), "space": " ", "escape": "\x1b[2J", "traversal": "../../etc/passwd", "absolute": "/etc/passwd",
		"unicode": "ün\u202eïcode", "query": "a?b=c", "fragment": "a#b", "percent": "%", "encoded twice": "%2F", "semicolon": "a;b",
		"backslash": `a\b`, "quote": `a"b`, "control": "\u0085", "dash first": "-a", "empty": "",
	}
}

// fill puts v into every parameter of a path.
func fill(path, v string) string {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if strings.HasPrefix(part, "{") {
			parts[i] = v
		}
	}
	return strings.Join(parts, "/")
}

// sample fills a path with names that exist.
func sample(path string) string {
	return strings.NewReplacer("{gpu}", gpuA, "{partition}", mdev1, "{vm}", "web1", "{assignment}", "old",
		"{operation}", "01KAR2Z7T4Y2M8Q6V0R9X3B000", "{token}", oldToken, "{assessment}", "carried", "{migration}", "gpu7").Replace(path)
}

// sampleBody is what a route takes.
func sampleBody(rt route) string {
	switch {
	case !rt.body:
		return ""
	case rt.path == "/v1/gpus/{gpu}/mig":
		return layout
	case rt.path == "/v1/assignments:apply":
		return `{"assignments":[` + named("new") + `]}`
	case rt.path == "/v1/gpus/{gpu}/sriov":
		return `{"num_vfs":4}`
	case rt.path == "/v1/gpus/{gpu}/vgpu":
		return `{"scheduler":{"policy":"fixed-share"}}`
	case rt.path == "/v1/vms/{vm}/check-start":
		return `{"devices":[{"pci_address":"0000:41:00.4"}]}`
	case rt.path == "/v1/tokens":
		return `{"name":"ci","role":"viewer"}`
	case rt.path == "/v1/assessments":
		return `{"name":"gpu8","source":` + sourceBody + `}`
	case rt.path == "/v1/migrations":
		return `{"name":"new","assessment":"carried"}`
	case strings.HasSuffix(rt.path, "/rehearse"), strings.HasSuffix(rt.path, "/cutover"):
		return `{"limit_seconds":60}`
	case strings.HasSuffix(rt.path, "/reserve"):
		return `{"lease_seconds":86400}`
	case strings.HasSuffix(rt.path, "/accept"):
		return `{"reason":"it is so"}`
	case rt.path == "/v1/migrations/{migration}":
		return `{"copy":{"connections":2}}`
	case rt.method == patch:
		return `{"managed":true}`
	case rt.method == post:
		return `{"profile":"mbochs-small"}`
	default:
		return wish
	}
}

// refused checks that a call gets a clean 4xx.
func (h *harness) refused(t *testing.T, c call, statuses ...int) {
	t.Helper()
	c.bad = true
	begin := time.Now()
	a := h.do(t, c)
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	if a.status < 400 || a.status > 499 {
		t.Fatalf("%s %.200s %.200s: status %d: %.300s", c.method, c.target, c.body, a.status, a.body)
	}
	if c.method == http.MethodHead {
		return
	}
	p := a.problem(t)
	if len(a.body) > 2000 {
		t.Errorf("the problem has %d bytes", len(a.body))
	}
	for _, s := range statuses {
		if a.status == s {
			return
		}
	}
	if len(statuses) > 0 {
		t.Errorf("%s %.200s %.200s: status %d (%s), want %v", c.method, c.target, c.body, a.status, p.Detail, statuses)
	}
}

// everyRoute runs f for each route with a harness in which nothing may be written.
func everyRoute(t *testing.T, f func(t *testing.T, h *harness, rt route, target, body string)) {
	for _, rt := range routes() {
		t.Run(rt.method+" "+rt.path, func(t *testing.T) {
			h := newHarness(t)
			h.addOps()
			h.host.readOnly = true
			f(t, h, rt, sample(rt.path), sampleBody(rt))
		})
	}
}

func TestBadNames(t *testing.T) {
	everyRoute(t, func(t *testing.T, h *harness, rt route, _, body string) {
		if !strings.Contains(rt.path, "{") {
			return
		}
		for name, v := range badNames() {
			t.Run(name, func(t *testing.T) {
				h.refused(t, call{method: rt.method, target: fill(rt.path, url.PathEscape(v)), body: body}, 400, 404)
			})
		}
	})
}

func TestBadPaths(t *testing.T) {
	h := newHarness(t)
	for _, target := range []string{
		"/", "/v2", "/v1/", "/v1//gpus", "/v1/gpus/", "/v1/gpus//profiles", "/v1/./gpus", "/v1/../v1/gpus", "/V1/gpus", "/v1/gpus/x/y", "/v1/gpus%2Fx",
		"/v1/%00", "/v1/%ff", "//v1/gpus", "/v1/gpus/" + gpuA + "/", "/metrics/../v1", "/" + strings.Repeat("a/", 5000), "/v1/operations/x/wait/",
	} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			h.refused(t, call{method: method, target: target}, 404)
		}
	}
}

func TestBadMethods(t *testing.T) {
	everyRoute(t, func(t *testing.T, h *harness, rt route, target, _ string) {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "BREW", "PROPFIND"} {
			if _, known := h.resources[rt.path].methods[method]; known {
				continue
			}
			a := h.do(t, call{method: method, target: target, bad: true})
			if a.status != http.StatusMethodNotAllowed || a.header.Get("Allow") != h.resources[rt.path].allow {
				t.Errorf("%s: %d, Allow %q", method, a.status, a.header.Get("Allow"))
			}
		}
	})
}

func TestBadQueries(t *testing.T) {
	long := strings.Repeat("x", 5000)
	everyRoute(t, func(t *testing.T, h *harness, rt route, target, body string) {
		bad := []string{"x=1", "=", "a", "dry_run=1&x=2", "%zz=1", "a=%zz", "a;b", "LIMIT=1", "dry-run=true", "%00=1", "\xff=1", long + "=1"}
		for _, p := range rt.query {
			bad = append(bad, p.name+"=a&"+p.name+"=a", p.name+"=", p.name+"=%00", p.name+"=%ff", p.name+"=a%0Ab", p.name+"="+long)
			if p.enum != nil {
				bad = append(bad, p.name+"=none", p.name+"=TRUE", p.name+"=1")
			}
			switch p.name {
			case "limit":
				bad = append(bad, "limit=0", "limit=-1", "limit=1001", "limit=1e3", "limit=+5", "limit=5.0", "limit=99999999999999999999", "limit=0x10")
			case "cursor":
				bad = append(bad, "cursor=garbage", "cursor=!!", "cursor=MTpncHU=", "cursor=MDpncHU", "cursor=..")
			case "timeout":
				bad = append(bad, "timeout=-1s", "timeout=10m1ns", "timeout=5", "timeout=1h", "timeout=1d", "timeout=9999999h", "timeout=NaN")
			case "after":
				bad = append(bad, "after=-1", "after=x", "after=18446744073709551616", "after=1.5")
			}
		}
		for _, q := range bad {
			h.refused(t, call{method: rt.method, target: target + "?" + q, body: body}, 400)
		}
	})
}

// badBodies are no good for any route; the second value is what the detail names.
func badBodies() map[string][2]string {
	deep := strings.Repeat(`{"labels":`, 5000) + "1" + strings.Repeat("}", 5000)
	return map[string][2]string{
		"empty object follows": {`{} {}`, "follows"}, "text follows": {`{} x`, "not valid JSON"}, "null": {`null`, "null"}, "array": {`[]`, "array"}, "string": {`"x"`, "string"},
		"number": {`1`, "number"}, "true": {`true`, "true or false"}, "broken": {`{`, "ends too early"}, "broken string": {`{"`, "not valid JSON"},
		"no quotes": {`{vm:1}`, "not valid JSON"}, "comment": {`{/**/}`, "not valid JSON"}, "trailing comma": {`{"x":1,}`, ""},
		"blank": {"  \n", "empty"}, "nul": {"\x00", "not valid JSON"}, "bom": {"\xef\xbb\xbf{}", "not valid JSON"}, "invalid utf-8": {"{\"vm\":\"\xff\"}", "UTF-8"},
		"unknown field": {`{"nonsense":1}`, `"nonsense"`}, "unknown field with newline": {`{"a\nb":1}`, `a\nb`}, "deep": {deep, ""},
		"deep arrays": {strings.Repeat("[", 100_000), "array"}, "utf-16": {"{\x00}\x00", "not valid JSON"}, "nan": {`{"managed":NaN}`, ""},
		"long name": {`{"` + strings.Repeat("n", 100_000) + `":1}`, "unknown"}, "form": {"vm=web1&profile=x", "not valid JSON"}, "xml": {"<vm/>", "not valid JSON"},
	}
}

func TestBadBodies(t *testing.T) {
	huge := `{"x":"` + strings.Repeat("x", 10<<20) + `"}`
	everyRoute(t, func(t *testing.T, h *harness, rt route, target, _ string) {
		for name, bad := range badBodies() {
			t.Run(name, func(t *testing.T) {
				c := call{method: rt.method, target: target, body: bad[0], bad: true}
				h.refused(t, c, 400)
				if detail := h.do(t, c).problem(t).Detail; rt.body && !strings.Contains(detail, bad[1]) {
					t.Errorf("detail %q does not name %q", detail, bad[1])
				}
			})
		}
		h.refused(t, call{method: rt.method, target: target, body: huge}, 400, 413)
	})
}

// Each field of each body is refused by name if it is not as it must be.
func TestBadFields(t *testing.T) {
	h := newHarness(t)
	h.host.readOnly = true
	long := strings.Repeat("x", 257)
	for _, tc := range []struct{ method, target, body, names string }{
		{"POST", "/v1/tokens", `{"name":"ci"}`, `"role" is malformed`},
		{"POST", "/v1/tokens", `{"role":"viewer"}`, `"name" is malformed`},
		{"POST", "/v1/tokens", `{"name":"C I","role":"viewer"}`, `"name" is malformed`},
		{"POST", "/v1/tokens", `{"name":"ci","role":"root"}`, `none of viewer, operator, admin`},
		{"POST", "/v1/tokens", `{"name":"ci","role":"viewer","expires":"soon"}`, `such as 2027-02-21T11:00:00Z, not "soon"`},
		{"POST", "/v1/tokens", `{"name":"ci","role":"viewer","expires":null}`, `"expires" must not be null`},
		{"POST", "/v1/tokens", `{"name":"ci","role":"viewer","secret":"x"}`, `"secret" is unknown: there are name, role, expires`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1"}`, `"profile" is missing`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"policy":"hope"}`, `"policy" is malformed: "hope" is none of report, repair`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"policy":""}`, `"policy" is missing`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"placement":"tight"}`, `"placement" is malformed: "tight" is none of pack, spread, host`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"placement":""}`, `"placement" is missing`},
		{"POST", "/v1/assignments:apply", `{}`, `"assignments" must have 1 to 256 entries`},
		{"POST", "/v1/assignments:apply", `{"assignments":[]}`, `"assignments" must have 1 to 256 entries`},
		{"POST", "/v1/assignments:apply", `{"assignments":[` + strings.Repeat(named("a")+",", 256) + named("b") + `]}`, `"assignments" must have 1 to 256 entries`},
		{"POST", "/v1/assignments:apply", `{"assignments":[` + named("a") + `,` + named("a") + `]}`, `"assignments[1].name" is "a", as in an entry before`},
		{"POST", "/v1/assignments:apply", `{"assignments":[{"name":"a","vm":"web1"}]}`, `"assignments[0].profile" is missing`},
		{"POST", "/v1/assignments:apply", `{"assignments":[{"vm":"web1","profile":"p"}]}`, `"assignments[0].name" is missing`},
		{"POST", "/v1/assignments:apply", `{"assignments":[{"name":"a","vm":"web1","profile":"p","hotplug":"now"}]}`, `"assignments[0].hotplug"`},
		{"PUT", "/v1/gpus/x/sriov", `{}`, `"num_vfs" is missing`},
		{"PUT", "/v1/gpus/x/sriov", `{"num_vfs":-1}`, `"num_vfs" is not from 0 to 65535`},
		{"PUT", "/v1/gpus/x/sriov", `{"num_vfs":65536}`, `"num_vfs" is not from 0 to 65535`},
		{"PUT", "/v1/gpus/x/vgpu", `{}`, `nothing is asked for`},
		{"PUT", "/v1/gpus/x/vgpu", `{"mixed_size":"on"}`, `"mixed_size" must be true or false`},
		{"PUT", "/v1/gpus/x/vgpu", `{"mixed_size":null}`, `"mixed_size" must not be null`},
		{"PUT", "/v1/gpus/x/vgpu", `{"scheduler":{}}`, `"scheduler.policy" is missing`},
		{"PUT", "/v1/gpus/x/vgpu", `{"scheduler":{"policy":"lottery"}}`, `"scheduler.policy" is malformed: "lottery" is none of best-effort, equal-share, fixed-share`},
		{"PUT", "/v1/gpus/x/vgpu", `{"scheduler":{"policy":"fixed-share","time_slice_ns":0}}`, `"scheduler.time_slice_ns" is not from 1 to 4294967295`},
		{"PUT", "/v1/gpus/x/vgpu", `{"scheduler":{"policy":"fixed-share","time_slice_ns":-1}}`, `"scheduler.time_slice_ns" is not from 1 to 4294967295`},
		{"PUT", "/v1/gpus/x/vgpu", `{"scheduler":{"policy":"fixed-share","time_slice_ns":4294967296}}`, `"scheduler.time_slice_ns" is not from 1 to 4294967295`},
		{"PUT", "/v1/gpus/x/vgpu", `{"scheduler":{"policy":"fixed-share","timeslice_ns":5}}`, `"scheduler.timeslice_ns" is unknown: there are policy, time_slice_ns`},
		{"PUT", "/v1/gpus/x/vgpu", `{"scheduler":{"Policy":"fixed-share"}}`, `"scheduler.Policy" is unknown`},
		{"PUT", "/v1/gpus/x/vgpu", `{"scheduler":null}`, `"scheduler" must not be null`},
		{"PUT", "/v1/gpus/x/vgpu", `{"scheduler":["policy"]}`, `"scheduler" must be an object`},
		{"PUT", "/v1/gpus/x/mig", `{"enabled":true,"instances":[{"profile":"p","computes":[]}]}`, `"instances.computes" is unknown: there are profile, placement, compute`},
		{"PUT", "/v1/gpus/x/mig", `{"enabled":true}`, `"instances" is missing`},
		{"PUT", "/v1/gpus/x/mig", `{"enabled":false,"instances":[{"profile":"p"}]}`, `"instances" must be empty`},
		{"PUT", "/v1/gpus/x/mig", `{"enabled":true,"instances":[{}]}`, `"instances[0].profile" is missing`},
		{"PUT", "/v1/gpus/x/mig", `{"enabled":true,"instances":[{"profile":"p","placement":-1}]}`, `"instances[0].placement" is not from 0 to 63`},
		{"PUT", "/v1/gpus/x/mig", `{"enabled":true,"instances":[{"profile":"p","placement":64}]}`, `"instances[0].placement" is not from 0 to 63`},
		{"PUT", "/v1/gpus/x/mig", `{"enabled":true,"instances":[{"profile":"p","compute":[""]}]}`, `"instances[0].compute[0]" is missing`},
		{"PUT", "/v1/gpus/x/mig", `{"enabled":true,"instances":[` + strings.Repeat(`{"profile":"p"},`, 16) + `{"profile":"p"}]}`, `"instances" has more than 16`},
		{"PUT", "/v1/assignments/x", `{"profile":"p"}`, `"vm" is missing`},
		{"PUT", "/v1/assignments/x", `{}`, `"vm" is missing; field "profile" is missing`},
		{"PUT", "/v1/assignments/x", `{"vm":1,"profile":"p"}`, `"vm" must be a string, not number`},
		{"PUT", "/v1/assignments/x", `{"vm":["web1"],"profile":"p"}`, `"vm" must be a string, not array`},
		{"PUT", "/v1/assignments/x", `{"vm":null,"profile":"p"}`, `"vm" must not be null`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1","vm":"web2","profile":"p"}`, `"vm" stands there twice`},
		{"PUT", "/v1/assignments/x", `{"VM":"web1","profile":"p"}`, `"VM" is unknown`},
		{"PUT", "/v1/assignments/x", `{"vm":"a/b","profile":"p"}`, `"vm"`},
		{"PUT", "/v1/assignments/x", `{"vm":"a\u0000b","profile":"p"}`, `"vm"`},
		{"PUT", "/v1/assignments/x", `{"vm":"` + long + `","profile":"p"}`, `"vm"`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1","profile":"` + long + `"}`, `"profile"`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1","profile":"p\n"}`, `"profile"`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1","profile":"p","gpu":"../x"}`, `"gpu"`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1","profile":"p","placement":"Pack"}`, `"placement"`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1","profile":"p","ramfb":true}`, `"ramfb" is for those with "display"`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1","profile":"p","hotplug":"maybe"}`, `"hotplug" is malformed: "maybe" is none of auto, require, never`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1","profile":"p","display":"yes"}`, `"display" must be true or false, not string`},
		{"PUT", "/v1/assignments/x", `{"vm":"web1","profile":"p","state":"attached"}`, `"state" is unknown`},
		{"PUT", "/v1/assignments/-x", wish, "a name has 1 to 63"},
		{"PUT", "/v1/assignments/X", wish, "a name has 1 to 63"},
		{"PUT", "/v1/assignments/" + strings.Repeat("x", 64), wish, "a name has 1 to 63"},
		{"POST", "/v1/partitions", `{"profile":""}`, `"profile" is missing`},
		{"POST", "/v1/partitions", `{"profile":"p","gpu":"a b"}`, `"gpu"`},
		{"POST", "/v1/partitions", `{"profile":"p","placement":"x"}`, `"placement"`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"managed":"true"}`, `"managed" must be true or false, not string`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"managed":null}`, `"managed" must not be null`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"labels":[]}`, `"labels" must be an object, not array`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"labels":{"a":1}}`, `"labels`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"labels":{"a":null}}`, `"labels.a" must not be null`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"labels":{"a":"1","a":"2"}}`, `"labels.a" stands there twice`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"labels":{" ":"1"}}`, `"labels" is malformed`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"labels":{"a":"\n"}}`, `"labels" is malformed: the value of "a"`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"labels":{` + manyLabels(65) + `}}`, `more than 64`},
		{"PATCH", "/v1/gpus/" + gpuA, `{"id":"x"}`, `"id" is unknown: there are managed, quarantined, policy, placement, labels`},
	} {
		for _, dry := range []string{"", "?dry_run=true"} {
			a := h.do(t, call{method: tc.method, target: tc.target + dry, body: tc.body, bad: true})
			if p := a.problem(t); a.status != 400 || !strings.Contains(p.Detail, tc.names) {
				t.Errorf("%s %s: %d %s, want 400 with %q", tc.method, tc.body, a.status, p.Detail, tc.names)
			}
		}
	}
}

func manyLabels(n int) string {
	labels := make([]string, n)
	for i := range labels {
		labels[i] = fmt.Sprintf(`"l%d":"x"`, i)
	}
	return strings.Join(labels, ",")
}

func TestBadHeaders(t *testing.T) {
	everyRoute(t, func(t *testing.T, h *harness, rt route, target, body string) {
		for _, accept := range []string{"text/html", "image/*;q=1", "application/xml, text/css", rt.mediaType() + ";q=0", "garbage", ";;", "*/*;q=0"} {
			h.refused(t, call{method: rt.method, target: target, body: body, header: http.Header{"Accept": {accept}}}, 406)
		}
		if rt.conditional {
			for _, name := range []string{"If-Match", "If-None-Match"} {
				for _, v := range []string{"x", `"x`, `x"`, "", "W/", `W/x`, `"a" "b"`, `"a",`, `*,"a"`, `"a",*`, "\x7f"} {
					h.refused(t, call{method: rt.method, target: target, body: body, header: http.Header{name: {v}}}, 400)
				}
			}
		}
		if rt.path == "/v1/events" {
			h.refused(t, call{method: rt.method, target: target, header: http.Header{"Last-Event-Id": {"x"}}}, 400)
		}
		if !rt.body {
			return
		}
		for _, types := range [][]string{nil, {""}, {"text/plain"}, {"application/xml"}, {"application/json; charset=latin1"}, {"application/json", "application/json"}, {"json"}, {";"}, {"application/x-www-form-urlencoded"}} {
			h.refused(t, call{method: rt.method, target: target, body: body, header: http.Header{"Content-Type": types}}, 415)
		}
		h.refused(t, call{method: rt.method, target: target, body: body, header: http.Header{"Content-Encoding": {"gzip"}}}, 415)
	})
}

func TestAccepts(t *testing.T) {
	for header, want := range map[string]bool{
		"": true, "*/*": true, "application/*": true, "application/json": true, "Application/JSON": true, "text/html, */*;q=0.1": true,
		"application/json;q=0, */*": false, "*/*;q=0, application/json": true, "text/html": false, "application/json; charset=utf-8": true, ", ,": false,
	} {
		if got := accepts([]string{header}, mediaJSON); got != want {
			t.Errorf("Accept %q: %v, want %v", header, got, want)
		}
	}
	if !accepts(nil, mediaJSON) {
		t.Error("no Accept header")
	}
}
