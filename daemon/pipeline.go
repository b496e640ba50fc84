package daemon

import (
	"errors"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"gpuvirt/gpu"
)

// A resource is a path with what may be done there.
type resource struct {
	methods map[string]route
	allow   string
}

func (s *Server) addRoutes(table []route) {
	s.resources = map[string]*resource{}
	// The path is matched as it was sent, so that a name may hold any character;
	// nothing is cleaned, so nothing is ever redirected.
	s.router = mux.NewRouter().UseEncodedPath().SkipClean(true)
	for _, rt := range table {
		re := s.resources[rt.path]
		if re == nil {
			re = &resource{methods: map[string]route{}}
			s.resources[rt.path] = re
			s.router.Path(rt.path).Name(rt.path)
		}
		re.methods[rt.method] = rt
		if rt.method == http.MethodGet && !rt.streams() {
			re.methods[http.MethodHead] = rt
		}
		allow := make([]string, 0, len(re.methods))
		for m := range re.methods {
			allow = append(allow, m)
		}
		slices.Sort(allow)
		re.allow = strings.Join(allow, ", ")
	}
}

// serveHTTP is the way of every request.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.gate.enter() {
		panic(http.ErrAbortHandler) // the server has ended
	}
	defer s.gate.leave()
	begin := time.Now()
	rec := &recorder{ResponseWriter: w}
	q := &request{Request: r, writer: w, control: http.NewResponseController(w)}
	defer func() {
		if v := recover(); v != nil {
			s.panicked(rec, q, v)
		}
		s.logRequest(q, rec.status, rec.bytes, time.Since(begin))
	}()

	res, err := s.respond(q)
	if err == nil && res.stream != nil {
		err = res.stream(rec)
		if err != nil && rec.status != 0 {
			// Half of a stream is out: the client must see that it was cut off.
			s.log.Warn("cannot finish a stream", "path", shorten(r.URL.EscapedPath()), "err", err)
			panic(http.ErrAbortHandler)
		}
		if err == nil {
			return
		}
	}
	if err != nil && clientGone(r.Context(), err) {
		rec.status = statusClientGone
		return
	}
	if err != nil {
		switch {
		case !q.stranger:
			q.drain()
		case q.ContentLength != 0:
			// No body is read of who is not known; but what is under way is waited for a
			// little, as a connection that is cut off may take the answer with it.
			w.Header().Set("Connection", "close")
			q.setReadDeadline(strangerTimeout)
		}
		res = s.problemResponse(q, err)
	}
	s.write(rec, q, res)
}

// respond takes a request through all checks to its handler.
func (s *Server) respond(q *request) (response, error) {
	if err := s.authenticate(q); err != nil {
		return response{}, err
	}
	rt, vars, err := s.match(q)
	if err != nil {
		return response{}, err
	}
	q.route = rt
	if err := s.admit(q); err != nil {
		return response{}, err
	}
	if !accepts(q.Header.Values("Accept"), rt.mediaType()) {
		return response{}, notAcceptable(rt.mediaType())
	}
	if err := q.parsePath(vars); err != nil {
		return response{}, err
	}
	if err := q.parseQuery(); err != nil {
		return response{}, err
	}
	if err := q.parseConditions(); err != nil {
		return response{}, err
	}
	if err := q.readBody(); err != nil {
		return response{}, err
	}
	if rt.replaces() && !q.dryRun() {
		// A precondition holds until the write is done only if nobody else writes.
		unlock, err := s.locks.lock(q.Context(), rt.path+"\x00"+strings.Join(q.objects(), "\x00"))
		if err != nil {
			return response{}, err
		}
		defer unlock()
	}
	if rt.body || rt.replaces() {
		// All of that may have taken its time, and who asks may not be let in any more.
		if err := s.authenticate(q); err != nil {
			return response{}, err
		}
		if err := s.admit(q); err != nil {
			return response{}, err
		}
	}
	return rt.handle(s, q)
}

// match finds the route of a request. Who is unknown learns nothing from the
// difference between a path and a method that do not exist, and over the network nothing
// at all: authenticate comes first.
func (s *Server) match(q *request) (route, map[string]string, error) {
	var m mux.RouteMatch
	if !s.router.Match(q.Request, &m) || m.Route == nil {
		return route{}, nil, gpu.Errorf(gpu.CodeNotFound, "there is nothing at %s", quote(q.URL.EscapedPath())).
			WithHint("see /v1/openapi.yaml")
	}
	re := s.resources[m.Route.GetName()]
	rt, ok := re.methods[q.Method]
	if !ok {
		return route{}, nil, methodNotAllowed(q.Method, re.allow)
	}
	return rt, m.Vars, nil
}

// admit lets a request pass if its sender may do what it asks.
func (s *Server) admit(q *request) error {
	needs := q.route.access
	if q.who.Role >= needs {
		return nil
	}
	if from, remote := q.Context().Value(networkKey{}).(netip.Addr); remote {
		_, q.muted = s.network.failures.Add(from, time.Now())
	}
	if !q.muted {
		s.logDenied(q.Request, q.who, needs)
	}
	if q.who.Actor == "" {
		return unauthorized(gpu.Errorf(gpu.CodeUnauthorized, "cannot tell who asks").
			WithHint("use the unix socket of gpuvirtd"))
	}
	err := gpu.Errorf(gpu.CodeForbidden, "%s may not do this: it takes the role %s, not %s", q.who.Actor, needs, q.who.Role)
	if q.who.Role == Nobody {
		err = err.WithHint("on the host tls.viewers, tls.operators or tls.admins of gpuvirtd.yaml says which certificates are let in")
	}
	return err
}

// panicked ends the process: the handler may hold a lock that nobody would ever
// give back. Operations are persisted and go on after the restart.
func (s *Server) panicked(w *recorder, q *request, v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	s.log.Error("panic in a handler: ending", "method", q.Method, "path", shorten(q.URL.EscapedPath()),
		"panic", v, "stack", string(debug.Stack()))
	if w.status == 0 {
		s.write(w, q, s.problemResponse(q, errors.New("panic")))
		_ = q.control.Flush() // best effort
	}
	s.exit(2)
}

// problemResponse answers with an error.
func (s *Server) problemResponse(q *request, err error) response {
	p := problemOf(err)
	if p.Code == string(gpu.CodeInternal) {
		s.log.Error("request failed", "method", q.Method, "path", shorten(q.URL.EscapedPath()), "actor", q.who.Actor, "err", err)
	}
	return response{status: p.Status, header: headersOf(err, p), body: p, problem: true}
}
