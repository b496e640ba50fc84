//go:build lab

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"gpuvirt/api"
)

// A reply is what the daemon answered.
type reply struct {
	what   string // method and path, for messages
	status int
	header http.Header
	body   []byte
}

// try sends one request; body is marshalled unless it is a string or nil.
func try(ctx context.Context, method, path string, body any) (reply, error) {
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return reply{}, err
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, r)
	if err != nil {
		return reply{}, err
	}
	if r != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := hypervisor.HTTP().Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return reply{method + " " + path, resp.StatusCode, resp.Header, data}, err
}

// call sends one request and fails the test where there is no answer.
func call(ctx context.Context, t *testing.T, method, path string, body any) reply {
	t.Helper()
	r, err := try(ctx, method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (r reply) want(t *testing.T, status int) reply {
	t.Helper()
	if r.status != status {
		t.Fatalf("%s: %d, want %d: %s", r.what, r.status, status, r.body)
	}
	return r
}

// problem checks that the reply is a refusal of that kind and returns it.
func (r reply) problem(t *testing.T, status int, code string) api.Problem {
	t.Helper()
	r.want(t, status)
	p := decode[api.Problem](t, r)
	if p.Code != code || !strings.HasPrefix(r.header.Get("Content-Type"), api.ContentTypeProblem) || p.Detail == "" {
		t.Fatalf("%s: %s %+v, want a problem %q", r.what, r.header.Get("Content-Type"), p, code)
	}
	return p
}

func decode[T any](t *testing.T, r reply) T {
	t.Helper()
	var v T
	d := json.NewDecoder(bytes.NewReader(r.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v: %s", r.what, err, r.body)
	}
	return v
}

// get reads one object.
func get[T any](ctx context.Context, t *testing.T, path string) T {
	t.Helper()
	return decode[T](t, call(ctx, t, http.MethodGet, path, nil).want(t, http.StatusOK))
}

// list reads a whole list.
func list[T any](ctx context.Context, t *testing.T, path string) []T {
	t.Helper()
	return get[api.List[T]](ctx, t, path).Items
}

// ended waits for the operation that a reply started and returns how it ended.
func ended(ctx context.Context, t *testing.T, r reply) api.Operation {
	t.Helper()
	r.want(t, http.StatusAccepted)
	location := r.header.Get("Location")
	if location == "" {
		t.Fatalf("%s: 202 without Location", r.what)
	}
	for {
		op := get[api.Operation](ctx, t, location+"/wait?timeout=60s")
		switch op.Status {
		case "done", "undone", "failed", "waiting":
			return op
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: operation %s is still %s", r.what, op.ID, op.Status)
		}
	}
}

// done waits for the operation that a reply started and wants it carried out.
func done(ctx context.Context, t *testing.T, r reply) api.Operation {
	t.Helper()
	op := ended(ctx, t, r)
	if op.Status != "done" {
		t.Fatalf("%s: operation ended %s: %+v", r.what, op.Status, op.Problem)
	}
	return op
}

// manage puts gpus under management.
func manage(ctx context.Context, t *testing.T, gpus ...string) {
	t.Helper()
	for _, g := range gpus {
		call(ctx, t, http.MethodPatch, "/v1/gpus/"+g, `{"managed":true}`).want(t, http.StatusOK)
	}
}

// attach puts an assignment and waits until it is carried out.
func attach(ctx context.Context, t *testing.T, name, vm, profile string) api.Assignment {
	t.Helper()
	done(ctx, t, call(ctx, t, http.MethodPut, "/v1/assignments/"+name, api.AssignmentRequest{VM: vm, Profile: profile}))
	return get[api.Assignment](ctx, t, "/v1/assignments/"+name)
}

// detach deletes an assignment and waits until it is gone.
func detach(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	done(ctx, t, call(ctx, t, http.MethodDelete, "/v1/assignments/"+name, nil))
	call(ctx, t, http.MethodGet, "/v1/assignments/"+name, nil).problem(t, http.StatusNotFound, "not-found")
}
