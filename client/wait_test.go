package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
	"gpuvirt/client"
)

func TestWaitOperation(t *testing.T) {
	answers := []func(w http.ResponseWriter){
		func(w http.ResponseWriter) { reply(w, 200, api.Operation{ID: "o", Status: "running"}) },
		func(w http.ResponseWriter) { reply(w, 503, &api.Problem{Status: 503, Detail: "starting"}) },
		func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		func(w http.ResponseWriter) { reply(w, 200, api.Operation{ID: "o", Status: "undoing"}) },
		func(w http.ResponseWriter) { reply(w, 200, api.Operation{ID: "o", Status: "undone"}) },
	}
	var n atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/operations/o/wait" || r.FormValue("timeout") != "300ms" {
			t.Errorf("got %s", r.RequestURI)
		}
		answers[n.Add(1)-1](w)
	})
	var seen []string
	op, err := c.WaitOperation(t.Context(), "o", func(op api.Operation) { seen = append(seen, op.Status) })
	if err != nil || op.Status != "undone" {
		t.Fatalf("got %v, %v", op, err)
	}
	if diff := cmp.Diff([]string{"running", "undoing", "undone"}, seen); diff != "" {
		t.Error(diff)
	}
}

func TestWaitOperationFails(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 404, &api.Problem{Status: 404, Detail: "no such operation"})
	})
	if _, err := c.WaitOperation(t.Context(), "o", nil); err == nil {
		t.Error("an operation was found")
	}
	c = serve(t, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, api.Operation{ID: "o", Status: "running"})
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	op, err := c.WaitOperation(ctx, "o", func(api.Operation) { cancel() })
	if !errors.Is(err, context.Canceled) || op.Status != "running" {
		t.Errorf("got %v, %v", op, err)
	}
}

// A copy takes hours: a daemon that restarts meanwhile is no end of it, and one that does not know the
// migration is.
func TestWaitMigration(t *testing.T) {
	answers := []func(w http.ResponseWriter){
		func(w http.ResponseWriter) { reply(w, 200, api.Migration{Name: "m", Phase: "syncing"}) },
		func(w http.ResponseWriter) { reply(w, 503, &api.Problem{Status: 503, Detail: "starting"}) },
		func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		func(w http.ResponseWriter) { reply(w, 200, api.Migration{Name: "m", Phase: "ready"}) },
		func(w http.ResponseWriter) { reply(w, 404, &api.Problem{Status: 404, Detail: "no such migration"}) },
	}
	var n atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/migrations/m" {
			t.Errorf("got %s", r.RequestURI)
		}
		answers[n.Add(1)-1](w)
	})
	var seen []string
	ready := func(m api.Migration) bool {
		seen = append(seen, m.Phase)
		return m.Phase == "ready"
	}
	if m, err := c.WaitMigration(t.Context(), "m", ready); err != nil || m.Phase != "ready" {
		t.Fatalf("got %v, %v", m, err)
	}
	if diff := cmp.Diff([]string{"syncing", "ready"}, seen); diff != "" {
		t.Error(diff)
	}
	if _, err := c.WaitMigration(t.Context(), "m", ready); err == nil {
		t.Error("a migration was found")
	}
}

// The daemon is away for a while, and another one comes at its socket.
func TestWaitOverRestart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	c := client.New(client.Options{Socket: socket, Patience: 10 * time.Second})
	defer c.Close()
	asked := make(chan struct{}, 10)
	first := serveOn(t, socket, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	result := make(chan error, 1)
	go func() {
		op, err := c.WaitOperation(t.Context(), "o", nil)
		if err == nil && op.Status != "done" {
			err = fmt.Errorf("got %v", op)
		}
		result <- err
	}()
	<-asked
	_ = first.Listener.Close() // nobody comes back to it
	first.CloseClientConnections()
	first.Close()
	serveOn(t, socket, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, api.Operation{ID: "o", Status: "done"})
	})
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestWaitReady(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	c := client.New(client.Options{Socket: socket})
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.WaitReady(ctx); err == nil {
		t.Error("no daemon is ready")
	}
	result := make(chan error, 1)
	go func() {
		_, err := c.WaitReady(t.Context())
		result <- err
	}()
	var n atomic.Int32
	serveOn(t, socket, func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) < 3 {
			reply(w, 503, api.Health{Status: "not-ready"})
			return
		}
		reply(w, 200, api.Health{Status: "ok"})
	})
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestEvents(t *testing.T) {
	streams := []string{
		": hello\n\nid: 1\nevent: gpu.changed\ndata: {\"type\":\"gpu.changed\",\ndata: \"object\":\"g\"}\n\nid: 2\ndata: {\"type\":\"cut\"",
		"id: 2\ndata: {\"type\":\"vm.lifecycle\",\"object\":\"web1\"}\n\nid: 3\r\ndata: {\"type\":\"last\"}\r\n\r\ndata: {\"type\":\"reset\"}\n\n",
	}
	var after []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		after = append(after, r.Header.Get("Last-Event-ID"))
		if len(after) > len(streams) {
			reply(w, 410, &api.Problem{Status: 410, Detail: "gone"})
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, streams[len(after)-1])
	})
	var got []string
	var last error
	for e, err := range c.Events(t.Context(), "0") {
		if last = err; err != nil {
			break
		}
		got = append(got, e.ID+" "+e.Type+" "+e.Object)
	}
	if diff := cmp.Diff([]string{"1 gpu.changed g", "2 vm.lifecycle web1", "3 last ", " reset "}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"0", "1", "3"}, after); diff != "" {
		t.Error(diff)
	}
	if p, ok := errors.AsType[*api.Problem](last); !ok || p.Status != 410 {
		t.Errorf("got %v", last)
	}
	after = nil
	for _, err := range c.Events(t.Context(), "") {
		if err != nil {
			t.Error(err)
		}
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range c.Events(ctx, "") {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
}

// A daemon that was never there is not waited for.
func TestEventsUnreachable(t *testing.T) {
	c := client.New(client.Options{Socket: filepath.Join(t.TempDir(), "s")})
	for _, err := range c.Events(t.Context(), "") {
		if _, ok := errors.AsType[*client.UnreachableError](err); !ok {
			t.Errorf("got %v", err)
		}
	}
}
