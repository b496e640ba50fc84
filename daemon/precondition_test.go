package daemon

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"gpuvirt/api"
)

func TestETag(t *testing.T) {
	h := newHarness(t)
	running, _, _ := h.addOps()
	for _, target := range []string{"/v1", "/v1/gpus/" + gpuA, "/v1/partitions/" + mdev1, "/v1/vms/" + web1, "/v1/assignments/old", "/v1/operations/" + running} {
		etag := h.get(t, target).header.Get("ETag")
		if len(etag) < 20 || etag[0] != '"' {
			t.Errorf("%s: ETag %s", target, etag)
		}
		if again := h.get(t, target).header.Get("ETag"); again != etag {
			t.Errorf("%s: ETag %s, then %s", target, etag, again)
		}
		for header, want := range map[string]int{
			etag: 304, "W/" + etag: 304, "*": 304, `"a", ` + etag + `,"b,c"`: 304, `"a"`: 200, `""`: 200,
		} {
			a := h.do(t, call{method: "GET", target: target, header: http.Header{"If-None-Match": {header}}})
			if a.status != want || (a.body == "") != (want == 304) || a.header.Get("ETag") != etag {
				t.Errorf("%s with If-None-Match %s: %d %q", target, header, a.status, a.body)
			}
		}
	}
	before := h.get(t, "/v1/gpus/"+gpuA).header.Get("ETag")
	a := h.do(t, call{method: "PATCH", target: "/v1/gpus/" + gpuA, body: `{"quarantined":true}`})
	if after := h.get(t, "/v1/gpus/"+gpuA).header.Get("ETag"); after == before || after != a.header.Get("ETag") {
		t.Errorf("ETag %s, PATCH answered %s, then it is %s", before, a.header.Get("ETag"), after)
	}
	if a := h.get(t, "/v1/gpus"); a.header.Get("ETag") != "" {
		t.Error("a list has an ETag")
	}
}

func TestPreconditions(t *testing.T) {
	h := newHarness(t)
	etag := func(target string) string { return h.get(t, target).header.Get("ETag") }
	gpuTag, oldTag, mdevTag := etag("/v1/gpus/"+gpuA), etag("/v1/assignments/old"), etag("/v1/partitions/"+mdev1)
	for _, tc := range []struct {
		method, target, body string
		match, none          string
		want                 int // without it the request succeeds
	}{
		{"PATCH", "/v1/gpus/" + gpuA, `{}`, gpuTag, "", 200},
		{"PATCH", "/v1/gpus/" + gpuA, `{}`, "*", "", 200},
		{"PATCH", "/v1/gpus/" + gpuA, `{}`, `"x",` + gpuTag, "", 200},
		{"PATCH", "/v1/gpus/" + gpuA, `{}`, `"x"`, "", 412},
		{"PATCH", "/v1/gpus/" + gpuA, `{}`, "W/" + gpuTag, "", 412},
		{"PATCH", "/v1/gpus/" + gpuA, `{}`, "", "*", 412},
		{"PATCH", "/v1/gpus/" + gpuA, `{}`, "", gpuTag, 412},
		{"PATCH", "/v1/gpus/" + gpuA, `{}`, "", `"x"`, 200},
		{"PATCH", "/v1/gpus/none", `{}`, `"x"`, "", 404},
		{"PUT", "/v1/assignments/old", wish, oldTag, "", 200},
		{"PUT", "/v1/assignments/old", wish, `"x"`, "", 412},
		{"PUT", "/v1/assignments/old", wish, "", "*", 412},
		{"PUT", "/v1/assignments/new", wish, "*", "", 412},
		{"PUT", "/v1/assignments/new", wish, `"x"`, "", 412},
		{"PUT", "/v1/assignments/new", wish, "", "*", 202},
		{"DELETE", "/v1/assignments/none", "", "*", "", 404},
		{"DELETE", "/v1/assignments/old", "", `"x"`, "", 412},
		{"DELETE", "/v1/assignments/old", "", oldTag, "", 202},
		{"DELETE", "/v1/partitions/" + mdev1, "", `"x"`, "", 412},
		{"DELETE", "/v1/partitions/" + mdev1, "", mdevTag, "", 202},
	} {
		header := http.Header{}
		if tc.match != "" {
			header.Set("If-Match", tc.match)
		}
		if tc.none != "" {
			header.Set("If-None-Match", tc.none)
		}
		for _, dry := range []string{"?dry_run=true", ""} {
			h := newHarness(t)
			a := h.do(t, call{method: tc.method, target: tc.target + dry, body: tc.body, header: header})
			want := tc.want
			if dry != "" && want == 202 {
				want = 200
			}
			if a.status != want {
				t.Errorf("%s %s If-Match %s If-None-Match %s: %d %s, want %d", tc.method, tc.target+dry, tc.match, tc.none, a.status, a.body, want)
			}
			if (want >= 400 || dry != "") && h.host.writes > 0 {
				t.Errorf("%s %s wrote", tc.method, tc.target+dry)
			}
			if want == 412 && a.problem(t).Code != "stale" {
				t.Errorf("code %s", a.body)
			}
		}
	}
}

