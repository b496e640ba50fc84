package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
	"gpuvirt/client"
)

// serve starts a daemon double on a unix socket.
func serve(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	serveOn(t, socket, h)
	c := client.New(client.Options{Socket: socket, Patience: 5 * time.Second})
	t.Cleanup(c.Close)
	return c
}

func serveOn(t *testing.T, socket string, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func reply(w http.ResponseWriter, status int, v any) {
	kind := "application/json"
	if _, ok := v.(*api.Problem); ok {
		kind = api.ContentTypeProblem
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}

func TestRoutes(t *testing.T) {
	yes := true
	want := api.AssignmentRequest{VM: "web1", Profile: "T4-2Q"}
	part := api.PartitionRequest{Profile: "T4-2Q"}
	batch := api.ApplyRequest{Assignments: []api.NamedAssignmentRequest{{Name: "a", VM: "web1", Profile: "T4-2Q"}}}
	patch := api.GPUPatch{Managed: &yes}
	all := client.ListOptions{}
	tests := []struct {
		call func(context.Context, *client.Client) error
		want string
		body string
	}{
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Info(ctx); return err }, want: "GET /v1"},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.GPUs(ctx, client.ListOptions{Filter: map[string]string{"vendor": "NVIDIA"}, PageSize: 7})
			return err
		}, want: "GET /v1/gpus?limit=7&vendor=NVIDIA"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.GPU(ctx, "0000:3b:00.0"); return err }, want: "GET /v1/gpus/0000:3b:00.0"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.GPU(ctx, "a/../b?c"); return err }, want: "GET /v1/gpus/a%2F..%2Fb%3Fc"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.PatchGPU(ctx, "g", patch); return err }, want: "PATCH /v1/gpus/g", body: `{"managed":true}`},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.PlanPatchGPU(ctx, "g", patch)
			return err
		}, want: "PATCH /v1/gpus/g?dry_run=true", body: `{"managed":true}`},
		{call: func(ctx context.Context, c *client.Client) error { _, _, err := c.Profiles(ctx, "g", all); return err }, want: "GET /v1/gpus/g/profiles"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Capacity(ctx, ""); return err }, want: "GET /v1/capacity"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Capacity(ctx, "T4-2Q"); return err }, want: "GET /v1/capacity?profile=T4-2Q"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Partitions(ctx, all); return err }, want: "GET /v1/partitions"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Partition(ctx, "p"); return err }, want: "GET /v1/partitions/p"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.CreatePartition(ctx, part); return err }, want: "POST /v1/partitions", body: `{"profile":"T4-2Q"}`},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.PlanCreatePartition(ctx, part)
			return err
		}, want: "POST /v1/partitions?dry_run=true", body: `{"profile":"T4-2Q"}`},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.DeletePartition(ctx, "p"); return err }, want: "DELETE /v1/partitions/p"},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.PlanDeletePartition(ctx, "p")
			return err
		}, want: "DELETE /v1/partitions/p?dry_run=true"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.MIG(ctx, "g"); return err }, want: "GET /v1/gpus/g/mig"},
		{call: func(ctx context.Context, c *client.Client) error {
			_, _, err := c.PutMIG(ctx, "g", api.Layout{Enabled: true, Instances: []api.LayoutInstance{}})
			return err
		}, want: "PUT /v1/gpus/g/mig", body: `{"enabled":true,"instances":[]}`},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.PlanPutMIG(ctx, "g", api.Layout{Instances: []api.LayoutInstance{}})
			return err
		}, want: "PUT /v1/gpus/g/mig?dry_run=true", body: `{"enabled":false,"instances":[]}`},
		{call: func(ctx context.Context, c *client.Client) error {
			_, _, err := c.ApplyAssignments(ctx, batch)
			return err
		}, want: "POST /v1/assignments:apply", body: `{"assignments":[{"name":"a","vm":"web1","profile":"T4-2Q"}]}`},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.PlanApplyAssignments(ctx, batch)
			return err
		}, want: "POST /v1/assignments:apply?dry_run=true", body: `{"assignments":[{"name":"a","vm":"web1","profile":"T4-2Q"}]}`},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.VFs(ctx, "g"); return err }, want: "GET /v1/gpus/g/sriov"},
		{call: func(ctx context.Context, c *client.Client) error {
			_, _, err := c.PutVFs(ctx, "g", 0)
			return err
		}, want: "PUT /v1/gpus/g/sriov", body: `{"num_vfs":0}`},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.PlanPutVFs(ctx, "g", 4)
			return err
		}, want: "PUT /v1/gpus/g/sriov?dry_run=true", body: `{"num_vfs":4}`},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.VGPUSettings(ctx, "g"); return err }, want: "GET /v1/gpus/g/vgpu"},
		{call: func(ctx context.Context, c *client.Client) error {
			_, _, err := c.PutVGPUSettings(ctx, "g", api.VGPUSettingsRequest{Scheduler: &api.SchedulerRequest{Policy: "equal-share"}})
			return err
		}, want: "PUT /v1/gpus/g/vgpu", body: `{"scheduler":{"policy":"equal-share"}}`},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.PlanPutVGPUSettings(ctx, "g", api.VGPUSettingsRequest{})
			return err
		}, want: "PUT /v1/gpus/g/vgpu?dry_run=true", body: `{}`},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.VMs(ctx, all); return err }, want: "GET /v1/vms"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.VM(ctx, "web1"); return err }, want: "GET /v1/vms/web1"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Assignments(ctx, all); return err }, want: "GET /v1/assignments"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Assignment(ctx, "a"); return err }, want: "GET /v1/assignments/a"},
		{call: func(ctx context.Context, c *client.Client) error {
			_, _, err := c.PutAssignment(ctx, "a", want)
			return err
		}, want: "PUT /v1/assignments/a", body: `{"vm":"web1","profile":"T4-2Q"}`},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.PlanPutAssignment(ctx, "a", want)
			return err
		}, want: "PUT /v1/assignments/a?dry_run=true", body: `{"vm":"web1","profile":"T4-2Q"}`},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.DeleteAssignment(ctx, "a"); return err }, want: "DELETE /v1/assignments/a"},
		{call: func(ctx context.Context, c *client.Client) error {
			_, err := c.PlanDeleteAssignment(ctx, "a")
			return err
		}, want: "DELETE /v1/assignments/a?dry_run=true"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Operations(ctx, all); return err }, want: "GET /v1/operations"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Operation(ctx, "o"); return err }, want: "GET /v1/operations/o"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Abort(ctx, "o"); return err }, want: "POST /v1/operations/o/abort"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Retry(ctx, "o"); return err }, want: "POST /v1/operations/o/retry"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Forget(ctx, "o"); return err }, want: "POST /v1/operations/o/forget"},
		{call: func(ctx context.Context, c *client.Client) error { _, err := c.Health(ctx); return err }, want: "GET /v1/health/ready"},
		{call: func(ctx context.Context, c *client.Client) error { return c.Backup(ctx, io.Discard) }, want: "GET /v1/backup"},
	}
	type seen struct{ Request, Body string }
	var got seen
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = seen{r.Method + " " + r.RequestURI, string(body)}
		reply(w, http.StatusOK, map[string]any{})
	})
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			if err := tt.call(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(seen{tt.want, tt.body}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNames(t *testing.T) {
	c := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
	for _, name := range []string{"", ".", ".."} {
		if _, err := c.GPU(t.Context(), name); err == nil {
			t.Errorf("%q was taken for a name", name)
		}
	}
}

func TestPages(t *testing.T) {
	pages := map[string]api.List[api.VM]{
		"":  {Items: []api.VM{{Name: "a"}, {Name: "b"}}, Next: "2"},
		"2": {Items: []api.VM{{Name: "c"}}, Next: "3"},
		"3": {},
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("state") != "running" {
			t.Errorf("the filter was lost in %s", r.RequestURI)
		}
		reply(w, http.StatusOK, pages[r.FormValue("cursor")])
	})
	got, err := c.VMs(t.Context(), client.ListOptions{Filter: map[string]string{"state": "running"}})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, vm := range got {
		names = append(names, vm.Name)
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, names); diff != "" {
		t.Error(diff)
	}
	pages["3"] = api.List[api.VM]{Next: "2"}
	if _, err := c.VMs(t.Context(), client.ListOptions{Filter: map[string]string{"state": "running"}}); err == nil {
		t.Error("a circle of pages was followed")
	}
}

func TestProblem(t *testing.T) {
	want := &api.Problem{
		Type: "about:blank", Title: "Conflict", Status: 409, Code: "conflict", Detail: "cannot attach", Hint: "detach first",
		Blockers: []api.Blocker{{Kind: "vm", ID: "1", Name: "web1"}},
		Diff:     map[string]api.Difference{"profile": {Stored: "T4-1Q", Asked: "T4-2Q"}},
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/gpus/a":
			reply(w, 409, want)
		case "/v1/gpus/b":
			http.Error(w, "<html>", http.StatusBadGateway)
		case "/v1/gpus/c":
			http.Redirect(w, r, "/v1/gpus/a", http.StatusFound)
		default:
			w.WriteHeader(http.StatusOK)
			_, _ = io.WriteString(w, "{")
		}
	})
	_, err := c.GPU(t.Context(), "a")
	got, ok := errors.AsType[*api.Problem](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for id, status := range map[string]int{"b": 502, "c": 302} {
		_, err = c.GPU(t.Context(), id)
		if p, ok := errors.AsType[*api.Problem](err); !ok || p.Status != status || !strings.Contains(p.Detail, "gpuvirtd answered") {
			t.Errorf("%s: got %v", id, err)
		}
	}
	if _, err = c.GPU(t.Context(), "d"); err == nil || !strings.Contains(err.Error(), "cannot read the answer to GET /v1/gpus/d") {
		t.Errorf("got %v", err)
	}
}

