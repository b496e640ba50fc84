package verify

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"gpuvirt/gpu"
)

// A Runner runs a program on a machine to its end: in the guest, or on the source. No
// shell reads the words. An error says that it could not be run or that its end is not
// known; a program that ends badly is no error.
type Runner interface {
	Run(ctx context.Context, argv []string) (Outcome, error)
}

// MaxOutput is how many bytes of a program's output, and of its error output, are kept.
const MaxOutput = 256 << 10

// Outcome is how a program ended.
type Outcome struct {
	Exit   int // its exit status; -1: a signal ended it
	Stdout string
	Stderr string
	Cut    bool // there was more output than is kept
}

const (
	firstPoll = 50 * time.Millisecond
	lastPoll  = 250 * time.Millisecond
)

// Run runs a program in the guest. The agent cannot end one: where ctx ends first the
// error names the process that goes on.
func (g *Guest) Run(ctx context.Context, argv []string) (Outcome, error) {
	if len(argv) == 0 {
		return Outcome{}, gpu.Errorf(gpu.CodeInternal, "cannot run nothing in the guest")
	}
	var begun struct {
		PID *int64 `json:"pid"`
	}
	ask := map[string]any{"path": argv[0], "arg": append([]string{}, argv[1:]...), "capture-output": true}
	if err := g.command(ctx, "guest-exec", ask, &begun); err != nil {
		return Outcome{}, err
	}
	if begun.PID == nil {
		return Outcome{}, other("guest-exec")
	}
	for wait := firstPoll; ; wait = min(2*wait, lastPoll) {
		out, exited, err := g.status(ctx, *begun.PID)
		if err == nil && !exited {
			err = pause(ctx, wait)
		}
		switch {
		case err != nil:
			return Outcome{}, gpu.Wrap(err, gpu.CodeUnavailable, "cannot tell how %q ended, process %d of the guest", oneLine(strings.Join(argv, " "), 120), *begun.PID)
		case exited:
			return out, nil
		}
	}
}

func (g *Guest) status(ctx context.Context, pid int64) (out Outcome, exited bool, err error) {
	var answer struct {
		Exited *bool  `json:"exited"`
		Exit   *int64 `json:"exitcode"`
		Signal *int64 `json:"signal"`
		Out    string `json:"out-data"`
		Err    string `json:"err-data"`
		OutCut bool   `json:"out-truncated"`
		ErrCut bool   `json:"err-truncated"`
	}
	if err := g.command(ctx, "guest-exec-status", map[string]int64{"pid": pid}, &answer); err != nil {
		return Outcome{}, false, err
	}
	switch {
	case answer.Exited == nil, *answer.Exited && answer.Exit == nil && answer.Signal == nil:
		return Outcome{}, false, other("guest-exec-status")
	case !*answer.Exited:
		return Outcome{}, false, nil
	}
	out.Exit = -1
	if answer.Exit != nil {
		out.Exit = int(*answer.Exit)
	}
	stdout, cutOut, errOut := decode(answer.Out, MaxOutput)
	stderr, cutErr, errErr := decode(answer.Err, MaxOutput)
	if err := errors.Join(errOut, errErr); err != nil {
		return Outcome{}, false, err
	}
	out.Stdout, out.Stderr = string(stdout), string(stderr)
	out.Cut = cutOut || cutErr || answer.OutCut || answer.ErrCut
	return out, true, nil
}

// decode reads the beginning of what an agent sends in base64, at most so many bytes.
func decode(text string, most int) (data []byte, cut bool, err error) {
	whole := base64.StdEncoding.EncodedLen(most)
	if len(text) > whole {
		text, cut = text[:whole], true // whole groups of four
	}
	data, err = base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, false, errors.New("the agent sends no base64")
	}
	if len(data) > most {
		data, cut = data[:most], true
	}
	return data, cut, nil
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// reserve is what a program has to end by itself after its time, and the one who asked to
// hear of it.
const reserve = 15 * time.Second

// A machine runs programs with a limit of time, which coreutils' timeout keeps where it is
// there.
type machine struct {
	Runner

	timeout bool
}

// newMachine asks whether timeout is there, and once more where there was no answer.
func newMachine(ctx context.Context, r Runner) machine {
	m := machine{Runner: r}
	for range 2 {
		within, cancel := context.WithTimeout(ctx, reserve)
		out, err := r.Run(within, []string{"timeout", "-k", "5", "5", "true"})
		cancel()
		if err == nil {
			m.timeout = out.Exit == 0
			break
		}
	}
	return m
}

// errSlow says that a program did not end within its time and was ended.
var errSlow = errors.New("it did not end within its time, and was ended")

// errAbandoned says that a program did not end and goes on.
var errAbandoned = errors.New("it did not end within its time, and goes on")

// within runs a program that ends within a limit.
func (m machine) within(ctx context.Context, limit time.Duration, argv ...string) (Outcome, error) {
	began := time.Now()
	own, cancel := context.WithTimeoutCause(ctx, limit+reserve, errAbandoned)
	defer cancel()
	if m.timeout {
		whole := strconv.Itoa(int(math.Ceil(limit.Seconds())))
		argv = append([]string{"timeout", "-k", "5", whole}, argv...)
	}
	out, err := m.Run(own, argv)
	if err == nil && m.timeout && (out.Exit == 124 || out.Exit == 137 || out.Exit == -1) && time.Since(began) >= limit {
		return out, errSlow
	}
	return out, err
}

// lastLine is the last thing that a program said, of errors first.
func (o Outcome) lastLine() string { return cmp.Or(lastLine(o.Stderr), lastLine(o.Stdout)) }

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return oneLine(text[strings.LastIndexByte(text, '\n')+1:], 200)
}
