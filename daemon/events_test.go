package daemon

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/api"
	"gpuvirt/operation"
)

// streamRecorder is a response that can be read while it is written.
type streamRecorder struct {
	mu     sync.Mutex
	header http.Header
	status int
	text   strings.Builder
	err    error // of the next writes
}

func (r *streamRecorder) Header() http.Header { return r.header }

func (r *streamRecorder) WriteHeader(status int) { r.status = status }

func (r *streamRecorder) Flush() {}

func (r *streamRecorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	return r.text.Write(p)
}

func (r *streamRecorder) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.text.String()
	r.text.Reset()
	return s
}

func (r *streamRecorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// stream starts an event stream; done is closed when it has ended.
func (h *harness) stream(t *testing.T, target, last string) (rec *streamRecorder, hangUp func(), done chan struct{}) {
	t.Helper()
	c := call{method: "GET", target: target}
	if last != "" {
		c.header = http.Header{"Last-Event-Id": {last}}
	}
	r := c.request(t)
	checkRequest(t, c, findInDocument(t, r))
	ctx, cancel := context.WithCancel(r.Context())
	rec, done = &streamRecorder{header: http.Header{}}, make(chan struct{})
	go func() {
		defer close(done)
		h.serveHTTP(rec, r.WithContext(ctx))
	}()
	synctest.Wait()
	return rec, cancel, done
}

// ids returns the ids and types of the events in a piece of a stream.
func ids(t *testing.T, text string) string {
	t.Helper()
	var out []string
	for block := range strings.SplitSeq(text, "\n\n") {
		id, typ := "", ""
		for line := range strings.SplitSeq(block, "\n") {
			if v, ok := strings.CutPrefix(line, "id: "); ok {
				id = v
			}
			if v, ok := strings.CutPrefix(line, "event: "); ok {
				typ = v
			}
			if v, ok := strings.CutPrefix(line, "data: "); ok {
				e := decodeStrictly[api.Event](t, v)
				if e.ID != id || e.Type != typ {
					t.Errorf("data %s under id %q and event %q", v, id, typ)
				}
				out = append(out, id+":"+e.Type+":"+e.Object)
			}
		}
	}
	return strings.Join(out, " ")
}

func TestEvents(t *testing.T) {
	for name, tc := range map[string]struct {
		target, last string
		want         string // at first
	}{
		"from now on":            {"/v1/events", "", ""},
		"from zero":              {"/v1/events?after=0", "", ""},
		"after":                  {"/v1/events?after=4", "", "5:b.y:5 6:b.y:6"},
		"header":                 {"/v1/events", "5", "6:b.y:6"},
		"header goes before url": {"/v1/events?after=4", "5", "6:b.y:6"},
		"up to date":             {"/v1/events?after=6", "", ""},
		"events were dropped":    {"/v1/events?after=1", "", ":reset:events 3:b.y:3 4:b.y:4 5:b.y:5 6:b.y:6"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t)
				h.host.dropped = 2
				for _, o := range []string{"3", "4", "5", "6"} {
					h.host.emit("b.y", o)
				}
				rec, hangUp, done := h.stream(t, tc.target, tc.last)
				defer hangUp()
				if rec.status != 200 || rec.header.Get("Content-Type") != mediaEvents {
					t.Fatalf("status %d, header %v", rec.status, rec.header)
				}
				text := rec.take()
				if got := ids(t, text); got != tc.want || !strings.HasPrefix(text, ": connected\n\n") {
					t.Errorf("got %q, want %q", got, tc.want)
				}
				h.host.emit("c.z", "7")
				synctest.Wait()
				if got := ids(t, rec.take()); got != "7:c.z:7" {
					t.Errorf("then %q", got)
				}
				hangUp()
				<-done
			})
		})
	}
}

func TestEventsHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		rec, hangUp, done := h.stream(t, "/v1/events", "")
		rec.take()
		<-time.After(h.heartbeat - 1) // the bubble's clock
		synctest.Wait()
		if got := rec.take(); got != "" {
			t.Errorf("too early: %q", got)
		}
		<-time.After(1)
		synctest.Wait()
		if got := rec.take(); !strings.HasPrefix(got, ":") || !strings.HasSuffix(got, "\n\n") {
			t.Errorf("heartbeat %q", got)
		}
		hangUp()
		<-done
	})
}

