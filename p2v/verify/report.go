package verify

import (
	"slices"
	"strings"
	"time"

	"gpuvirt/p2v/report"
)

// State is what came of looking at a thing.
type State string

// The states of a result.
const (
	StateOK      State = "ok"
	StateFailed  State = "failed"
	StateWarning State = "warning" // worth telling, and not held against the VM
	StateUnknown State = "unknown" // it could not be looked at
	StateSkipped State = "skipped" // it is not expected here
)

// Result is what came of looking at one thing.
type Result struct {
	ID    string `json:"id"`    // "devices", "service:vllm.service", "container:docker/web", "check:health"
	Title string `json:"title"` // for people
	State State  `json:"state"`
	Text  string `json:"text"` // what was seen; one line, fit to be shown
	// Before is what was seen on the source; empty: nobody looked.
	Before string `json:"before,omitempty"`
	// Seconds is how long it took until this was known: since the verification began, or the
	// check did.
	Seconds float64 `json:"seconds"`
}

// Report is the whole verification of a VM.
type Report struct {
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended"`
	// Verdict is failed where a result is, unknown where nothing failed and something that
	// matters could not be looked at, else ok.
	Verdict State    `json:"verdict"`
	Results []Result `json:"results"`
	// Console is the end of what the VM wrote to its serial console, where the agent did not
	// answer; fit to be shown.
	Console []string `json:"console,omitempty"`
}

// Baseline is what was seen on the source, before.
type Baseline struct {
	Taken time.Time `json:"taken"`
	// Failed are the units that had failed there, where the result "system" is not unknown.
	Failed  []string `json:"failed_units"`
	Results []Result `json:"results"`
}

// result returns what was seen of a thing; nil: nobody looked.
func (b *Baseline) result(id string) *Result {
	if b == nil {
		return nil
	}
	if i := slices.IndexFunc(b.Results, func(r Result) bool { return r.ID == id }); i >= 0 {
		return &b.Results[i]
	}
	return nil
}

// said is a result in a few words.
func (b *Baseline) said(id string) string {
	r := b.result(id)
	switch {
	case r == nil:
		return ""
	case r.State == StateOK:
		return r.Text
	}
	return string(r.State) + ": " + r.Text
}

// verdict is what the results come to.
func verdict(results []Result, matters map[string]bool) State {
	state := StateOK
	for _, r := range results {
		switch {
		case r.State == StateFailed:
			return StateFailed
		case r.State == StateUnknown && matters[r.ID]:
			state = StateUnknown
		}
	}
	return state
}

// oneLine makes text of a machine fit to be shown.
func oneLine(text string, most int) string {
	text = report.CleanString(strings.Join(strings.Fields(text), " "))
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most-1]) + "…"
	}
	return text
}

// listed names some of a list's items.
func listed(items []string) string {
	const most = 10
	var shown []string
	for _, item := range items[:min(len(items), most)] {
		shown = append(shown, oneLine(item, 120))
	}
	text := strings.Join(shown, ", ")
	if len(items) > most {
		text += ", …"
	}
	return text
}
