package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"gpuvirt/internal/run"
)

// Why a run is ended by us.
var (
	errWall   = errors.New("it takes too long")
	errQuiet  = errors.New("it says nothing any more")
	errLaunch = errors.New("libguestfs's appliance does not come up")
)

// A watch follows one run: where it is, what it has said, and whether it goes on.
type watch struct {
	limits   Limits
	progress func(Progress)
	log      *logFile

	mu       sync.Mutex // guards what follows: lines and messages come from two sides
	phase    Phase
	since    time.Time // when the phase began
	heard    time.Time // of it, in whatever way
	phases   []Step
	warnings []string
	failures []string // what it called errors
	launched bool     // the appliance was up
	firmware Firmware
	system   string
}

// A Step is one phase of a run, and how long it took.
type Step struct {
	Phase Phase         `json:"phase"`
	Took  time.Duration `json:"took_ns"`
}

// launches is how often an appliance is started that dies while it comes up: nothing was
// written by then. An emulator does that now and then.
const launches = 3

// run runs a program to its end, within the limits. Its error is a *Failure where it was
// the program's, or the context's own.
func (s *session) run(ctx context.Context, tool Tool, log string, args ...string) error {
	for tried := 1; ; tried++ {
		err := s.once(ctx, tool, log, args...)
		f, failed := errors.AsType[*Failure](err)
		if !failed || !f.early || tried == launches {
			return err
		}
		s.again = append(s.again, "libguestfs's appliance died while it came up, and was started again")
	}
}

func (s *session) once(ctx context.Context, tool Tool, log string, args ...string) error {
	file, err := openLog(s.job.Dir, log, s.c.cfg.Limits.LogBytes)
	if err != nil {
		return err
	}
	messages := &messageReader{from: strings.NewReader("")}
	if s.messages != nil {
		_, err := s.messages.Seek(0, io.SeekStart)
		if err = errors.Join(err, s.messages.Truncate(0)); err != nil {
			return errors.Join(fmt.Errorf("cannot read messages: %w", err), file.Close())
		}
		messages.from = s.messages
	}
	limits := s.c.cfg.Limits
	now := time.Now()
	w := &watch{limits: limits, progress: s.job.Progress, log: file, phase: PhaseSetup, since: now, heard: now}
	s.watch = w

	outer := ctx
	ctx, wall := context.WithTimeoutCause(ctx, limits.Wall, errWall)
	defer wall()
	ctx, end := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	stop := make(chan struct{})
	watching.Go(func() { w.follow(messages, stop, end) })

	line := w.line
	if s.messages == nil {
		line = w.plain
	}
	p := run.Program{Line: line, Env: s.environment(s.tools.Appliance.emulated()), Dir: s.dir, Confine: s.confine()}
	out, err := p.Run(ctx, tool.Path, args...)
	close(stop)
	watching.Wait()
	cause := context.Cause(ctx)
	end(nil)
	w.finish()
	if closing := file.Close(); err == nil && closing != nil {
		return fmt.Errorf("cannot keep the log of %q: %w", s.job.Name, closing)
	}
	switch {
	case err == nil:
		return nil
	case outer.Err() != nil:
		return context.Cause(outer)
	default:
		return s.failure(tool, cause, err, out, file.path)
	}
}

// follow reads what the program writes for us, and ends it where it does not go on.
func (w *watch) follow(messages *messageReader, stop <-chan struct{}, end func(error)) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		stopped := false
		select {
		case <-stop:
			stopped = true
		case <-tick.C:
		}
		all, err := messages.more()
		for _, m := range all {
			w.message(m)
		}
		if err != nil {
			end(err)
		}
		if stopped {
			return
		}
		if err := w.late(time.Now()); err != nil {
			end(err)
		}
	}
}

// late tells which limit has passed.
func (w *watch) late(now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.phase == PhaseLaunch && !w.launched && now.Sub(w.since) > w.limits.Launch:
		return errLaunch
	case now.Sub(w.heard) > w.limits.Quiet:
		return errQuiet
	default:
		return nil
	}
}