// Of many who change the same state of an object, one succeeds.
func TestPreconditionRace(t *testing.T) {
	h := newHarness(t)
	etag := h.get(t, "/v1/gpus/"+gpuA).header.Get("ETag")
	statuses := make([]int, 20)
	var wg sync.WaitGroup
	for i := range statuses {
		wg.Go(func() {
			body := fmt.Sprintf(`{"labels":{"n":"%d"}}`, i)
			statuses[i] = h.do(t, call{method: "PATCH", target: "/v1/gpus/" + gpuA, body: body, header: http.Header{"If-Match": {etag}}}).status
		})
	}
	wg.Wait()
	slices.Sort(statuses)
	if statuses[0] != 200 || statuses[1] != 412 || statuses[len(statuses)-1] != 412 {
		t.Errorf("statuses %v", statuses)
	}
	if len(h.locks.locks) != 0 {
		t.Errorf("%d locks are left", len(h.locks.locks))
	}
}

// Following cursors shows each item that was there all the time exactly once.
func TestPages(t *testing.T) {
	h := newHarness(t)
	old := h.host.assignments["old"]
	clear(h.host.assignments)
	add := func(name string) {
		a := old
		a.Name = name
		h.host.assignments[name] = a
	}
	for i := range 25 {
		add(fmt.Sprintf("stay-%02d", i))
		add(fmt.Sprintf("go-%02d", i))
	}
	seen := map[string]int{}
	target, pages := "/v1/assignments?limit=7", 0
	for target != "" {
		a := h.get(t, target)
		list := decodeStrictly[api.List[api.Assignment]](t, a.body)
		for _, a := range list.Items {
			seen[a.Name]++
		}
		if len(list.Items) > 7 || list.Next != "" && len(list.Items) != 7 {
			t.Fatalf("page of %d", len(list.Items))
		}
		delete(h.host.assignments, fmt.Sprintf("go-%02d", 10+pages))
		add(fmt.Sprintf("aaa-%02d", pages))
		add(fmt.Sprintf("zzz-%02d", pages))
		delete(h.host.assignments, list.Items[len(list.Items)-1].Name) // the cursor itself
		target = ""
		if list.Next != "" {
			target = "/v1/assignments?limit=7&cursor=" + list.Next
		}
		if pages++; pages > 30 {
			t.Fatal("it never ends")
		}
	}
	for i := range 25 {
		if name := fmt.Sprintf("stay-%02d", i); seen[name] != 1 {
			t.Errorf("%s was seen %d times", name, seen[name])
		}
	}
	for name, n := range seen {
		if n > 1 || strings.HasPrefix(name, "aaa") {
			t.Errorf("%s was seen %d times", name, n)
		}
	}
}
