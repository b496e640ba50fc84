package daemon

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/report"
)

const (
	wish   = `{"vm":"web1","profile":"mbochs-small"}`
	layout = `{"enabled":true,"instances":[{"profile":"3g.40gb","placement":4,"compute":["1c.3g.40gb","2c.3g.40gb"]},{"profile":"1g.10gb+me"}]}`
)

// ops puts an operation in each state into the fake.
func (h *harness) addOps() (running, failed, done string) {
	return h.host.ops.add("attach", "root", operation.Running).ID,
		h.host.ops.add("detach", "uid:1000", operation.Failed).ID,
		h.host.ops.add("attach", "root", operation.Done).ID
}

// good is a request that each route takes, and what comes back.
type good struct {
	method, target, body string
	header               http.Header
	status               int
	contains             string
	write                bool // changes something
}

func goodRequests(running, failed, done string) []good {
	slot := url.PathEscape(slotID)
	return []good{
		{method: "GET", target: "/v1", status: 200, contains: `"state":"ready"`},
		{method: "GET", target: "/v1/openapi.yaml", status: 200, contains: "openapi: 3.1.0"},
		{method: "GET", target: "/v1/health/live", status: 200, contains: `"ok"`},
		{method: "GET", target: "/v1/health/ready", status: 200, contains: `"ok"`},
		{method: "GET", target: "/v1/config", status: 200, contains: `"after_restart":["1b36:0010"]`},
		{method: "GET", target: "/v1/backup", status: 200, contains: "a copy"},

		{method: "GET", target: "/metrics", status: 200, contains: "gpuvirt_gpu_ready 1"},

		{method: "GET", target: "/v1/assessments", status: 200, contains: `"state":"inspecting"`},
		{method: "GET", target: "/v1/assessments?state=done", status: 200, contains: `"items":[{"name":"carried"`},
		{method: "POST", target: "/v1/assessments", body: `{"name":"gpu8","source":` + sourceBody + `,"window_seconds":60}`, status: 202, contains: `"running"`, write: true},
		{method: "POST", target: "/v1/assessments?dry_run=true", body: `{"name":"gpu8","source":` + sourceBody + `}`, status: 200, contains: `"changes":true`},
		{method: "POST", target: "/v1/assessments?dry_run=true", body: `{"name":"gpu7","source":` + sourceBody + `}`, status: 200, contains: `"problem":{"type":"urn:gpuvirt:problem:conflict"`},
		{method: "POST", target: "/v1/assessments", body: `{"name":"gpu8","inspection":` + inspectionBody() + `}`, status: 201, contains: `"hostname":"gpu7"`, write: true},
		{method: "GET", target: "/v1/assessments/gpu7", status: 200, contains: `"window_seconds":600`},
		{method: "GET", target: "/v1/assessments/carried/inspection", status: 200, contains: `"reason":"docker: permission denied"`},
		{method: "POST", target: "/v1/assessments/carried/finish", status: 200, contains: `"done"`, write: true},
		{method: "POST", target: "/v1/assessments/gpu7/finish?dry_run=true", status: 200, contains: `"changes":true`},
		{method: "DELETE", target: "/v1/assessments/carried", status: 200, contains: `"carried"`, write: true},
		{method: "DELETE", target: "/v1/assessments/gpu7?dry_run=true", status: 200, contains: "is held by operation"},

		{method: "GET", target: "/v1/migrations", status: 200, contains: `"phase":"ready"`},
		{method: "GET", target: "/v1/migrations?phase=rolled-back&assessment=carried", status: 200, contains: `"items":[{"name":"gone"`},
		{method: "POST", target: "/v1/migrations", body: `{"name":"new","assessment":"carried","copy":{"connections":8}}`, status: 202, contains: `"running"`, write: true},
		{method: "POST", target: "/v1/migrations?dry_run=true", body: `{"name":"new","assessment":"carried","plan":{"partitions":[{"profile":"H100-1-10C"}],"waivers":[{"id":"no-path","reason":"x"}]}}`, status: 200, contains: `"verdict":{"state":"blocked"`},
		{method: "POST", target: "/v1/migrations", body: `{"name":"new","assessment":"carried","disks_from":[{"disk":"sda","image":"/srv/images/sda.raw"},{"disk":"sdb","nbd":"nbds://gpu7/b"}],"certificates":"gpu7"}`, status: 202, contains: `"running"`, write: true},
		{method: "GET", target: "/v1/migrations/gpu7", status: 200, contains: `"fits":true`},
		{method: "GET", target: "/v1/migrations/rest", status: 200, contains: `"disks_from":[{"disk":"nvme0n1","image":"/srv/images/x.raw"}]`},
		{method: "GET", target: "/v1/migrations/rest", status: 200, contains: `"progress":{"disk":"nvme0n1","done_bytes":536870912,"total_bytes":1073741824,"bytes_per_second":43000000,"remaining_seconds":12.5}`},
		{method: "PATCH", target: "/v1/migrations/gpu7", body: `{"copy":{"bandwidth_bytes_per_second":100000}}`, status: 200, contains: `"ready"`, write: true},
		{method: "PATCH", target: "/v1/migrations/gpu7", body: `{"copy":{"connections":2}}`, status: 200, contains: `"ready"`},
		{method: "PATCH", target: "/v1/migrations/gpu7?dry_run=true", body: `{"copy":{"connections":4}}`, status: 200, contains: `"changes":true`},
		{method: "GET", target: "/v1/migrations/gone/plan", status: 200, contains: `"verdict"`},
		{method: "POST", target: "/v1/migrations/gpu7/sync", status: 200, contains: `"ready"`, write: true},
		{method: "POST", target: "/v1/migrations/gpu7/sync?dry_run=true", status: 200, contains: `"changes":true`},
		{method: "POST", target: "/v1/migrations/gpu7/rehearse", body: `{}`, status: 200, contains: `"ready"`, write: true},
		{method: "POST", target: "/v1/migrations/gpu7/rehearse?dry_run=true", body: `{"live":true}`, status: 200, contains: `"changes":true`},
		{method: "POST", target: "/v1/migrations/gpu7/cutover", body: `{"stop_services":["vllm.service"],"limit_seconds":300}`, status: 200, contains: `"ready"`, write: true},
		{method: "POST", target: "/v1/migrations/gone/cutover?dry_run=true", body: `{}`, status: 200, contains: "cannot cut over migration"},
		{method: "POST", target: "/v1/migrations/gpu7/cutover?dry_run=true", body: `{"when_ready":true}`, status: 200, contains: `"changes":true`},
		{method: "POST", target: "/v1/migrations", body: `{"name":"new","assessment":"carried","lease_seconds":86400}`, status: 202, contains: `"running"`, write: true},
		{method: "POST", target: "/v1/migrations", body: `{"name":"new","assessment":"carried","keys":[{"volume":"nvme0n1p3","passphrase":"swordfish"},{"volume":"sda","credential":"gpu7"}]}`, status: 202, contains: `"running"`, write: true},
		{method: "GET", target: "/v1/migrations/gone", status: 200, contains: `"keys":[{"volume":"nvme0n1p3","wanted":true},{"volume":"sda","credential":"gpu7-sda","wanted":false}]`},
		{method: "PATCH", target: "/v1/migrations/gpu7", body: `{"keys":[{"volume":"nvme0n1p3","passphrase":"swordfish"}]}`, status: 200, contains: `"ready"`, write: true},
		{method: "PATCH", target: "/v1/migrations/gpu7?dry_run=true", body: `{"keys":[{"volume":"nvme0n1p3","passphrase":"swordfish"}]}`, status: 200, contains: `"changes":true`},
		{method: "GET", target: "/v1/migrations/gpu7", status: 200, contains: `"reservation":{"state":"ending","lease_seconds":2592000},"reserved_until":"`},
		{method: "POST", target: "/v1/migrations/gpu7/reserve", body: `{"lease_seconds":0}`, status: 200, contains: `"ready"`, write: true},
		{method: "POST", target: "/v1/migrations/gpu7/reserve?dry_run=true", body: `{}`, status: 200, contains: `"changes":true`},
		{method: "POST", target: "/v1/migrations/gone/reserve?dry_run=true", body: `{}`, status: 200, contains: "cannot reserve partitions of migration"},
		{method: "POST", target: "/v1/migrations/gpu7/withdraw", status: 200, contains: `"ready"`, write: true},
		{method: "POST", target: "/v1/migrations/gpu7/withdraw?dry_run=true", status: 200, contains: "nothing is asked for"},
		{method: "POST", target: "/v1/migrations/rest/cutover", body: `{"source_off":true}`, status: 200, contains: `"rest"`, write: true},
		{method: "POST", target: "/v1/migrations/rest/cutover?dry_run=true", body: `{"source_off":true,"unrehearsed":"x"}`, status: 200, contains: "whose server is off"},
		{method: "POST", target: "/v1/migrations/rest/cutover?dry_run=true", body: `{"unrehearsed":"x"}`, status: 200, contains: "nobody has said that it is off"},
		{method: "POST", target: "/v1/migrations/gpu7/fenced", status: 200, contains: `"ready"`, write: true},
		{method: "POST", target: "/v1/migrations/gpu7/fenced?dry_run=true", status: 200, contains: "does not wait for that"},
		{method: "POST", target: "/v1/migrations/gpu7/accept", body: `{"reason":"it is so"}`, status: 200, contains: `"ready"`, write: true},
		{method: "POST", target: "/v1/migrations/gpu7/accept?dry_run=true", body: `{"reason":"it is so"}`, status: 200, contains: "no check of its VM has failed"},
		{method: "POST", target: "/v1/migrations/gpu7/retry", status: 200, contains: `"ready"`, write: true},
		{method: "POST", target: "/v1/migrations/gpu7/retry?dry_run=true", status: 200, contains: "waits for nobody"},
		{method: "PATCH", target: "/v1/migrations/gone?dry_run=true", body: `{"copy":{"connections":2}}`, status: 200, contains: "cannot change migration"},
		{method: "POST", target: "/v1/migrations/gpu7/rollback", status: 200, contains: `"ready"`, write: true},
		{method: "POST", target: "/v1/migrations/gone/rollback?dry_run=true", status: 200, contains: `"changes":false`},
		{method: "POST", target: "/v1/migrations/gpu7/rollback?dry_run=true", status: 200, contains: `the server stays as it is`},
		{method: "POST", target: "/v1/migrations/off/rollback?dry_run=true", status: 200, contains: `the server is off: start it again afterwards`},
		{method: "POST", target: "/v1/migrations/asked/rollback?dry_run=true", status: 200, contains: `it is not known whether the server is off`},
		{method: "DELETE", target: "/v1/migrations/gone", status: 200, contains: `"gone"`, write: true},
		{method: "DELETE", target: "/v1/migrations/gpu7?dry_run=true", status: 200, contains: "cannot delete migration"},

		{method: "GET", target: "/v1/tokens", status: 200, contains: oldToken},
		{method: "GET", target: "/v1/tokens?name=old&role=viewer&limit=1", status: 200, contains: oldToken},
		{method: "GET", target: "/v1/tokens?role=admin", status: 200, contains: `"items":[]`},
		{method: "GET", target: "/v1/tokens/" + oldToken, status: 200, contains: `"last_used":"2026-11-23T11:00:00Z"`},
		{method: "POST", target: "/v1/tokens", body: `{"name":"ci","role":"operator"}`, status: 201, contains: `"secret":"gpuvirt_`, write: true},
		{method: "POST", target: "/v1/tokens?dry_run=true", body: `{"name":"ci","role":"admin","expires":"2026-12-01T00:00:00Z"}`, status: 200, contains: `"changes":true`},
		{method: "POST", target: "/v1/tokens?dry_run=true", body: `{"name":"old","role":"viewer"}`, status: 200, contains: `"problem":{"type":"urn:gpuvirt:problem:conflict"`},
		{method: "DELETE", target: "/v1/tokens/" + oldToken, status: 200, contains: oldToken, write: true},
		{method: "DELETE", target: "/v1/tokens/" + oldToken + "?dry_run=true", status: 200, contains: "delete token old"},

		{method: "GET", target: "/v1/gpus", status: 200, contains: gpuB},
		{method: "GET", target: "/v1/gpus?vendor=NVIDIA&model=L40S&managed=true&limit=1", status: 200, contains: gpuA},
		{method: "GET", target: "/v1/gpus/" + gpuA, status: 200, contains: `"numa_node":0`},
		{method: "GET", target: "/v1/gpus/mbochs", status: 200, contains: `"kinds":[]`},
		{method: "PATCH", target: "/v1/gpus/" + gpuB, body: `{"managed":true,"labels":{"a/b":""},"quarantined":false}`, status: 200, contains: `"managed":true`, write: true},
		{method: "PATCH", target: "/v1/gpus/" + gpuB + "?dry_run=true", body: `{"managed":true}`, status: 200, contains: `"changes":true`},
		{method: "GET", target: "/v1/gpus/" + gpuA + "/profiles?kind=mdev", status: 200, contains: profile},
		{method: "PATCH", target: "/v1/gpus/" + gpuA, body: `{"policy":"repair"}`, status: 200, contains: `"policy":"repair"`, write: true},
		{method: "PATCH", target: "/v1/gpus/" + gpuA, body: `{"placement":"spread"}`, status: 200, contains: `"placement":"spread"`, write: true},
		{method: "PATCH", target: "/v1/gpus/" + gpuA, body: `{"placement":"host"}`, status: 200, contains: `"placement":"host"`, write: true},
		{method: "GET", target: "/v1/gpus/" + gpuA + "/sriov", status: 200, contains: `"partition":"0000:41:00.0/vf/0"`},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/sriov", body: `{"num_vfs":4}`, status: 202, contains: `"turn on"`, write: true},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/sriov", body: `{"num_vfs":1}`, status: 200, contains: `"equal":true`},
		{method: "GET", target: "/v1/gpus/" + gpuA + "/vgpu", status: 200, contains: `"actual":{"policy":"equal-share","time_slice_ns":2000000,"adaptive":true}`},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/vgpu", body: `{"scheduler":{"policy":"fixed-share","time_slice_ns":5000000}}`, status: 202, contains: `"share"`, write: true},
		{method: "GET", target: "/v1/gpus/" + gpuA + "/vgpu", status: 200, contains: `"mixed_size":{"supported":true,"actual":false}`},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/vgpu", body: `{"mixed_size":true}`, status: 202, contains: `"share"`, write: true},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/vgpu", body: `{"scheduler":{"policy":"equal-share"}}`, status: 200, contains: `"equal":true`},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/vgpu?dry_run=true", body: `{"scheduler":{"policy":"best-effort"}}`, status: 200, contains: `"changes":true`},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/sriov?dry_run=true", body: `{"num_vfs":4}`, status: 200, contains: `"changes":true`},
		{method: "GET", target: "/v1/gpus/" + gpuA + "/mig", status: 200, contains: `"placement":4`},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/mig", body: layout, status: 202, contains: `"lay out"`, write: true},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/mig", body: `{"enabled":true,"instances":[{"profile":"3g.40gb"}]}`, status: 200, contains: `"equal":true`},
		{method: "PUT", target: "/v1/gpus/" + gpuA + "/mig?dry_run=true", body: layout, status: 200, contains: `"changes":true`},
		{method: "GET", target: "/v1/capacity", status: 200, contains: profile},
		{method: "GET", target: "/v1/capacity?profile=" + profile, status: 200, contains: `"reasons":[]`},

		{method: "GET", target: "/v1/partitions", status: 200, contains: mdev1},
		{method: "GET", target: "/v1/partitions?gpu=" + gpuA + "&kind=mig&origin=foreign&state=made&profile=1g.10gb%2Bme", status: 200, contains: slotID},
		{method: "GET", target: "/v1/partitions?assignment=none", status: 200, contains: `"items":[]`},
		{method: "GET", target: "/v1/partitions/" + slot, status: 200, contains: slotID},
		{method: "POST", target: "/v1/partitions", body: `{"profile":"mbochs-small","gpu":"` + gpuA + `","placement":"spread"}`, header: http.Header{"Idempotency-Key": {"k1"}}, status: 202, contains: `"running"`, write: true},
		{method: "POST", target: "/v1/partitions?dry_run=true", body: `{"profile":"mbochs-small"}`, status: 200, contains: `"mdev.make"`},
		{method: "POST", target: "/v1/partitions?dry_run=true", body: `{"profile":"huge"}`, status: 200, contains: `"problem":{"type":"urn:gpuvirt:problem:profile-unknown"`},
		{method: "POST", target: "/v1/partitions/" + slot + "/adopt", status: 200, contains: `"origin":"managed"`, write: true},
		{method: "POST", target: "/v1/partitions/" + slot + "/adopt?dry_run=true", status: 200, contains: `"changes":true`},
		{method: "DELETE", target: "/v1/partitions/" + mdev1, status: 202, contains: `"remove"`, write: true},
		{method: "DELETE", target: "/v1/partitions/" + slot + "?dry_run=true", status: 200, contains: "foreign-device"},

		{method: "GET", target: "/v1/vms", status: 200, contains: web1},
		{method: "GET", target: "/v1/vms?name=web1&state=running", status: 200, contains: web1},
		{method: "GET", target: "/v1/vms/" + web1, status: 200, contains: `"web1"`},
		{method: "GET", target: "/v1/vms/db%201%20%C3%BC", status: 200, contains: db1},

		{
			method: "POST", target: "/v1/vms/" + strings.ToUpper(web1) + "/check-start", body: `{"devices":[{"mdev_uuid":"` + strings.ToUpper(mdev1) + `"},{"pci_address":"0000:41:00.4"}]}`,
			status: 200, contains: `"message":"not with [{` + mdev1 + ` } { 0000:41:00.4}]"`,
		},
		{method: "POST", target: "/v1/vms/" + db1 + "/check-start", body: `{"devices":[]}`, status: 200, contains: `"findings":[]`},

		{method: "GET", target: "/v1/assignments", status: 200, contains: `"old"`},
		{method: "GET", target: "/v1/assignments?vm=web1&profile=mbochs-small&gpu=" + gpuA + "&state=attached", status: 200, contains: `"old"`},
		{method: "GET", target: "/v1/assignments?vm=" + db1, status: 200, contains: `"items":[]`},
		{method: "GET", target: "/v1/assignments/old", status: 200, contains: `"created":"2026-11-23T11:00:00Z"`},
		{method: "PUT", target: "/v1/assignments/new", body: wish, status: 202, contains: `"attach"`, write: true},
		{method: "PUT", target: "/v1/assignments/old", body: wish, status: 200, contains: `"attached"`},
		{method: "PUT", target: "/v1/assignments/new?dry_run=true", body: wish, status: 200, contains: `"changes":true`},
		{method: "PUT", target: "/v1/assignments/new?dry_run=false", body: wish, status: 202, contains: `"attach"`, write: true},
		{method: "PUT", target: "/v1/assignments/old?dry_run=true", body: wish, status: 200, contains: `"changes":false`},
		{method: "POST", target: "/v1/assignments:apply", body: `{"assignments":[` + named("new") + `,` + named("old") + `]}`, header: http.Header{"Idempotency-Key": {"k2"}}, status: 202, contains: `"apply"`, write: true},
		{method: "POST", target: "/v1/assignments:apply", body: `{"assignments":[` + named("old") + `]}`, status: 200, contains: `"attached"`},
		{method: "POST", target: "/v1/assignments:apply?dry_run=true", body: `{"assignments":[` + named("new") + `]}`, status: 200, contains: `"changes":true`},
		{method: "DELETE", target: "/v1/assignments/old", status: 202, contains: `"detach"`, write: true},
		{method: "DELETE", target: "/v1/assignments/none?dry_run=true", status: 200, contains: "not-found"},

		{method: "GET", target: "/v1/operations", status: 200, contains: running},
		{method: "GET", target: "/v1/operations?kind=detach&status=failed&actor=uid:1000", status: 200, contains: failed},
		{method: "GET", target: "/v1/operations/" + failed, status: 200, contains: `"urn:gpuvirt:problem:stuck"`},
		{method: "GET", target: "/v1/operations/" + done + "/wait", status: 200, contains: `"done"`},
		{method: "GET", target: "/v1/operations/" + running + "/wait?timeout=1ms", status: 200, contains: `"running"`},
		{method: "GET", target: "/v1/operations/" + running + "/wait?timeout=0s", status: 200, contains: `"running"`},
		{method: "POST", target: "/v1/operations/" + running + "/abort", status: 202, contains: `"undoing"`, write: true},
		{method: "POST", target: "/v1/operations/" + failed + "/retry", status: 202, contains: `"running"`, write: true},
		{method: "POST", target: "/v1/operations/" + failed + "/forget", status: 200, contains: `"failed"`, write: true},
	}
}

