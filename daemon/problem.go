package daemon

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"gpuvirt/api"
	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// statusClientGone is nginx's status for a client that went away: never sent,
// only logged.
const statusClientGone = 499

// A httpError is a refusal that a code alone does not describe, because HTTP has
// a status of its own for it.
type httpError struct {
	status int
	header http.Header // to add to the response
	err    *gpu.Error
}

func (e *httpError) Error() string { return e.err.Error() }

func (e *httpError) Unwrap() error { return e.err }

// invalid makes the error for a malformed request.
func invalid(format string, args ...any) error {
	return gpu.Errorf(gpu.CodeInvalid, format, args...)
}

func invalidWith(status int, format string, args ...any) *httpError {
	return &httpError{status: status, err: gpu.Errorf(gpu.CodeInvalid, format, args...)}
}

func methodNotAllowed(method, allow string) error {
	e := invalidWith(http.StatusMethodNotAllowed, "method %s is not allowed here: use %s", quote(method), allow)
	e.header = http.Header{"Allow": {allow}}
	return e
}

func notAcceptable(produces string) error {
	return invalidWith(http.StatusNotAcceptable, "cannot answer in a media type that header Accept names: there is only %s", produces)
}

func unsupportedMediaType(format string, args ...any) error {
	return invalidWith(http.StatusUnsupportedMediaType, format, args...)
}

