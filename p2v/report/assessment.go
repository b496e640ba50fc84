package report

import "time"

// RecordAssessment is the kind of record that assessments are kept as; its key is the name.
const RecordAssessment = "assessment"

// State is how far an assessment is.
type State string

// The states of an assessment.
const (
	StateInspecting State = "inspecting" // the server is being looked at
	StateWatching   State = "watching"   // its GPUs are being watched
	StateDone       State = "done"
)

// States are all there are, in their order.
func States() []State { return []State{StateInspecting, StateWatching, StateDone} }

// Wish asks for an assessment: of a server that is reached, or of a report.
type Wish struct {
	Name     string
	Source   *Source
	Window   time.Duration // zero: the GPUs are not watched
	Interval time.Duration // zero: the default
	Report   *Report
}

// AssessmentRecord is the look at one server: who asked for it, and what was seen. What
// follows from it is worked out when it is asked for, and not kept.
type AssessmentRecord struct {
	Name   string  `json:"name"`
	Source *Source `json:"source,omitempty"` // nil: it was carried here as a file
	// Window is for how long its GPUs are to be watched, and Interval how often they are
	// looked at, in seconds. Zero: not at all.
	Window   int       `json:"window_seconds"`
	Interval int       `json:"interval_seconds"`
	Actor    string    `json:"actor"`
	Created  time.Time `json:"created"`
	// Operation is the one that looks, empty where it was carried here.
	Operation string `json:"operation,omitempty"`
	State     State  `json:"state"`
	// Enough is set when somebody has asked that the watching end early.
	Enough bool `json:"enough,omitempty"`
	// Heard is when the server was heard of last.
	Heard  time.Time `json:"heard,omitzero"`
	Report *Report   `json:"report,omitempty"` // nil: nothing was heard of it yet
}

// Watched is for how long the GPUs were watched, in seconds.
func (r AssessmentRecord) Watched() float64 {
	if r.Report == nil || r.Report.Usage == nil {
		return 0
	}
	return r.Report.Usage.Cost.WindowSeconds
}