// sourceBody is a server of the tests.
const sourceBody = `{"address":"gpu8.example","host_key":"SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8","credential":"gpu8"}`

// inspectionBody is the smallest inspection there is.
func inspectionBody() string {
	r := report.Report{Version: report.Version, Hostname: "gpu7"}
	r.Clean()
	text, err := encode(r)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// named is the wish of the tests under a name, as in a batch.
func named(name string) string { return `{"name":"` + name + `",` + strings.TrimPrefix(wish, "{") }

func TestRoutes(t *testing.T) {
	tested := map[string]bool{"GET /v1/events": true} // see TestEvents
	for _, rq := range goodRequests("x", "x", "x") {
		tested[templateOf(t, rq.method, rq.target)] = true
	}
	for _, rt := range routes() {
		if !tested[rt.method+" "+rt.path] {
			t.Errorf("no test for %s %s", rt.method, rt.path)
		}
	}
	for i := range goodRequests("x", "x", "x") {
		h := newHarness(t)
		rq := goodRequests(h.addOps())[i]
		t.Run(rq.method+" "+rq.target, func(t *testing.T) {
			a := h.do(t, call{method: rq.method, target: rq.target, body: rq.body, header: rq.header})
			if a.status != rq.status || !strings.Contains(a.body, rq.contains) {
				t.Errorf("got %d %s, want %d with %q", a.status, a.body, rq.status, rq.contains)
			}
			if a.status == http.StatusAccepted {
				op := decodeStrictly[api.Operation](t, a.body)
				if got, want := a.header.Get("Location"), "/v1/operations/"+op.ID; got != want {
					t.Errorf("Location %q, want %q", got, want)
				}
			}
		})
	}
}

func templateOf(t *testing.T, method, target string) string {
	t.Helper()
	path, _, _ := strings.Cut(target, "?")
	r, err := http.NewRequest(method, "http://gpuvirt"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	input := findInDocument(t, r)
	if input == nil {
		t.Fatalf("%s %s is not in openapi.yaml", method, target)
	}
	return method + " " + input.Route.Path
}

// T27: what only reads, and every dry run, changes nothing.
func TestReadOnly(t *testing.T) {
	h := newHarness(t)
	running, failed, done := h.addOps()
	h.host.readOnly = true
	for _, rq := range goodRequests(running, failed, done) {
		if rq.write {
			continue
		}
		h.do(t, call{method: rq.method, target: rq.target, body: rq.body, header: rq.header})
	}
	if h.host.writes != 0 || h.kept.writes() != 0 {
		t.Errorf("%d writes, %d of tokens", h.host.writes, h.kept.writes())
	}
}

// The ids by which files of others name a card and its board are told, of PCI devices.
func TestPCIIDs(t *testing.T) {
	h := newHarness(t)
	for id, want := range map[gpu.ID][2]string{gpuA: {"10de:20f1", "10de:145f"}, "mbochs": {}} {
		g := h.host.gpus[id]
		g.Identity = gpu.Identity{Model: "10de:20f1", Subsystem: "10de:145f"}
		h.host.gpus[id] = g
		got := decodeStrictly[api.GPU](t, h.get(t, "/v1/gpus/"+string(id)).body)
		if got.PCIID != want[0] || got.PCISubsystem != want[1] {
			t.Errorf("%s: got %q and %q, want %q", id, got.PCIID, got.PCISubsystem, want)
		}
	}
}

// A HEAD has the header of a GET and nothing else.
func TestHead(t *testing.T) {
	h := newHarness(t)
	want := h.get(t, "/v1/gpus/"+gpuA)
	got := h.do(t, call{method: "HEAD", target: "/v1/gpus/" + gpuA, bad: true})
	if got.status != 200 || got.body != "" || got.header.Get("ETag") != want.header.Get("ETag") {
		t.Errorf("got %+v", got)
	}
	if got := h.do(t, call{method: "HEAD", target: "/v1/events", bad: true}); got.status != 405 {
		t.Errorf("HEAD of a stream: status %d", got.status)
	}
}

// Refusals of the host come with their code, status and what blocks.
func TestRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		method, target, body string
		setup                func(*harness)
		status               int
		code                 gpu.Code
		check                func(api.Problem) bool
	}{
		"unknown gpu":        {method: "GET", target: "/v1/gpus/0000:99:00.0", status: 404, code: gpu.CodeNotFound},
		"unknown partition":  {method: "GET", target: "/v1/partitions/none", status: 404, code: gpu.CodeNotFound},
		"unknown vm":         {method: "GET", target: "/v1/vms/none", status: 404, code: gpu.CodeVMNotFound},
		"unknown operation":  {method: "GET", target: "/v1/operations/none", status: 404, code: gpu.CodeNotFound},
		"unknown assignment": {method: "DELETE", target: "/v1/assignments/none", status: 404, code: gpu.CodeNotFound},
		"unknown profile":    {method: "PUT", target: "/v1/assignments/x", body: `{"vm":"web1","profile":"huge"}`, status: 422, code: gpu.CodeProfileUnknown},
		"vm in body":         {method: "PUT", target: "/v1/assignments/x", body: `{"vm":"none","profile":"huge"}`, status: 404, code: gpu.CodeVMNotFound},
		"unmanaged":          {method: "POST", target: "/v1/partitions", body: `{"profile":"mbochs-small","gpu":"` + gpuB + `"}`, status: 409, code: gpu.CodeGPUUnmanaged},
		"foreign":            {method: "DELETE", target: "/v1/partitions/" + url.PathEscape(slotID), status: 409, code: gpu.CodeForeignDevice},
		"other wish": {
			method: "PUT", target: "/v1/assignments/old", body: `{"vm":"web1","profile":"huge"}`, status: 409, code: gpu.CodeConflict,
			check: func(p api.Problem) bool {
				return cmp.Equal(p.Diff, map[string]api.Difference{"profile": {Stored: profile, Asked: "huge"}})
			},
		},
		"full": {
			method: "POST", target: "/v1/partitions", body: `{"profile":"mbochs-small"}`, status: 507, code: gpu.CodeNoCapacity,
			setup: func(h *harness) { h.host.partitions["x"] = gpu.Partition{ID: "x", Kind: gpu.KindMdev} },
			check: func(p api.Problem) bool { return len(p.Blockers) == 1 && p.Blockers[0].ID == mdev1 },
		},
		"held": {
			method: "DELETE", target: "/v1/assignments/old", status: 423, code: gpu.CodeBusy,
			setup: func(h *harness) { h.host.held = "op1" },
			check: func(p api.Problem) bool {
				return p.Operation == "op1" && cmp.Equal(p.Blockers, []api.Blocker{{Kind: "operation", ID: "op1", Name: "other"}})
			},
		},
		"abort of what is done": {
			method: "POST", target: "/v1/operations/01KAR2Z7T4Y2M8Q6V0R9X3B002/abort", status: 409, code: gpu.CodeConflict,
			setup: func(h *harness) { h.addOps() },
		},
		"retry of what runs": {
			method: "POST", target: "/v1/operations/01KAR2Z7T4Y2M8Q6V0R9X3B000/retry", status: 409, code: gpu.CodeConflict,
			setup: func(h *harness) { h.addOps() },
		},
		"forget of what runs": {
			method: "POST", target: "/v1/operations/01KAR2Z7T4Y2M8Q6V0R9X3B000/forget", status: 409, code: gpu.CodeConflict,
			setup: func(h *harness) { h.addOps() },
		},
		"unavailable": {
			method: "GET", target: "/v1/vms", status: 503, code: gpu.CodeUnavailable,
			setup: func(h *harness) {
				h.host.err = gpu.Errorf(gpu.CodeUnavailable, "libvirt does not answer").WithHint("start it")
			},
			check: func(p api.Problem) bool { return p.Hint == "start it" },
		},
		"defect": {
			method: "GET", target: "/v1/vms", status: 500, code: gpu.CodeInternal,
			setup: func(h *harness) { h.host.err = errors.New("secret path /etc/x") },
			check: func(p api.Problem) bool { return !strings.Contains(p.Detail, "secret") },
		},
		"backup fails before it begins": {
			method: "GET", target: "/v1/backup", status: 503, code: gpu.CodeUnavailable,
			setup: func(h *harness) { h.host.err = gpu.Errorf(gpu.CodeUnavailable, "closed") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			if tc.setup != nil {
				tc.setup(h)
			}
			a := h.do(t, call{method: tc.method, target: tc.target, body: tc.body})
			p := a.problem(t)
			if a.status != tc.status || p.Code != string(tc.code) {
				t.Errorf("got %d %s (%s), want %d %s", a.status, p.Code, p.Detail, tc.status, tc.code)
			}
			if tc.check != nil && !tc.check(p) {
				t.Errorf("problem %s", a.body)
			}
			if retry := a.header.Get("Retry-After"); (retry == "1") != (a.status == http.StatusLocked) {
				t.Errorf("Retry-After %q", retry)
			}
			if secret := strings.Contains(h.log.String(), "secret path"); secret != (tc.code == gpu.CodeInternal) {
				t.Errorf("the log tells the secret: %v", secret)
			}
		})
	}
}

