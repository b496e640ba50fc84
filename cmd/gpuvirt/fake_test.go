package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuvirt/api"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// A fake is a daemon with fixed data. It answers writes with what a daemon could
// have answered, and does nothing.
type fake struct {
	mu       sync.Mutex
	requests []string // writes only
	waits    map[string][]api.Operation
	answers  map[string]any      // in place of the usual ones, by "METHOD path"
	series   map[string][]any    // the same, one after the other; the last one stays
	plans    map[string]api.Plan // of dry runs, the same
	syncs    int                 // passes that were asked for
	missing  bool                // the partitions of a gpu are not there
}

func startFake(t *testing.T) (*fake, string) {
	t.Helper()
	f := &fake{waits: map[string][]api.Operation{}, answers: map[string]any{}, series: map[string][]any{}, plans: map[string]api.Plan{}}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(f)
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return f, socket
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	if r.Method != http.MethodGet {
		f.requests = append(f.requests, strings.TrimSpace(r.Method+" "+r.RequestURI+" "+string(body)))
	}
	if p, found := f.plans[r.Method+" "+path]; found && r.FormValue("dry_run") == "true" {
		answer(w, p)
		return
	}
	if all := f.series[r.Method+" "+path]; len(all) > 0 {
		answer(w, all[0])
		if len(all) > 1 {
			f.series[r.Method+" "+path] = all[1:]
		}
		return
	}
	if v, found := f.answers[r.Method+" "+path]; found {
		answer(w, v)
		return
	}
	if r.FormValue("dry_run") == "true" && r.Method == http.MethodPost && path == "migrations" {
		answer(w, migrationPlan("blocked"))
		return
	}
	if r.FormValue("dry_run") == "true" {
		answer(w, plan)
		return
	}
	switch kind, id, _ := strings.Cut(path, "/"); {
	case r.Method == http.MethodGet && path == "events":
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "id: 7.1\ndata: {\"type\":\"vm.lifecycle\",\"object\":\"web1\",\"time\":\"2026-11-23T10:00:00Z\",\"detail\":{\"state\":\"running\"}}\n\n")
		fmt.Fprint(w, "id: 7.2\ndata: {\"type\":\"gpu.changed\",\"object\":\"0000:3b:00.0\",\"time\":\"2026-11-23T10:00:01Z\"}\n\n")
		if flusher, ok := w.(http.Flusher); ok {
			flusher.Flush()
		}
		f.mu.Unlock()
		<-r.Context().Done()
		f.mu.Lock()
	case r.Method == http.MethodGet && strings.HasSuffix(id, "/wait"):
		id = strings.TrimSuffix(id, "/wait")
		f.waitFor(w, id)
	case r.Method == http.MethodGet:
		f.get(w, path, r)
	case r.Method == http.MethodPatch && strings.HasPrefix(path, "migrations/"):
		answer(w, migrations[0])
	case r.Method == http.MethodPatch:
		g := gpus[0]
		var p api.GPUPatch
		if err := json.Unmarshal(body, &p); err != nil {
			panic(err)
		}
		if p.Managed != nil {
			g.Managed = *p.Managed
		}
		if p.Labels != nil {
			g.Labels = *p.Labels
		}
		answer(w, g)
	case r.Method == http.MethodPut && strings.HasSuffix(path, "/sriov"):
		answer(w, accepted{operations["lay"]})
	case r.Method == http.MethodPut && strings.HasSuffix(path, "/vgpu"):
		answer(w, accepted{operations["lay"]})
	case r.Method == http.MethodPut && strings.HasSuffix(path, "/mig"):
		answer(w, accepted{operations["lay"]})
	case r.Method == http.MethodPut:
		answer(w, accepted{operations["attach"]})
	case path == "migrations":
		answer(w, accepted{operations["attach"]})
	case strings.HasSuffix(path, "/rehearse") && r.FormValue("dry_run") == "":
		m := migrations[0]
		m.Phase, m.Attempts = "rehearsing", append(slices.Clone(m.Attempts[:1]), move.Attempt{Kind: move.Rehearsal, State: move.Running, Phase: "last pass"})
		answer(w, m) // it has passed when it is looked at again
	case strings.HasSuffix(path, "/sync") && r.FormValue("dry_run") == "":
		f.syncs++
		m := migrations[0]
		m.Disks = slices.Clone(m.Disks)
		m.Disks[0].Total += f.syncs
		f.answers["GET migrations/gpu7"] = m // it has been passed over when it is looked at again
		answer(w, migrations[0])
	case kind == "migrations":
		answer(w, migrations[0])
	case path == "assessments" && strings.Contains(string(body), "inspection"):
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(assessments[0])
	case path == "assessments":
		answer(w, accepted{operations["attach"]})
	case kind == "assessments":
		answer(w, assessments[0])
	case r.Method == http.MethodDelete && kind == "tokens":
		answer(w, tokens[0])
	case path == "tokens":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(api.TokenCreated{Token: tokens[0], Secret: secret})
	case r.Method == http.MethodDelete && kind == "assignments":
		answer(w, accepted{operations["detach"]})
	case r.Method == http.MethodDelete:
		answer(w, accepted{operations["remove"]})
	case path == "assignments:apply":
		answer(w, accepted{operations["attach"]})
	case path == "partitions":
		answer(w, accepted{operations["make"]})
	default:
		answer(w, operations["waiting"])
	}
}

