package daemon

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"gpuvirt/gpu"
)

// A recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// Unwrap lets http.ResponseController find the real writer.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// logRequest writes the access log: writes are kept, reads are for debugging.
func (s *Server) logRequest(q *request, status int, bytes int64, took time.Duration) {
	r, who := q.Request, q.who
	level := slog.LevelInfo
	if q.muted || r.Method == http.MethodGet || r.Method == http.MethodHead {
		level = slog.LevelDebug
	}
	s.log.LogAttrs(context.WithoutCancel(r.Context()), level, "request",
		slog.String("method", shorten(r.Method)), slog.String("path", shorten(r.URL.EscapedPath())),
		slog.Bool("dry_run", r.URL.Query().Get("dry_run") == "true"),
		slog.Int("status", status), slog.Int64("bytes", bytes), slog.Duration("took", took),
		slog.String("actor", who.Actor), slog.String("from", who.From), slog.String("token", who.Token))
}

// logDenied writes a security event.
func (s *Server) logDenied(r *http.Request, who Identity, needs Role) {
	s.log.LogAttrs(r.Context(), slog.LevelWarn, "access denied",
		slog.Group("security",
			slog.String("event", "access-denied"),
			slog.String("actor", who.Actor), slog.Uint64("uid", uint64(who.UID)), slog.Int("pid", int(who.PID)),
			slog.String("from", who.From), slog.String("token", who.Token), slog.String("role", who.Role.String()), slog.String("needs", needs.String()),
			slog.String("method", shorten(r.Method)), slog.String("path", shorten(r.URL.EscapedPath()))))
}

// logToken writes a security event about a token.
func (s *Server) logToken(q *request, event string, t gpu.Token) {
	s.log.LogAttrs(q.Context(), slog.LevelWarn, "the tokens change",
		slog.Group("security",
			slog.String("event", event), slog.String("actor", q.who.Actor), slog.String("from", q.who.From),
			slog.String("token", t.ID), slog.String("name", t.Name), slog.String("role", t.Role), slog.Time("expires", t.Expires)))
}

// logFailed writes that somebody could not say who it is. The error holds nothing secret.
func (s *Server) logFailed(r *http.Request, from string, err error) {
	s.log.LogAttrs(r.Context(), slog.LevelWarn, "authentication failed",
		slog.Group("security",
			slog.String("event", "authentication-failed"), slog.String("from", from), slog.String("reason", err.Error()),
			slog.String("method", shorten(r.Method)), slog.String("path", shorten(r.URL.EscapedPath()))))
}