// Every code of the vocabulary has a status, and its problem is in openapi.yaml.
func TestProblemTable(t *testing.T) {
	for _, code := range constantsOf(t, "gpu")["gpu.Code"] {
		p := problemOf(gpu.Errorf(gpu.Code(code), "cannot x"))
		if (p.Status == http.StatusInternalServerError) != (code == string(gpu.CodeInternal)) {
			t.Errorf("%s has status %d", code, p.Status)
		}
		if (p.Title == "Internal error") != (code == string(gpu.CodeInternal)) {
			t.Errorf("%s has title %q", code, p.Title)
		}
	}
	for _, err := range []error{gpu.Errorf("no-such-code", "x"), errors.New("x"), gpu.Errorf(gpu.CodeInternal, "x")} {
		if p := problemOf(err); p.Status != 500 || p.Code != "internal" || strings.Contains(p.Detail, "x") && p.Detail == "x" {
			t.Errorf("%v: %+v", err, p)
		}
	}
}

// The host is ready unless it starts or restores.
func TestReady(t *testing.T) {
	for state, want := range map[gpu.HostState]int{
		gpu.HostStarting: 503, gpu.HostRestoring: 503, gpu.HostReady: 200, gpu.HostDegraded: 200,
	} {
		h := newHarness(t)
		h.host.info.State, h.host.info.Reasons = state, []string{"because"}
		a := h.get(t, "/v1/health/ready")
		if a.status != want || !strings.Contains(a.body, "because") {
			t.Errorf("%s: %d %s", state, a.status, a.body)
		}
	}
}

