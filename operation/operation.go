// Package operation carries out a list of steps, each with do and undo, so that
// after any crash the outcome is none or complete. It persists through a Store it
// is given and knows nothing of what the steps are about.
//
// An operation is a straight line. Adding it writes the operation, the rows it
// reserves and the keys it holds in one transaction, or answers a ConflictError
// that names the holder. The result of one step and the intent of the next are
// one write. When a step fails it has cleaned up after itself; the steps done
// before it are undone, newest first. An undo that fails leaves the operation
// failed, with its keys held, until a person says retry or forget.
package operation

import (
	"encoding/json"
	"fmt"
	"time"
)

// Status is where an operation is.
type Status string

// The statuses of an operation.
const (
	Ready   Status = "ready"   // not yet begun; Add begins at once, so it is rarely seen
	Running Status = "running" // doing a step
	Waiting Status = "waiting" // a person must act: see Reason
	Done    Status = "done"    // every step is done
	Undoing Status = "undoing" // going back
	Undone  Status = "undone"  // as if it had never been
	Failed  Status = "failed"  // an undo failed: keys are held until retry or forget
)

// StepStatus is where a step is.
type StepStatus string

// The statuses of a step.
const (
	StepPending StepStatus = "pending"
	StepDoing   StepStatus = "doing" // intent written; the machine may or may not have changed
	StepDone    StepStatus = "done"
	StepUndoing StepStatus = "undoing"
	StepUndone  StepStatus = "undone"
	StepFailed  StepStatus = "failed" // its do failed and cleaned up, or its undo failed
)

// An Operation is a persisted list of steps that carries a wish out.
type Operation struct {
	ID      string    `json:"id"` // ULID: sorts by time
	Kind    string    `json:"kind"`
	Summary string    `json:"summary"`
	Actor   string    `json:"actor"`
	Status  Status    `json:"status"`
	Reason  string    `json:"reason,omitempty"` // of Waiting
	Steps   []Step    `json:"steps"`
	Keys    []string  `json:"keys"` // "gpu/0000:41:00.0", "vm/<uuid>", "assignment/web1"
	Abort   bool      `json:"abort,omitempty"`
	Forgot  bool      `json:"forgot,omitempty"` // a person gave a failed operation up: keys are free
	Problem *Problem  `json:"problem,omitempty"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	// Release are the rows to write if the operation ends undone: they take back
	// what Add reserved.
	Release []Row `json:"release,omitempty"`
}

// Final reports whether the operation will not run again by itself.
func (o *Operation) Final() bool {
	return o.Status == Done || o.Status == Undone || o.Status == Failed
}

// Holds reports whether the operation holds its keys.
func (o *Operation) Holds() bool {
	switch o.Status {
	case Done, Undone:
		return false
	case Failed:
		return !o.Forgot
	case Ready, Running, Waiting, Undoing:
		return true
	}
	return true
}

// A Step is one thing to do.
type Step struct {
	Kind    string          `json:"kind"`
	Summary string          `json:"summary"`
	Args    json.RawMessage `json:"args,omitempty"` // what it was planned with; never changes
	Note    json.RawMessage `json:"note,omitempty"` // what it wrote down for its undo or its resume
	Status  StepStatus      `json:"status"`
	Done    int64           `json:"done"` // progress
	Total   int64           `json:"total"`
	Log     []LogLine       `json:"log,omitempty"`
}

// A LogLine is something a step said.
type LogLine struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
}

// A Problem is why an operation was undone or failed.
type Problem struct {
	Code     string    `json:"code"`
	Detail   string    `json:"detail"`
	Hint     string    `json:"hint,omitempty"`
	Step     string    `json:"step,omitempty"` // kind of the step that failed
	Blockers []Blocker `json:"blockers,omitempty"`
}

// A Blocker is what stood in the way.
type Blocker struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	Note string `json:"note,omitempty"`
}

// A Row is a change to one of the domain's records, applied by the Store in the
// same transaction as the step it belongs to. A nil Value deletes the record.
type Row struct {
	Kind  string          `json:"kind"`
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value,omitempty"`
}

// Put makes a row that writes v, which must marshal to JSON.
func Put(kind, key string, v any) Row {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("operation: cannot marshal %s %q: %v", kind, key, err))
	}
	return Row{Kind: kind, Key: key, Value: data}
}

// Delete makes a row that deletes a record. Deleting what is not there is fine.
func Delete(kind, key string) Row { return Row{Kind: kind, Key: key} }

// A ConflictError says that a key is held by another operation.
type ConflictError struct {
	Key    string
	Holder string // operation id
	// Summary of the holder, for people.
	Summary string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("cannot start: %s is held by operation %s (%s)", e.Key, e.Holder, e.Summary)
}

// ErrNotFound is returned by a Store for an operation it does not have.
var ErrNotFound = fmt.Errorf("operation not found")

// A Store keeps operations, the keys they hold and the domain's rows.
type Store interface {
	// AddOperation writes op, its keys and rows in one transaction, or returns a
	// *ConflictError (wrapped or not) and writes nothing. An op that holds nothing,
	// because it is done already, conflicts all the same.
	AddOperation(op Operation, rows []Row) error
	// SaveOperation writes op, which was added, and rows in one transaction; where
	// op no longer Holds its keys, they are freed in the same transaction.
	SaveOperation(op Operation, rows []Row) error
	// Operation returns one, or ErrNotFound.
	Operation(id string) (Operation, error)
	// Operations returns all, oldest first.
	Operations() ([]Operation, error)
	// DeleteOperations removes operations from the record, in one transaction. It
	// refuses where one of them holds its keys; ids that are not there are fine.
	DeleteOperations(ids []string) error
}
