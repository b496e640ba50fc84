package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"gpuvirt/api"
)

const (
	liveWidth  = 79              // of a line that is written over
	slowAfter  = 5 * time.Second // a step that takes longer is told of where no line is live
	kindWidth  = 20
	stateWidth = 8
)

// progress shows the steps of an operation. On a terminal the step under way has
// one line that is written over; elsewhere each step has a line when it is over,
// and when it is slow.
type progress struct {
	out   io.Writer
	live  bool
	shown []string // per step: the status on its last line
	since []time.Time
	width int // of the live line; 0: there is none
}

// update shows what changed.
func (p *progress) update(op api.Operation) {
	for len(p.shown) < len(op.Steps) {
		p.shown = append(p.shown, "pending")
		p.since = append(p.since, time.Time{})
	}
	// First what went forward, in order; then what goes back, newest first.
	for i, s := range op.Steps {
		if s.Status == "doing" || s.Status == "done" || s.Status == "failed" {
			p.step(i, s)
		}
	}
	for i := len(op.Steps) - 1; i >= 0; i-- {
		if s := op.Steps[i]; s.Status == "undoing" || s.Status == "undone" {
			p.step(i, s)
		}
	}
}

func (p *progress) step(i int, s api.Step) {
	under := s.Status == "doing" || s.Status == "undoing"
	status := s.Status
	if far := percent(s.Done, s.Total); far != "" && s.Status == "doing" {
		status = far
	}
	line := strings.TrimRight(fmt.Sprintf("  %-*s  %-*s  %s", kindWidth, s.Kind, stateWidth, status, s.Summary), " ")
	switch {
	case under && p.live:
		p.over(line)
	case under:
		if p.since[i].IsZero() {
			p.since[i] = time.Now()
		}
		if p.shown[i] != s.Status && time.Since(p.since[i]) >= slowAfter {
			p.shown[i] = s.Status
			fmt.Fprintln(p.out, clean(line))
		}
	case p.shown[i] != s.Status:
		p.shown[i] = s.Status
		p.since[i] = time.Time{}
		p.over("")
		fmt.Fprintln(p.out, clean(line))
	}
}

// over writes over the live line.
func (p *progress) over(line string) {
	if !p.live || p.width == 0 && line == "" {
		return
	}
	runes := []rune(clean(line))
	if len(runes) > liveWidth {
		runes = append(runes[:liveWidth-1], '…')
	}
	blank := strings.Repeat(" ", max(p.width-len(runes), 0))
	fmt.Fprint(p.out, "\r", string(runes), blank)
	if line == "" {
		fmt.Fprint(p.out, "\r")
	}
	p.width = len(runes)
}

// end leaves the live line as it is.
func (p *progress) end() {
	if p.width > 0 {
		fmt.Fprintln(p.out)
		p.width = 0
	}
}
