package daemon

import (
	"context"
	"log/slog"
	"net/http"
	"time"
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
func (s *Server) logRequest(r *http.Request, who Identity, status int, bytes int64, took time.Duration) {
	level := slog.LevelInfo
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		level = slog.LevelDebug
	}
	s.log.LogAttrs(context.WithoutCancel(r.Context()), level, "request",
		slog.String("method", shorten(r.Method)), slog.String("path", shorten(r.URL.EscapedPath())),
		slog.Bool("dry_run", r.URL.Query().Get("dry_run") == "true"),
		slog.Int("status", status), slog.Int64("bytes", bytes), slog.Duration("took", took),
		slog.String("actor", who.Actor))
}

// logDenied writes a security event.
func (s *Server) logDenied(r *http.Request, who Identity, needs Role) {
	s.log.LogAttrs(r.Context(), slog.LevelWarn, "access denied",
		slog.Group("security",
			slog.String("event", "access-denied"),
			slog.String("actor", who.Actor), slog.Uint64("uid", uint64(who.UID)), slog.Int("pid", int(who.PID)),
			slog.String("role", who.Role.String()), slog.String("needs", needs.String()),
			slog.String("method", shorten(r.Method)), slog.String("path", shorten(r.URL.EscapedPath()))))
}
