package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"gpuvirt/api"
	"gpuvirt/gpu"
)

// info is what the host says, and what is wrong with serving it.
func (s *Server) info(ctx context.Context) gpu.HostInfo {
	info := s.host.Info(ctx)
	problems := s.network.problems()
	if s.migrations != nil {
		problems = append(problems, s.migrations.Problems(ctx)...)
	}
	if len(problems) > 0 {
		info.Reasons = append(slices.Clone(info.Reasons), problems...)
		if info.State == gpu.HostReady {
			info.State = gpu.HostDegraded
		}
	}
	return info
}

func getInfo(s *Server, q *request) (response, error) {
	return object(infoOf(s.info(q.Context()), s.version)), nil
}

func getOpenAPI(_ *Server, _ *request) (response, error) {
	return response{raw: api.OpenAPI}, nil
}

// getLive answers as long as the daemon can answer at all.
func getLive(_ *Server, _ *request) (response, error) {
	return ok(api.Health{Status: "ok", Reasons: []string{}}), nil
}

// getReady tells whether requests can be served: a degraded host still can.
func getReady(s *Server, q *request) (response, error) {
	info := s.info(q.Context())
	if q.who.Role < Viewer { // it learns whether, and not why
		info.Reasons = nil
	}
	switch info.State {
	case gpu.HostReady, gpu.HostDegraded:
		return ok(api.Health{Status: "ok", Reasons: list(info.Reasons)}), nil
	case gpu.HostStarting, gpu.HostRestoring:
	}
	reasons := append([]string{fmt.Sprintf("the daemon is %s", info.State)}, info.Reasons...)
	return response{status: http.StatusServiceUnavailable, body: api.Health{Status: "not-ready", Reasons: reasons}}, nil
}

// getConfig tells the configuration that holds, as opposed to what files say by now.
func getConfig(s *Server, _ *request) (response, error) { return object(s.settings()), nil }

// getMetrics writes what Prometheus reads. It is made whole before the first byte: half of
// it would look like a host that has lost GPUs.
func getMetrics(s *Server, q *request) (response, error) {
	var text bytes.Buffer
	if s.metrics != nil {
		if err := s.metrics(q.Context(), &text); err != nil {
			return response{}, err
		}
	}
	return response{raw: append([]byte{}, text.Bytes()...)}, nil
}

func getBackup(s *Server, q *request) (response, error) {
	release, err := s.takeStream(q)
	if err != nil {
		return response{}, err
	}
	return response{stream: func(w http.ResponseWriter) error {
		defer release()
		name := "gpuvirt-" + time.Now().UTC().Format("20060102T150405Z") + ".db"
		b := &backupWriter{w: w, control: q.control, name: name}
		ctx, cancel := context.WithCancel(q.Context())
		defer cancel()
		stop := s.untilOver(q, cancel)
		defer stop()
		if err := s.host.Backup(ctx, b); err != nil {
			return errors.Join(err, q.who.over())
		}
		b.begin() // an empty one, too
		return nil
	}}, nil
}

// A backupWriter sends what it is given, in time or not at all: the store must
// not wait for a client that does not read.
type backupWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	name    string
	begun   bool
}

func (b *backupWriter) begin() {
	if b.begun {
		return
	}
	b.begun = true
	h := b.w.Header()
	h.Set("Content-Type", mediaBinary)
	h.Set("Content-Disposition", `attachment; filename="`+b.name+`"`)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	b.w.WriteHeader(http.StatusOK)
}

func (b *backupWriter) Write(p []byte) (int, error) {
	b.begin()
	_ = b.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every connection of a test has deadlines
	return b.w.Write(p)
}

// takeStream takes one of the slots for long requests. Over the network nobody takes so many
// of them that none are left for others.
func (s *Server) takeStream(q *request) (release func(), err error) {
	if q.who.From != "" && !s.network.beginStream(q.who.Actor) {
		return nil, tooManyStreams(maxStreamsOf)
	}
	end := func() {
		if q.who.From != "" {
			s.network.endStream(q.who.Actor)
		}
	}
	select {
	case s.streams <- struct{}{}:
		return func() { <-s.streams; end() }, nil
	default:
		end()
		return nil, tooManyStreams(maxStreams)
	}
}