func bodyTooLarge(limit int64) error {
	return invalidWith(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", limit)
}

func bodyTimeout() error {
	return invalidWith(http.StatusRequestTimeout, "the body did not arrive within %v", readTimeout)
}

// unauthorized asks for a token, as RFC 6750 wants it.
func unauthorized(err *gpu.Error) error {
	return &httpError{
		status: http.StatusUnauthorized, header: http.Header{"WWW-Authenticate": {`Bearer realm="gpuvirt"`}}, err: err,
	}
}

// tooManyFailures answers whoever failed to say who it is too often.
func tooManyFailures(after time.Duration) error {
	return &httpError{
		status: http.StatusTooManyRequests,
		header: http.Header{"Retry-After": {strconv.Itoa(int(after.Seconds()))}, "WWW-Authenticate": {`Bearer realm="gpuvirt"`}},
		err:    gpu.Errorf(gpu.CodeUnauthorized, "too many requests without a valid token or certificate came from this address"),
	}
}

func tooManyStreams(most int) error {
	return &httpError{
		status: http.StatusTooManyRequests,
		header: http.Header{"Retry-After": {"1"}},
		err:    gpu.Errorf(gpu.CodeUnavailable, "cannot serve more than %d event streams and waits at a time", most),
	}
}

func preconditionFailed(format string, args ...any) error {
	return gpu.Errorf(gpu.CodeStale, format, args...)
}

// statusOf maps a kind of error to its status.
func statusOf(code gpu.Code) int {
	switch code {
	case gpu.CodeInvalid:
		return http.StatusBadRequest
	case gpu.CodeUnauthorized:
		return http.StatusUnauthorized
	case gpu.CodeForbidden:
		return http.StatusForbidden
	case gpu.CodeNotFound, gpu.CodeVMNotFound:
		return http.StatusNotFound
	case gpu.CodeConflict, gpu.CodeGPUBusy, gpu.CodeGPUUnmanaged, gpu.CodeForeignDevice, gpu.CodeVMRunning,
		gpu.CodeDrift, gpu.CodeNeedsReset, gpu.CodeNeedsReboot, gpu.CodeDriverMismatch,
		gpu.CodeAborted:
		return http.StatusConflict
	case gpu.CodeStale:
		return http.StatusPreconditionFailed
	case gpu.CodeProfileUnknown, gpu.CodeProfileNotCreatable:
		return http.StatusUnprocessableEntity
	case gpu.CodeBusy:
		return http.StatusLocked
	case gpu.CodeUnavailable, gpu.CodeDriverMissing, gpu.CodeStuck:
		return http.StatusServiceUnavailable
	case gpu.CodeNoCapacity:
		return http.StatusInsufficientStorage
	case gpu.CodeInternal:
		return http.StatusInternalServerError
	}
	return http.StatusInternalServerError
}

// titleOf is a kind of error in a few words, always the same.
func titleOf(code gpu.Code) string {
	switch code {
	case gpu.CodeInvalid:
		return "Invalid request"
	case gpu.CodeUnauthorized:
		return "Unknown caller"
	case gpu.CodeForbidden:
		return "Not permitted"
	case gpu.CodeNotFound:
		return "Not found"
	case gpu.CodeVMNotFound:
		return "VM not found"
	case gpu.CodeConflict:
		return "Conflict"
	case gpu.CodeGPUBusy:
		return "GPU in use"
	case gpu.CodeGPUUnmanaged:
		return "GPU not managed"
	case gpu.CodeForeignDevice:
		return "Device of somebody else"
	case gpu.CodeVMRunning:
		return "VM is running"
	case gpu.CodeDrift:
		return "State differs from what was asked for"
	case gpu.CodeNeedsReset:
		return "GPU reset needed"
	case gpu.CodeNeedsReboot:
		return "Reboot needed"
	case gpu.CodeDriverMismatch:
		return "Driver mismatch"
	case gpu.CodeStale:
		return "Object has changed"
	case gpu.CodeProfileUnknown:
		return "Profile unknown"
	case gpu.CodeProfileNotCreatable:
		return "Profile cannot be made"
	case gpu.CodeBusy:
		return "Held by an operation"
	case gpu.CodeUnavailable:
		return "Not available now"
	case gpu.CodeDriverMissing:
		return "Driver missing"
	case gpu.CodeStuck:
		return "Device does not answer"
	case gpu.CodeNoCapacity:
		return "No capacity"
	case gpu.CodeAborted:
		return "Aborted"
	case gpu.CodeInternal:
		return "Internal error"
	}
	return "Internal error"
}

// newProblem makes a problem of a kind; what is not known stays empty.
func newProblem(code gpu.Code, status int, detail string) *api.Problem {
	return &api.Problem{
		Type: "urn:gpuvirt:problem:" + string(code), Title: titleOf(code), Status: status,
		Code: string(code), Detail: detail, Blockers: []api.Blocker{},
	}
}

// problemOf describes an error on the wire. It does not tell what an internal
// error is about: that is for the log.
func problemOf(err error) *api.Problem {
	var held *operation.ConflictError
	var state *operation.StateError
	e, known := errors.AsType[*gpu.Error](err)
	switch {
	case known && statusOf(e.Code) != http.StatusInternalServerError:
	case errors.As(err, &held):
		e = &gpu.Error{Code: gpu.CodeBusy, Detail: held.Error(), Hint: "wait until the operation has ended, or abort it"}
	case errors.As(err, &state):
		e = &gpu.Error{Code: gpu.CodeConflict, Detail: state.Error()}
	case errors.Is(err, operation.ErrNotFound):
		e = &gpu.Error{Code: gpu.CodeNotFound, Detail: operation.ErrNotFound.Error()}
	default:
		return newProblem(gpu.CodeInternal, http.StatusInternalServerError, "internal error: the log of gpuvirtd tells more")
	}

	p := newProblem(e.Code, statusOf(e.Code), e.Detail)
	if h, ok := errors.AsType[*httpError](err); ok {
		p.Status = h.status
	}
	p.Hint = e.Hint
	for _, b := range e.Blockers {
		p.Blockers = append(p.Blockers, api.Blocker(b))
	}
	if errors.As(err, &held) {
		b := api.Blocker{Kind: "operation", ID: held.Holder, Name: held.Summary}
		if !slices.ContainsFunc(p.Blockers, func(o api.Blocker) bool { return o.Kind == b.Kind && o.ID == b.ID }) {
			p.Blockers = append(p.Blockers, b)
		}
	}
	for _, b := range p.Blockers {
		if b.Kind == "operation" && p.Operation == "" {
			p.Operation = b.ID
		}
	}
	for field, d := range e.Diff {
		if p.Diff == nil {
			p.Diff = map[string]api.Difference{}
		}
		p.Diff[field] = api.Difference{Stored: d[0], Asked: d[1]}
	}
	return p
}

// headersOf returns what an error adds to the header of its response.
func headersOf(err error, p *api.Problem) http.Header {
	if h, ok := errors.AsType[*httpError](err); ok {
		return h.header
	}
	if p.Status == http.StatusLocked {
		return http.Header{"Retry-After": {"1"}}
	}
	return nil
}

// clientGone reports whether a request failed because nobody waits for it.
func clientGone(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}
