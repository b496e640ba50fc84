package daemon

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"gpuvirt/api"
)

// Requests of many at a time are served without a race.
func TestConcurrent(t *testing.T) {
	h, stop := serve(t, nil)
	running, failed, done := h.addOps()
	c := h.client(t)
	c.Transport.(*http.Transport).MaxIdleConnsPerHost = 8 //nolint:errcheck // see over
	results := make(chan string, 8)
	for range cap(results) {
		go func() {
			for _, rq := range goodRequests(running, failed, done) {
				r, err := http.NewRequest(rq.method, "http://gpuvirt"+rq.target, strings.NewReader(rq.body))
				if err != nil {
					results <- err.Error()
					return
				}
				if rq.body != "" {
					r.Header.Set("Content-Type", "application/json")
				}
				res, err := c.Do(r)
				if err != nil {
					results <- err.Error()
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.StatusCode >= 500 && res.StatusCode != 507 {
					results <- rq.method + " " + rq.target + ": " + res.Status
					return
				}
			}
			results <- ""
		}()
	}
	for range cap(results) {
		if r := <-results; r != "" {
			t.Error(r)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// FuzzPutAssignment: no body is answered with a failure of the server, and none
// that is refused writes.
func FuzzPutAssignment(f *testing.F) {
	for _, b := range badBodies() {
		f.Add("web1", b[0])
	}
	f.Add("web1", wish)
	f.Add("a b", `{"vm":"w","profile":"p","gpu":"0000:41:00.0","placement":"spread","hotplug":"never","display":true}`)
	f.Fuzz(func(t *testing.T, name, body string) {
		h := newHarness(t)
		r := call{method: "PUT", target: "/v1/assignments/x", body: body}.request(t)
		if body == "" {
			r.Header.Set("Content-Type", mediaJSON)
		}
		r.URL.Path, r.URL.RawPath = "/v1/assignments/"+name, ""
		rec := &streamRecorder{header: http.Header{}}
		h.serveHTTP(rec, r)
		text := rec.take()
		switch {
		case rec.status == 202:
			if op := decodeStrictly[api.Operation](t, text); h.host.writes != 1 || op.ID == "" {
				t.Errorf("%d writes", h.host.writes)
			}
		case rec.status >= 400 && rec.status < 500:
			answer{rec.status, rec.header, text}.problem(t)
			fallthrough
		default:
			if rec.status != 200 && rec.status >= 500 || h.host.writes != 0 {
				t.Errorf("status %d, %d writes: %s", rec.status, h.host.writes, text)
			}
		}
	})
}