// message takes a message that virt-v2v wrote for programs.
func (w *watch) message(m message) {
	w.mu.Lock()
	w.heard = time.Now()
	switch m.Type {
	case "warning":
		w.warnings = appendBounded(w.warnings, m.Text)
	case "error":
		w.failures = appendBounded(w.failures, m.Text)
	case "info":
		w.learn(m)
	case "message":
		w.learn(m)
		w.enter(phaseOf(m.Text, w.phase))
	}
	w.log.line(m.Type + ": " + m.Text)
	p := Progress{Phase: w.phase, Text: m.Text, Time: w.heard}
	w.mu.Unlock()
	w.tell(p)
}

// line takes a line of a program that writes its messages elsewhere: it goes on, and it
// may say that the appliance is up. What a guest prints comes here too, so nothing that
// matters is concluded from it.
func (w *watch) line(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = time.Now()
	if strings.Contains(text, "libguestfs: appliance is up") {
		w.launched = true
	}
	w.log.line(text)
}

// plain takes a line of a program that writes for people only, as virt-customize does.
func (w *watch) plain(text string) {
	w.mu.Lock()
	w.heard = time.Now()
	w.log.line(text)
	text = tidy(text)
	if _, failed, found := strings.Cut(text, ": error: "); found {
		w.failures = appendBounded(w.failures, failed)
	}
	if strings.HasPrefix(text, "[") {
		w.enter(plainPhase(text, w.phase))
	}
	p := Progress{Phase: w.phase, Text: text, Time: w.heard}
	w.mu.Unlock()
	w.tell(p)
}

// plainPhase knows virt-customize's words: "[   0.0] Examining the guest ...".
func plainPhase(text string, now Phase) Phase {
	switch {
	case strings.Contains(text, "Examining the guest"):
		return PhaseLaunch // and inspection: it does not tell them apart
	case strings.Contains(text, "Finishing off"):
		return PhaseFinish
	case now == PhaseLaunch:
		return PhaseEdit
	default:
		return now
	}
}

func (w *watch) enter(p Phase) {
	if p == w.phase {
		return
	}
	w.phases = append(w.phases, Step{w.phase, w.heard.Sub(w.since)})
	w.phase, w.since = p, w.heard
}

func (w *watch) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phases = append(w.phases, Step{w.phase, time.Since(w.since)})
}

func (w *watch) tell(p Progress) {
	if w.progress != nil {
		w.progress(p)
	}
}

// appendBounded keeps the first hundred: a guest may cause any number.
func appendBounded(list []string, text string) []string {
	if len(list) >= 100 {
		return list
	}
	return append(list, text)
}

// logTail is how much of the end of a log is kept where its middle is not.
const logTail = 64 << 10

// A logFile keeps the beginning of a log, and its end. A later run of its kind replaces it.
type logFile struct {
	path  string
	file  io.WriteCloser
	left  int64
	tail  []byte
	gone  int64
	fault error
}

func openLog(dir, name string, limit int64) (*logFile, error) {
	path := dir + "/" + name
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // the job's folder was checked, the name is ours
	if err != nil {
		return nil, fmt.Errorf("cannot open the log: %w", err)
	}
	return &logFile{path: path, file: f, left: max(limit-logTail, 0)}, nil
}

func (l *logFile) line(text string) {
	line := []byte(text + "\n")
	if l.gone == 0 && len(l.tail) == 0 && int64(len(line)) <= l.left {
		l.left -= int64(len(line))
		if _, err := l.file.Write(line); err != nil && l.fault == nil {
			l.fault = err
		}
		return
	}
	l.tail = append(l.tail, line...)
	if over := len(l.tail) - logTail; over > 0 {
		l.gone += int64(over)
		l.tail = append(l.tail[:0], l.tail[over:]...)
	}
}

// Close writes the end. The first fault of any writing is told here.
func (l *logFile) Close() error {
	var last error
	if len(l.tail) > 0 {
		_, last = fmt.Fprintf(l.file, "[%d bytes are left out here]\n%s", l.gone, l.tail)
	}
	return errors.Join(l.fault, last, l.file.Close())
}
