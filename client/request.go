package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"gpuvirt/api"
)

// A request is one call of a route.
type request struct {
	method string
	path   []string // below /v1; escaped where it is sent
	query  url.Values
	body   any    // sent as JSON unless nil
	key    string // Idempotency-Key: a POST with one can be repeated
	accept string
	after  string        // Last-Event-ID
	match  string        // If-Match
	also   int           // a status of 400 and above that comes with the object asked for
	within time.Duration // for the whole answer; zero: no limit
}

func (r *request) String() string { return r.method + " /v1/" + strings.Join(r.path, "/") }

func (r *request) repeatable() bool { return r.method != http.MethodPost || r.key != "" }

func get(path ...string) *request {
	return &request{method: http.MethodGet, path: path, within: answerTimeout}
}

func write(method string, body any, path ...string) *request {
	return &request{method: method, path: path, body: body, within: answerTimeout}
}

func (r *request) dryRun() *request {
	r.query = url.Values{"dry_run": {"true"}}
	return r
}

// do sends r, again if its connection broke and that is harmless, and decodes the
// answer into out. An answer of 400 and above is an *api.Problem.
func (c *Client) do(ctx context.Context, r *request, out any) (answer, error) {
	var a answer
	err := c.patiently(ctx, r, func() error {
		data, resp, err := c.exchange(ctx, r)
		if err != nil {
			return err
		}
		a = answer{status: resp.StatusCode, etag: resp.Header.Get("ETag")}
		if out == nil || a.status == http.StatusNoContent {
			return nil
		}
		if err := json.Unmarshal(data, out); err != nil {
			return fmt.Errorf("cannot read the answer to %s: %w", r, err)
		}
		return nil
	})
	return a, err
}

// An answer is what is to be known of one besides its body.
type answer struct {
	status int
	etag   string
}

// patiently calls try until it succeeds, fails for good, or the patience ends. A
// daemon that could not be reached at the first try is not waited for.
func (c *Client) patiently(ctx context.Context, r *request, try func() error) error {
	p := c.newPatience()
	for first := true; ; first = false {
		err := try()
		if !isUnreachable(err) || !r.repeatable() || first && notDialed(err) {
			return err
		}
		if p.pause(ctx) != nil {
			return err
		}
	}
}

// exchange sends r once and reads the whole answer.
func (c *Client) exchange(ctx context.Context, r *request) ([]byte, *http.Response, error) {
	if r.within > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, r.within,
			fmt.Errorf("no answer to %s within %s", r, r.within))
		defer cancel()
		ctx = limited
	}
	resp, err := c.send(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read from
	data, err := readAtMost(resp.Body, maxBody)
	if err != nil {
		return nil, nil, c.broken(ctx, r, err)
	}
	return data, resp, nil
}

// send sends r once and returns the answer with its body unread, unless that is
// a refusal: then it is an *api.Problem.
func (c *Client) send(ctx context.Context, r *request) (*http.Response, error) {
	req, err := c.newRequest(ctx, r)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.broken(ctx, r, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 ||
		resp.StatusCode == r.also && mediaType(resp) == "application/json" {
		return resp, nil
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read from
	return nil, problemOf(r, resp)
}

func (c *Client) newRequest(ctx context.Context, r *request) (*http.Request, error) {
	target := c.base + "/v1"
	for _, part := range r.path {
		// An empty or dotted part would make another path of this one.
		if strings.Trim(part, ".") == "" {
			return nil, fmt.Errorf("cannot %s: %q is no name", strings.ToLower(r.method), part)
		}
		target += "/" + url.PathEscape(part)
	}
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	var body io.Reader
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("cannot write the body of %s: %w", r, err)
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("cannot make the request %s: %w", r, err)
	}
	set := func(name, value string) {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if body != nil {
		set("Content-Type", "application/json")
	}
	set("Accept", r.accept)
	set("User-Agent", c.agent)
	if c.token != "" {
		set("Authorization", "Bearer "+c.token)
	}
	set("Idempotency-Key", r.key)
	set("Last-Event-ID", r.after)
	set("If-Match", r.match)
	return req, nil
}

// broken says why no answer came: because the caller gave up, or an
// *UnreachableError.
func (c *Client) broken(ctx context.Context, r *request, err error) error {
	var tooBig *tooBigError
	if errors.As(err, &tooBig) {
		return fmt.Errorf("cannot read the answer to %s: %w", r, err)
	}
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
			return fmt.Errorf("cannot finish %s: %w", r, cause)
		}
		err = cause
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // its method and URL say nothing here
	}
	if untrusted(err) {
		return &UntrustedError{Daemon: c.name, Err: err}
	}
	return &UnreachableError{Daemon: c.name, Err: err}
}

func isUnreachable(err error) bool {
	var u *UnreachableError
	return errors.As(err, &u)
}

func notDialed(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// problemOf reads the problem that a refusal is, or makes one of an answer that
// is none.
func problemOf(r *request, resp *http.Response) error {
	data, err := readAtMost(resp.Body, maxEvent)
	p := &api.Problem{}
	if err == nil && mediaType(resp) == api.ContentTypeProblem && json.Unmarshal(data, p) == nil && p.Detail+p.Title != "" {
		if p.Status == 0 {
			p.Status = resp.StatusCode
		}
		if p.Detail == "" {
			p.Detail = p.Title
		}
		return p
	}
	return &api.Problem{
		Type: "about:blank", Title: http.StatusText(resp.StatusCode), Status: resp.StatusCode,
		Detail: fmt.Sprintf("cannot finish %s: gpuvirtd answered %s", r, resp.Status),
	}
}

func mediaType(resp *http.Response) string {
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return kind
}

type tooBigError struct{ limit int64 }

func (e *tooBigError) Error() string { return fmt.Sprintf("it has more than %d bytes", e.limit) }

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, &tooBigError{limit}
	}
	return data, nil
}

// patience says how long to go on without a daemon, and waits between tries.
type patience struct {
	end  time.Time // zero: never
	next time.Duration
}

func (c *Client) newPatience() *patience {
	return &patience{end: time.Now().Add(c.patience), next: firstPause}
}

var errPatience = errors.New("waited long enough")

// pause waits before the next try: longer each time. It fails where there should
// be none.
func (p *patience) pause(ctx context.Context) error {
	if !p.end.IsZero() && time.Now().Add(p.next).After(p.end) {
		return errPatience
	}
	timer := time.NewTimer(p.next)
	defer timer.Stop()
	p.next = min(2*p.next, longestPause)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
