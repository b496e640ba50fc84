package daemon

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"gpuvirt/api"
	"gpuvirt/operation"
)

// The media types of responses.
const (
	mediaJSON   = "application/json"
	mediaYAML   = "application/yaml"
	mediaEvents = "text/event-stream"
	mediaBinary = "application/octet-stream"
	mediaText   = "text/plain"
)

// A response is what a handler wants to answer.
type response struct {
	status  int // 0: 200
	header  http.Header
	body    any    // becomes JSON
	raw     []byte // instead of body, in the route's media type
	etag    bool   // the body is one object as it stands
	of      any    // what the ETag is of, where the body has what changes by itself, too; nil: of the body
	problem bool
	// stream writes the response itself, instead of body. An error before the first
	// byte becomes a problem.
	stream func(w http.ResponseWriter) error
}

func ok(v any) response { return response{body: v} }

// object answers with one object, whose ETag can be used for preconditions.
func object(v any) response { return response{body: v, etag: true} }

// accepted answers with an operation that was started.
func accepted(op operation.Operation) response {
	return response{
		status: http.StatusAccepted,
		header: http.Header{"Location": {"/v1/operations/" + op.ID}},
		body:   operationOf(op),
	}
}

// encode writes v as JSON, always in the same way.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// etagOf is a strong validator: other bytes have another one.
func etagOf(body []byte) string {
	sum := sha256.Sum256(body)
	return `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`
}

// write sends a response that is no stream.
func (s *Server) write(w *recorder, q *request, res response) {
	media := mediaJSON
	body := res.raw
	switch {
	case res.problem:
		media = api.ContentTypeProblem
	case body != nil:
		media = q.route.mediaType()
	}
	if body == nil {
		var err error
		if body, err = encode(res.body); err != nil {
			s.log.Error("cannot encode a response", "path", shorten(q.URL.EscapedPath()), "err", err)
			res, media = response{status: http.StatusInternalServerError}, api.ContentTypeProblem
			body, _ = encode(problemOf(err)) // strings and numbers
		}
	}

	h := w.Header()
	maps.Copy(h, res.header)
	h.Set("Content-Type", media)
	if media == mediaText {
		h.Set("Content-Type", mediaText+"; version=0.0.4; charset=utf-8") // the version of Prometheus' format
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	status := res.status
	if status == 0 {
		status = http.StatusOK
	}
	if res.etag {
		etag := etagOf(body)
		if res.of != nil {
			still, _ := encode(res.of) // as the body could be, which has more
			etag = etagOf(still)
		}
		h.Set("ETag", etag)
		if q.reads() && res.of == nil && q.unchanged(etag) {
			h.Del("Content-Type")
			status, body = http.StatusNotModified, nil
		}
	}
	_ = q.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every connection of a test has deadlines
	w.WriteHeader(status)
	if len(body) > 0 && q.Method != http.MethodHead {
		_, _ = w.Write(body) // the client has gone
	}
}

func (q *request) reads() bool {
	return slices.Contains([]string{http.MethodGet, http.MethodHead}, q.Method)
}