func TestTooBig(t *testing.T) {
	chunk := strings.Repeat(" ", 1<<20)
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for range 17 {
			if _, err := io.WriteString(w, chunk); err != nil {
				return
			}
		}
	})
	if _, err := c.Info(t.Context()); err == nil || !strings.Contains(err.Error(), "more than 16777216 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	c := client.New(client.Options{Socket: socket})
	began := time.Now()
	_, err := c.Info(t.Context())
	u, ok := errors.AsType[*client.UnreachableError](err)
	if !ok || u.Daemon != socket {
		t.Fatalf("got %v", err)
	}
	if time.Since(began) > 10*time.Second {
		t.Error("a daemon that was never there was waited for")
	}
}

// A connection that breaks in the middle: what can be repeated is.
func TestRepeat(t *testing.T) {
	var keys []string
	var n atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if n.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		reply(w, http.StatusAccepted, api.Operation{ID: "o"})
	})
	op, err := c.CreatePartition(t.Context(), api.PartitionRequest{Profile: "T4-2Q"})
	if err != nil || op.ID != "o" {
		t.Fatalf("got %v, %v", op, err)
	}
	if len(keys) != 2 || keys[0] == "" || keys[0] != keys[1] {
		t.Errorf("the keys were %q", keys)
	}
	if _, err := c.CreatePartition(t.Context(), api.PartitionRequest{Profile: "T4-2Q"}); err != nil || keys[2] == keys[0] {
		t.Errorf("another call had the same key, or %v", err)
	}
	n.Store(0)
	if _, err := c.Retry(t.Context(), "o"); err == nil {
		t.Error("an act without a key was repeated")
	}
}

