package gpu

import (
	"errors"
	"fmt"
)

// Code is a kind of error: stable, for programs, the same on the wire.
type Code string

// The codes of api.md.
const (
	CodeNotFound            Code = "not-found"
	CodeInvalid             Code = "invalid"
	CodeUnauthorized        Code = "unauthorized"
	CodeForbidden           Code = "forbidden"
	CodeConflict            Code = "conflict"
	CodeBusy                Code = "busy" // held by an operation, or in use
	CodeGPUUnmanaged        Code = "gpu-unmanaged"
	CodeGPUBusy             Code = "gpu-busy"
	CodeNoCapacity          Code = "no-capacity"
	CodeProfileUnknown      Code = "profile-unknown"
	CodeProfileNotCreatable Code = "profile-not-creatable"
	CodeDriverMissing       Code = "driver-missing"
	CodeDriverMismatch      Code = "driver-mismatch"
	CodeNeedsReset          Code = "needs-reset"
	CodeNeedsReboot         Code = "needs-reboot"
	CodeVMRunning           Code = "vm-running"
	CodeVMNotFound          Code = "vm-not-found"
	CodeForeignDevice       Code = "foreign-device"
	CodeDrift               Code = "drift"
	CodeStale               Code = "stale"
	CodeUnavailable         Code = "unavailable"
	CodeStuck               Code = "stuck"
	CodeAborted             Code = "aborted"  // of an operation that a person stopped
	CodeInternal            Code = "internal" // a defect of ours
)

// A Blocker is what stands in the way of a request.
type Blocker struct {
	Kind string `json:"kind"` // vm, process, driver, operation, partition, gpu, migration
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	Note string `json:"note,omitempty"` // why it blocks, where that is not plain
}

// An Error is a refusal or failure with its kind and what blocks it.
type Error struct {
	Code     Code
	Detail   string // "cannot <verb> <thing>: <cause>"
	Hint     string // what to do, if we know it
	Blockers []Blocker
	// Diff maps a field to its two values where a wish differs from the one stored.
	Diff map[string][2]string
	Err  error // cause, may be nil; already told in Detail
}

func (e *Error) Error() string { return e.Detail }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error of a kind. As with fmt.Errorf, %w keeps the cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Detail: err.Error(), Err: errors.Unwrap(err)}
}

// Wrap puts what was attempted in front of an error, and keeps its kind, hint,
// blockers and difference; an error without a kind gets the given one.
func Wrap(err error, code Code, format string, args ...any) *Error {
	out := &Error{Code: code, Detail: fmt.Sprintf(format, args...) + ": " + err.Error(), Err: err}
	if e, ok := errors.AsType[*Error](err); ok {
		out.Code, out.Hint, out.Blockers, out.Diff = e.Code, e.Hint, e.Blockers, e.Diff
	}
	return out
}

// WithHint adds what to do about it.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// WithBlockers adds what stands in the way.
func (e *Error) WithBlockers(b ...Blocker) *Error {
	e.Blockers = append(e.Blockers, b...)
	return e
}

// CodeOf returns the kind of an error: that of the outermost Error in its chain,
// or CodeInternal.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}