// Without a folder for mirrors the host answers, and says so.
func TestReadyWithoutMirrors(t *testing.T) {
	h := newHarness(t)
	h.host.info.State, h.host.info.Reasons, h.host.mirrors = gpu.HostReady, nil, []string{"the folder of mirrors cannot be used"}
	if a := h.get(t, "/v1/health/ready"); a.status != 200 || !strings.Contains(a.body, "the folder of mirrors cannot be used") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := h.get(t, "/v1"); !strings.Contains(a.body, `"degraded"`) || !strings.Contains(a.body, "the folder of mirrors cannot be used") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// The same key and request do one thing; another request, or somebody else's, is refused.
func TestIdempotencyKey(t *testing.T) {
	h := newHarness(t)
	create := func(who *Identity, body string, keys ...string) answer {
		return h.do(t, call{method: "POST", target: "/v1/partitions", body: body, header: http.Header{"Idempotency-Key": keys}, who: who, bad: true})
	}
	body := `{"profile":"mbochs-small"}`
	first := create(nil, body, "k")
	again := create(nil, ` { "vgpu_params" : "", "profile" : "mbochs-small" } `, "k")
	if first.status != 202 || again.status != 202 || first.body != again.body || h.host.writes != 1 {
		t.Errorf("first %d, again %d, %d writes", first.status, again.status, h.host.writes)
	}
	other := &Identity{Actor: "uid:7", Role: Operator}
	for name, a := range map[string]answer{
		"another request": create(nil, `{"profile":"mbochs-small","placement":"spread"}`, "k"),
		"somebody else":   create(other, body, "k"),
	} {
		if a.status != 409 {
			t.Errorf("%s: %d", name, a.status)
		}
	}
	for _, keys := range [][]string{{""}, {"a b"}, {"ü"}, {strings.Repeat("x", 256)}, {"a", "b"}} {
		if a := create(nil, body, keys...); a.status != 400 {
			t.Errorf("key %.20q: %d", keys, a.status)
		}
	}
}