func TestPutAssignment(t *testing.T) {
	status := http.StatusAccepted
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if status == http.StatusAccepted {
			reply(w, status, api.Operation{ID: "o"})
			return
		}
		reply(w, status, api.Assignment{Name: "a"})
	})
	a, op, err := c.PutAssignment(t.Context(), "a", api.AssignmentRequest{})
	if err != nil || a != nil || op == nil || op.ID != "o" {
		t.Errorf("got %v, %v, %v", a, op, err)
	}
	status = http.StatusOK
	a, op, err = c.PutAssignment(t.Context(), "a", api.AssignmentRequest{})
	if err != nil || op != nil || a == nil || a.Name != "a" {
		t.Errorf("got %v, %v, %v", a, op, err)
	}
}

func TestHealth(t *testing.T) {
	var n atomic.Int32
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) {
		case 1:
			reply(w, 503, api.Health{Status: "not-ready", Reasons: []string{"restoring"}})
		case 2:
			reply(w, 503, &api.Problem{Status: 503, Detail: "cannot answer: starting"})
		default:
			reply(w, 200, api.Health{Status: "ok"})
		}
	})
	for _, want := range []api.Health{
		{Status: "not-ready", Reasons: []string{"restoring"}},
		{Status: "not-ready", Reasons: []string{"cannot answer: starting"}},
		{Status: "ok"},
	} {
		got, err := c.Health(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestEditGPU(t *testing.T) {
	var tags []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("ETag", `"`+strings.Repeat("x", len(tags))+`"`)
			reply(w, 200, api.GPU{ID: "g", Labels: map[string]string{"a": "1"}})
			return
		}
		tags = append(tags, r.Header.Get("If-Match"))
		if len(tags) < 3 {
			reply(w, 412, &api.Problem{Status: 412, Detail: "changed"})
			return
		}
		var p api.GPUPatch
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			t.Error(err)
		}
		reply(w, 200, api.GPU{ID: "g", Labels: *p.Labels})
	})
	got, err := c.EditGPU(t.Context(), "g", func(g api.GPU) api.GPUPatch {
		g.Labels["b"] = "2"
		return api.GPUPatch{Labels: &g.Labels}
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "1", "b": "2"}, got.Labels); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{`""`, `"x"`, `"xx"`}, tags); diff != "" {
		t.Error(diff)
	}
}
