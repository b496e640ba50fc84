package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"gpuvirt/api"
)

// document loads openapi.yaml once.
var document = sync.OnceValues(func() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI)
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(context.Background())
})

var documentRouter = sync.OnceValues(func() (routers.Router, error) {
	doc, err := document()
	if err != nil {
		return nil, err
	}
	return gorillamux.NewRouter(doc)
})

func loadDocument(t testing.TB) *openapi3.T {
	t.Helper()
	doc, err := document()
	if err != nil {
		t.Fatalf("openapi.yaml: %v", err)
	}
	return doc
}

// harness is a server over a fake host, all of whose traffic is checked against
// openapi.yaml.
type harness struct {
	*Server
	host   *fakeHost
	moves  *fakeMigrations
	kept   *tokenStore
	log    *syncBuffer
	exited []int
}

func newHarness(t testing.TB) *harness {
	h := &harness{host: newFakeHost(t), kept: &tokenStore{}, log: &syncBuffer{}}
	assessments := &fakeAssessments{host: h.host, inspection: exampleInspection(t)}
	h.moves = &fakeMigrations{fakeAssessments: assessments}
	h.moves.copied.Store(1 << 29)
	h.Server = New(Config{
		Host: h.host, Operations: h.host.ops, Version: "v0", Tokens: newTokens(t, h.kept), Assessments: assessments, Migrations: h.moves,
		Metrics: func(_ context.Context, w io.Writer) error {
			if h.host.err != nil {
				return h.host.err
			}
			_, err := io.WriteString(w, "gpuvirt_gpu_ready 1\n")
			return err
		},
		Log: slog.New(slog.NewJSONHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Settings: func() api.Settings {
			return api.Settings{Files: []string{"/etc/gpuvirt/gpuvirtd.yaml"}, Items: []api.Setting{
				{Key: "log.level", Description: "How much is told.", Values: []string{"info"}, Reload: true},
				{Key: "pci_gpus", Values: []string{}, AfterRestart: []string{"1b36:0010"}, Origin: "command line"},
			}}
		},
		Exit: func(code int) { h.exited = append(h.exited, code) },
	})
	return h
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var admin = Identity{Actor: "root", Role: Admin}

// A call is a request of a test.
type call struct {
	method, target, body string
	header               http.Header
	who                  *Identity // nil: admin
	bad                  bool      // the request is not as openapi.yaml wants it
}

// An answer is a response, read.
type answer struct {
	status int
	header http.Header
	body   string
}

// problem decodes an answer that must be one.
func (a answer) problem(t testing.TB) api.Problem {
	t.Helper()
	if got := a.header.Get("Content-Type"); got != api.ContentTypeProblem {
		t.Fatalf("status %d, Content-Type %q, want a problem: %s", a.status, got, a.body)
	}
	p := decodeStrictly[api.Problem](t, a.body)
	if p.Status != a.status || p.Code == "" || p.Detail == "" || p.Title == "" || p.Blockers == nil || p.Type != "urn:gpuvirt:problem:"+p.Code {
		t.Fatalf("problem lacks something: %s", a.body)
	}
	return p
}

func decodeStrictly[T any](t testing.TB, body string) T {
	t.Helper()
	var v T
	dec := json.NewDecoder(strings.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("cannot decode %q as %T: %v", body, v, err)
	}
	return v
}

func (c call) request(t testing.TB) *http.Request {
	t.Helper()
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	ctx := t.Context()
	switch {
	case c.who == nil:
		ctx = WithIdentity(ctx, admin)
	case c.who.Actor != "":
		ctx = WithIdentity(ctx, *c.who)
	}
	r, err := http.NewRequestWithContext(ctx, c.method, "http://gpuvirt"+c.target, body)
	if err != nil {
		t.Fatal(err)
	}
	if c.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for k, v := range c.header {
		r.Header[k] = v
	}
	if body == nil {
		r.Body = http.NoBody // as a server has it
	}
	return r
}

// do sends a call through the handler and checks both ways.
func (h *harness) do(t testing.TB, c call) answer {
	t.Helper()
	r := c.request(t)
	input := findInDocument(t, r)
	if !c.bad {
		checkRequest(t, c, input)
	}
	rec := httptest.NewRecorder()
	h.serveHTTP(rec, r)
	a := answer{status: rec.Code, header: rec.Result().Header, body: rec.Body.String()}
	checkResponse(t, c, input, a)
	return a
}

func (h *harness) get(t testing.TB, target string) answer {
	t.Helper()
	return h.do(t, call{method: http.MethodGet, target: target})
}

// findInDocument finds a request's path in openapi.yaml; nil if it is not there.
func findInDocument(t testing.TB, r *http.Request) *openapi3filter.RequestValidationInput {
	t.Helper()
	router, err := documentRouter()
	if err != nil {
		t.Fatal(err)
	}
	find := r.Clone(r.Context())
	if find.Method == http.MethodHead {
		find.Method = http.MethodGet
	}
	route, params, err := router.FindRoute(find)
	if err != nil {
		return nil
	}
	for name, escaped := range params {
		if params[name], err = url.PathUnescape(escaped); err != nil {
			t.Fatal(err)
		}
	}
	return &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true, RejectWhenRequestBodyNotSpecified: true, SkipSettingDefaults: true},
	}
}

func checkRequest(t testing.TB, c call, input *openapi3filter.RequestValidationInput) {
	t.Helper()
	if input == nil {
		t.Errorf("%s %s is not in openapi.yaml", c.method, c.target)
		return
	}
	if err := openapi3filter.ValidateRequest(t.Context(), input); err != nil {
		t.Errorf("%s %s: the request is not as openapi.yaml says: %v", c.method, c.target, err)
	}
}

var seenProblems sync.Map

func checkResponse(t testing.TB, c call, input *openapi3filter.RequestValidationInput, a answer) {
	t.Helper()
	if a.status >= 400 && c.method != http.MethodHead && !strings.Contains(a.header.Get("Content-Type"), "json") {
		t.Errorf("%s %s: status %d without a problem: %s", c.method, c.target, a.status, a.body)
	}
	if input == nil {
		if a.status < 400 || a.status >= 500 {
			t.Errorf("%s %s is not in openapi.yaml, but answers %d", c.method, c.target, a.status)
		}
		return
	}
	options := *input.Options
	if media := a.header.Get("Content-Type"); !strings.HasSuffix(media, "json") {
		options.ExcludeResponseBody = true
		if content := input.Route.Operation.Responses.Status(a.status); a.status == http.StatusOK && content.Value.Content.Get(media) == nil {
			t.Errorf("%s %s: media type %q is not in openapi.yaml", c.method, c.target, media)
		}
	}
	if a.status >= 400 {
		// Compiling the schema anew for each of thousands of problems takes minutes:
		// once for each place is enough.
		place := fmt.Sprint(input.Route.Method, input.Route.Path, a.status, c.bad)
		if _, seen := seenProblems.LoadOrStore(place, true); seen && strings.HasSuffix(a.header.Get("Content-Type"), "problem+json") {
			return
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: input, Status: a.status, Header: a.header, Options: &options}
	out.SetBodyBytes([]byte(a.body))
	if err := openapi3filter.ValidateResponse(t.Context(), out); err != nil {
		t.Errorf("%s %s: the response %d is not as openapi.yaml says: %v", c.method, c.target, a.status, err)
	}
}