// A stream ends when its client does not take events, when the server ends, and
// when the host cuts it off; it never holds anybody up.
func TestEventsEnd(t *testing.T) {
	for name, end := range map[string]func(*harness, *streamRecorder){
		"client does not take": func(h *harness, rec *streamRecorder) {
			rec.fail(errors.New("deadline"))
			h.host.emit("a.b", "x")
		},
		"server ends": func(h *harness, _ *streamRecorder) { close(h.closing) },
		"too far behind": func(h *harness, _ *streamRecorder) {
			h.host.mu.Lock()
			defer h.host.mu.Unlock()
			for ch := range h.host.listeners {
				h.host.cut(ch)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t)
				rec, hangUp, done := h.stream(t, "/v1/events", "")
				defer hangUp()
				end(h, rec)
				<-done
				synctest.Wait()
				if n := len(h.host.listeners) + len(h.streams); n != 0 {
					t.Errorf("%d listeners and slots are left", n)
				}
			})
		})
	}
}

func TestTooManyStreams(t *testing.T) {
	h := newHarness(t)
	running, _, done := h.addOps()
	for range maxStreams {
		h.streams <- struct{}{}
	}
	for _, target := range []string{"/v1/events", "/v1/backup", "/v1/operations/" + running + "/wait"} {
		if a := h.get(t, target); a.status != 429 || a.header.Get("Retry-After") != "1" || a.problem(t).Code != "unavailable" {
			t.Errorf("%s: %d %s", target, a.status, a.body)
		}
	}
	if a := h.get(t, "/v1/operations/"+done+"/wait"); a.status != 200 {
		t.Errorf("no wait is needed: %d", a.status)
	}
}

func TestWait(t *testing.T) {
	for name, tc := range map[string]struct {
		query  string
		after  time.Duration // when it changes
		to     operation.Status
		took   time.Duration
		status string
	}{
		"done meanwhile":     {"", 5 * time.Second, operation.Done, 5 * time.Second, "done"},
		"a person must act":  {"?timeout=1m", 5 * time.Second, operation.Waiting, 5 * time.Second, "waiting"},
		"default timeout":    {"", time.Hour, operation.Done, defaultWait, "running"},
		"longest timeout":    {"?timeout=10m", time.Hour, operation.Done, maxWait, "running"},
		"own timeout":        {"?timeout=1m30s", time.Hour, operation.Done, 90 * time.Second, "running"},
		"no wait":            {"?timeout=0", time.Hour, operation.Done, 0, "running"},
		"change, not an end": {"?timeout=10s", 5 * time.Second, operation.Undoing, 10 * time.Second, "undoing"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t)
				id, _, _ := h.addOps()
				time.AfterFunc(tc.after, func() { h.host.ops.set(id, tc.to) })
				begin := time.Now()
				a := h.get(t, "/v1/operations/"+id+"/wait"+tc.query)
				if op := decodeStrictly[api.Operation](t, a.body); a.status != 200 || op.Status != tc.status {
					t.Errorf("got %d %s", a.status, a.body)
				}
				if took := time.Since(begin); took != tc.took {
					t.Errorf("took %v, want %v", took, tc.took)
				}
			})
		})
	}
}

// A wait ends with the server, and with its client.
func TestWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		id, _, _ := h.addOps()
		time.AfterFunc(time.Second, func() { close(h.closing) })
		if a := h.get(t, "/v1/operations/"+id+"/wait"); a.status != 200 || !strings.Contains(a.body, "running") {
			t.Errorf("server ends: %d %s", a.status, a.body)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		id, _, _ := h.addOps()
		rec, hangUp, done := h.stream(t, "/v1/operations/"+id+"/wait", "")
		hangUp()
		<-done
		if got := rec.take(); got != "" || !strings.Contains(h.log.String(), `"status":499`) {
			t.Errorf("client has gone: wrote %q, log %s", got, h.log)
		}
	})
}