// waitFor answers with the next snapshot that a test has for an operation, or
// with its end.
func (f *fake) waitFor(w http.ResponseWriter, id string) {
	if rest := f.waits[id]; len(rest) > 0 {
		f.waits[id] = rest[1:]
		answer(w, rest[0])
		return
	}
	op := operations[id]
	if op.Status == "ready" {
		op.Status = "done"
		op.Steps = slices.Clone(op.Steps)
		for i := range op.Steps {
			op.Steps[i].Status = "done"
		}
	}
	answer(w, op)
}

// accepted is an answer with status 202.
type accepted struct{ api.Operation }

func answer(w http.ResponseWriter, v any) {
	status, kind := http.StatusOK, "application/json"
	switch v := v.(type) {
	case accepted:
		status = http.StatusAccepted
	case *api.Problem:
		status, kind = v.Status, api.ContentTypeProblem
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}

func (f *fake) get(w http.ResponseWriter, path string, r *http.Request) {
	kind, id, one := strings.Cut(path, "/")
	switch {
	case path == "/v1":
		answer(w, api.Info{Product: "gpuvirt", Version: "v9.8.7", APIVersion: "1", State: "ready"})
	case path == "health/ready":
		answer(w, api.Health{Status: "ok"})
	case path == "backup":
		_, _ = io.WriteString(w, "the store")
	case path == "capacity":
		answer(w, capacityOf(r.FormValue("profile")))
	case strings.HasSuffix(path, "/profiles"):
		gpu := strings.TrimSuffix(id, "/profiles")
		items := slices.DeleteFunc(slices.Concat(profiles, a100), func(p api.Profile) bool { return p.GPU != gpu })
		list := api.ProfileList{Items: items}
		if gpu == "0000:d8:00.0" {
			list.Unknown = "NVIDIA's library does not answer"
		}
		answer(w, list)
	case strings.HasSuffix(path, "/sriov") && id == vfs.GPU+"/sriov":
		answer(w, vfs)
	case strings.HasSuffix(path, "/vgpu") && id == vgpuSettings.GPU+"/vgpu":
		answer(w, vgpuSettings)
	case strings.HasSuffix(path, "/mig") && id == mig.GPU+"/mig":
		answer(w, mig)
	case path == "partitions" && r.FormValue("kind") == "mig":
		answer(w, api.List[api.Partition]{Items: instances})
	case path == "gpus" && r.FormValue("vendor") != "":
		answer(w, api.List[api.GPU]{Items: slices.DeleteFunc(slices.Clone(gpus), func(g api.GPU) bool { return g.Vendor != r.FormValue("vendor") })})
	case kind == "gpus":
		find(w, gpus, gpuTable.name, id, one)
	case kind == "vms":
		find(w, vms, vmTable.name, id, one)
	case path == "partitions" && r.FormValue("gpu") != "":
		items := slices.DeleteFunc(slices.Clone(partitions), func(p api.Partition) bool { return p.GPU != r.FormValue("gpu") })
		for i := range items {
			if f.missing {
				items[i].State = "missing"
			}
		}
		answer(w, api.List[api.Partition]{Items: items})
	case kind == "partitions":
		find(w, slices.Concat(partitions, instances[:len(instances)*btoi(one)]), partitionTable.name, id, one)
	case kind == "assignments":
		find(w, assignments, assignmentTable.name, id, one)
	case path == "tokens" && r.FormValue("name") != "":
		answer(w, api.List[api.Token]{Items: slices.DeleteFunc(slices.Clone(tokens), func(t api.Token) bool { return t.Name != r.FormValue("name") })})
	case path == "assessments/gpu7/inspection":
		answer(w, report.Report{Version: report.Version, Hostname: "gpu7"})
	case path == "migrations/gpu7/plan":
		answer(w, migrationPlan("ready-with-warnings"))
	case kind == "migrations":
		find(w, migrations, migrationTable.name, id, one)
	case kind == "assessments":
		find(w, assessments, assessmentTable.name, id, one)
	case kind == "tokens":
		find(w, tokens, tokenTable.name, id, one)
	case kind == "operations":
		var all []api.Operation
		for _, key := range slices.Sorted(maps.Keys(operations)) {
			all = append(all, operations[key])
		}
		find(w, all, operationTable.name, id, one)
	default:
		answer(w, &api.Problem{Status: 404, Code: "not-found", Detail: "there is nothing at " + path})
	}
}

// migrationPlan is a plan that the rules made, with another verdict.
func migrationPlan(state string) (p api.MigrationPlan) {
	text, err := os.ReadFile("../../p2v/assess/testdata/part.golden.json")
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		panic(err)
	}
	if p.Verdict.State = assess.State(state); state == "blocked" {
		p.Verdict.Text = "Blocked: the source has no disk that can be moved."
		p.Verdict.Blockers = []assess.Concern{{
			ID: "no-disk", Title: "The source has no disk that can be moved", Why: "There is nothing to copy.", Evidence: []string{"\"sda\" is removable"}, Remedy: "Name a disk.",
		}}
	}
	return p
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func find[T any](w http.ResponseWriter, items []T, name func(T) string, id string, one bool) {
	if !one {
		answer(w, api.List[T]{Items: items})
		return
	}
	for _, item := range items {
		if name(item) == id {
			answer(w, item)
			return
		}
	}
	answer(w, &api.Problem{Status: 404, Code: "not-found", Detail: fmt.Sprintf("cannot find %q: it does not exist", id)})
}

func capacityOf(profile string) api.Capacity {
	all := []api.ProfileCapacity{
		{Profile: "T4-1Q", Kind: "mdev", Available: 14, GPUs: []api.GPUCapacity{
			{GPU: "0000:3b:00.0", Available: 14, Reasons: []string{}},
			{GPU: "0000:d8:00.0", Available: 0, Reasons: []string{"not managed", "driver 535.1 differs"}},
		}},
		{Profile: "T4-16Q", Kind: "mdev", Available: 0, GPUs: []api.GPUCapacity{
			{GPU: "0000:3b:00.0", Available: 0, Reasons: []string{"T4-1Q is in use there"}},
		}},
	}
	for _, p := range a100 {
		all = append(all, api.ProfileCapacity{Profile: p.Name, Kind: p.Kind, Available: p.Available, GPUs: []api.GPUCapacity{{GPU: p.GPU, Available: p.Available, Reasons: []string{}}}})
	}
	if profile != "" {
		all = slices.DeleteFunc(all, func(p api.ProfileCapacity) bool { return p.Profile != profile })
	}
	return api.Capacity{Profiles: all}
}

func at(second int) time.Time { return time.Date(2026, 11, 23, 10, 0, second, 0, time.UTC) }

func moment(second int) *time.Time {
	t := at(second)
	return &t
}
