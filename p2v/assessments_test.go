package p2v_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v"
	"gpuvirt/p2v/report"
	"gpuvirt/store"
)

// A server of the test: each visit plays the next of its scripts.
type server struct {
	mu      sync.Mutex
	visits  []visit // what is still to come; the last one stays
	placed  map[string]bool
	dialed  int
	ran     [][]string
	open    int
	unclean bool // Unplace fails
}

type visit struct {
	dial     error
	slow     time.Duration // until it lets us in
	place    error
	swallows bool // Place does not come to an end
	holds    bool // Unplace does not come to an end
	lines    []report.Line
	raw      string
	then     error // what Run returns; nil: it ends well
	stays    bool  // it says no more, and does not end by itself
	// serve answers for the disks; nil: nobody does.
	serve func(ctx context.Context, args []string) (io.ReadWriteCloser, error)
}

func (s *server) dial(ctx context.Context, _ report.Source) (p2v.Server, error) {
	now := s.next()
	if now.dial != nil {
		return nil, now.dial
	}
	select {
	case <-time.After(now.slow):
	case <-ctx.Done():
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot reach it: %w", context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	return &conn{s: s, visit: now}, nil
}

func (s *server) next() visit {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialed++
	now := s.visits[0]
	if len(s.visits) > 1 {
		s.visits = s.visits[1:]
	}
	return now
}

// runs are the programs that were called, each with its arguments.
func (s *server) runs() [][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ran)
}

type conn struct {
	s *server
	visit
}

func (c *conn) Place(ctx context.Context, id string, program io.Reader, size int64) (string, error) {
	if c.swallows {
		<-ctx.Done()
		return "", context.Cause(ctx)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if text, err := io.ReadAll(program); err != nil || int64(len(text)) != size {
		return "", errors.New("another size")
	}
	c.s.placed[id] = true
	return "/dev/shm/.gpuvirt-" + id, c.place
}

func (c *conn) Unplace(ctx context.Context, id string) error {
	if c.holds {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.unclean {
		return errors.New("gone away")
	}
	delete(c.s.placed, id)
	return ctx.Err()
}

func (c *conn) Run(ctx context.Context, _ io.Reader, out io.Writer, program string, args ...string) error {
	c.s.mu.Lock()
	c.s.ran = append(c.s.ran, append([]string{program}, args...))
	c.s.mu.Unlock()
	for _, l := range c.lines {
		if err := l.Write(out); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(out, c.raw); err != nil {
		return err
	}
	if c.stays {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return c.then
}

func (c *conn) Open(ctx context.Context, program string, args ...string) (io.ReadWriteCloser, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.ran = append(c.s.ran, append([]string{program}, args...))
	if c.serve == nil {
		return nil, away
	}
	return c.serve(ctx, args)
}

func (c *conn) Close() error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.open--
	return nil
}

type program struct{ *strings.Reader }

func (program) Close() error { return nil }

type stage struct {
	t      *testing.T
	server *server
	store  *store.Store
	engine *operation.Engine
	*p2v.Assessments
}

func newStage(t *testing.T, visits ...visit) *stage {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"), store.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s := &stage{t: t, store: db, server: &server{visits: visits, placed: map[string]bool{}}}
	s.start()
	t.Cleanup(func() { s.engine.Stop() })
	return s
}

// start is the start of a daemon.
func (s *stage) start() {
	s.engine = operation.New(operation.Config{Store: s.store, Log: slog.New(slog.DiscardHandler), Problem: problem, Now: time.Now})
	s.Assessments = p2v.New(p2v.Config{
		Store: s.store, Engine: s.engine, Log: slog.New(slog.DiscardHandler), Now: time.Now, Dial: s.server.dial,
		Open: func() (p2v.Inspector, error) { return program{strings.NewReader("#!")}, nil },
	})
	if err := s.engine.Start(context.WithoutCancel(s.t.Context())); err != nil {
		s.t.Fatal(err)
	}
}

func problem(err error) operation.Problem {
	p := operation.Problem{Code: string(gpu.CodeOf(err)), Detail: err.Error()}
	if e, is := errors.AsType[*gpu.Error](err); is {
		p.Hint = e.Hint
	}
	return p
}

func (s *stage) begin(window time.Duration) operation.Operation {
	s.t.Helper()
	_, op, err := s.Create(s.t.Context(), "tester", report.Wish{Name: "gpu7", Source: ssh(), Window: window, Interval: 5 * time.Second}, gpu.Idempotency{})
	if err != nil {
		s.t.Fatal(err)
	}
	return *op
}

func (s *stage) wait(id string) operation.Operation {
	s.t.Helper()
	op, err := s.engine.Wait(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return op
}

// done waits for the end of an operation that ends well, and returns the assessment.
func (s *stage) done(id string) report.AssessmentRecord {
	s.t.Helper()
	if op := s.wait(id); op.Status != operation.Done {
		s.t.Fatalf("it is %s: %+v", op.Status, op.Problem)
	}
	rec, err := s.Assessment("gpu7")
	if err != nil {
		s.t.Fatal(err)
	}
	s.clean()
	return rec
}

// clean checks that nothing is left on the server, and no connection open.
func (s *stage) clean() {
	s.t.Helper()
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	if len(s.server.placed) != 0 || s.server.open != 0 {
		s.t.Errorf("left there: %v, open connections: %d", s.server.placed, s.server.open)
	}
}

func ssh() *report.Source {
	return &report.Source{Address: "gpu7.example", HostKey: "SHA256:" + strings.Repeat("A", 43), Credential: "gpu7"}
}

func looks(boot string) report.Line {
	r := report.Report{Version: report.Version, Hostname: "gpu7", OS: report.OS{BootID: boot}, GPUs: []report.GPU{{PCI: "0000:41:00.0"}}}
	r.Clean()
	return report.Line{Report: &r}
}

// sees is a part of a watching of so many seconds, with as many samples.
func sees(seconds int, memory float64) report.Line {
	g := report.GPUUsage{PCI: "0000:41:00.0"}
	for range seconds {
		g.Memory.Add(memory)
	}
	u := report.Usage{Samples: seconds, Cost: report.GPUCost{WindowSeconds: float64(seconds)}, GPUs: []report.GPUUsage{g}}
	u.Clean()
	return report.Line{Usage: &u}
}

var end = report.Line{End: true}

var away = gpu.Errorf(gpu.CodeUnavailable, "no route to host: %w", report.ErrSilent)

func reasons(r *report.Report) []string {
	out := []string{}
	for _, u := range r.Unseen {
		out = append(out, u.What+": "+u.Reason)
	}
	return out
}

func TestAssess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30), sees(60, 2<<30), end}})
		rec := s.done(s.begin(2 * time.Minute).ID)
		if rec.State != report.StateDone || rec.Report.Hostname != "gpu7" || rec.Watched() != 120 {
			t.Errorf("got %+v", rec)
		}
		if m := rec.Report.Usage.GPUs[0].Memory; m.Samples != 120 || m.Max != 2<<30 || m.Quantile(0.5) > 1.1*(1<<30) {
			t.Errorf("got %+v", m)
		}
		op := rec.Operation
		want := [][]string{{"/dev/shm/.gpuvirt-" + op + "/gpuvirt", "p2v", "inspect", "--stream", "--window", "120s", "--interval", "5s"}}
		if diff := cmp.Diff(want, s.server.ran); diff != "" {
			t.Error(diff)
		}
	})
}

// A connection that is cut is made again, and the watching goes on with what is left of its
// window: nothing that was seen is lost or counted twice.
func TestAssessGoesOn(t *testing.T) {
	cut := gpu.Errorf(gpu.CodeUnavailable, "the connection was closed")
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t,
			visit{dial: away},
			visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, then: cut},
			visit{dial: away}, visit{dial: away},
			visit{lines: []report.Line{looks("2"), sees(60, 3<<30), end}})
		rec := s.done(s.begin(2 * time.Minute).ID)
		if rec.Watched() != 120 || rec.Report.Usage.GPUs[0].Memory.Samples != 120 || rec.Report.OS.BootID != "2" {
			t.Errorf("got %+v", rec.Report)
		}
		if diff := cmp.Diff([]string{"usage: the server was started again while it was watched"}, reasons(rec.Report)); diff != "" {
			t.Error(diff)
		}
		if got := s.server.ran[1][5]; got != "60s" {
			t.Errorf("the second look is for %s", got)
		}
	})
}

// One that cannot be reached for long is given up: with nothing seen, nothing is kept; what
// was seen is.
func TestAssessGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{dial: away})
		begin := time.Now()
		op := s.wait(s.begin(time.Hour).ID)
		if op.Status != operation.Undone || op.Problem.Code != "unavailable" || time.Since(begin) > time.Minute {
			t.Errorf("after %s it is %s: %+v", time.Since(begin), op.Status, op.Problem)
		}
		if _, err := s.Assessment("gpu7"); gpu.CodeOf(err) != gpu.CodeNotFound {
			t.Errorf("it is kept: %v", err)
		}
		s.clean()
	})
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, then: away}, visit{dial: away})
		rec := s.done(s.begin(time.Hour).ID)
		if diff := cmp.Diff([]string{"usage: it ended 59m0s early: no route to host: nobody answers there"}, reasons(rec.Report)); diff != "" || rec.Watched() != 60 {
			t.Errorf("%v %s", rec.Watched(), diff)
		}
	})
}

// What does not pass by itself is not tried again.
func TestAssessFails(t *testing.T) {
	for name, c := range map[string]struct {
		visit visit
		code  string
		text  string
	}{
		"another key": {visit{dial: gpu.Errorf(gpu.CodeUnauthorized, "cannot trust")}, "unauthorized", "cannot trust"},
		"no room":     {visit{place: gpu.Errorf(gpu.CodeConflict, "no room")}, "conflict", "no room"},
		"no program":  {visit{then: errors.New("exit status 127: not found")}, "conflict", "not found"},
		"sudo":        {visit{then: errors.New("sudo: a password is required")}, "conflict", "a password is required"},
		"nonsense":    {visit{raw: "welcome\n", stays: true}, "invalid", "invalid character"},
		"a bomb":      {visit{raw: strings.Repeat("[", report.MaxBytes+128<<10), stays: true}, "invalid", "larger than"},
		"usage first": {visit{lines: []report.Line{sees(1, 1)}, stays: true}, "invalid", "report has to come first"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t, c.visit)
				begin := time.Now()
				op := s.wait(s.begin(time.Hour).ID)
				if op.Status != operation.Undone || op.Problem.Code != c.code || !strings.Contains(op.Problem.Detail, c.text) || time.Since(begin) > time.Second {
					t.Errorf("after %s it is %s: %+v", time.Since(begin), op.Status, op.Problem)
				}
				s.clean()
			})
		})
	}
}

// An inspector that says nothing more is given up some time after its window.
func TestAssessIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, stays: true}, visit{dial: away})
		begin := time.Now()
		rec := s.done(s.begin(time.Hour).ID)
		if took := time.Since(begin); took < time.Hour || took > 2*time.Hour || len(rec.Report.Unseen) != 1 {
			t.Errorf("after %s: %v", took, reasons(rec.Report))
		}
	})
}

// An abort leaves nothing, here and there; a daemon that ends is not held up, and the next
// one goes on with what is left.
func TestAssessIsBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, stays: true})
		op := s.begin(time.Hour)
		synctest.Wait()
		if _, err := s.engine.Abort(op.ID); err != nil {
			t.Fatal(err)
		}
		if op = s.wait(op.ID); op.Status != operation.Undone {
			t.Errorf("it is %s", op.Status)
		}
		if all, err := s.Assessments.Assessments(); err != nil || len(all) != 0 {
			t.Errorf("left: %v, %v", all, err)
		}
		s.clean()
	})
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, stays: true}, visit{lines: []report.Line{looks("1"), sees(60, 1<<30), end}})
		op := s.begin(2 * time.Minute)
		synctest.Wait()
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
		defer cancel()
		s.engine.Drain(ctx)
		if took := time.Since(begin); took != 0 {
			t.Errorf("the daemon's end was held up for %s", took)
		}
		s.engine.Stop()
		s.clean()
		s.start()
		if rec := s.done(op.ID); rec.Watched() != 120 || s.server.ran[1][5] != "60s" {
			t.Errorf("%v %v", rec.Watched(), s.server.ran)
		}
	})
}

// A daemon that is killed leaves the inspector there; the next one replaces it, goes on and
// takes it away.
func TestAssessAfterAKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, stays: true}, visit{lines: []report.Line{looks("1"), sees(60, 1<<30), end}})
		s.server.unclean = true
		op := s.begin(2 * time.Minute)
		synctest.Wait()
		s.engine.Stop()
		if len(s.server.placed) != 1 {
			t.Fatal("the stage is not set")
		}
		s.server.unclean = false
		s.start()
		if rec := s.done(op.ID); rec.Watched() != 120 {
			t.Errorf("%v", rec.Watched())
		}
	})
	synctest.Test(t, func(t *testing.T) { // and is aborted before it went on
		s := newStage(t, visit{stays: true}, visit{dial: away}, visit{})
		s.server.unclean = true
		op := s.begin(2 * time.Minute)
		synctest.Wait()
		s.engine.Stop()
		s.server.unclean = false
		s.start()
		synctest.Wait()
		if _, err := s.engine.Abort(op.ID); err != nil {
			t.Fatal(err)
		}
		if op := s.wait(op.ID); op.Status != operation.Undone {
			t.Errorf("it is %s", op.Status)
		}
		s.clean()
	})
}

func TestFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, stays: true})
		op := s.begin(time.Hour)
		synctest.Wait()
		if rec, err := s.Assessment("gpu7"); err != nil || rec.State != report.StateWatching {
			t.Fatalf("%+v %v", rec, err)
		}
		for range 2 {
			if _, err := s.Finish("gpu7"); err != nil {
				t.Fatal(err)
			}
		}
		rec := s.done(op.ID)
		if diff := cmp.Diff([]string{"usage: it was ended 59m0s early on request"}, reasons(rec.Report)); diff != "" || rec.Watched() != 60 {
			t.Errorf("%v %s", rec.Watched(), diff)
		}
		if _, err := s.Finish("gpu7"); err != nil {
			t.Errorf("one that has ended: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // while it is not reached
		s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, then: away}, visit{dial: away})
		op := s.begin(time.Hour)
		<-time.After(time.Minute)
		if _, err := s.Finish("gpu7"); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if rec := s.done(op.ID); rec.Watched() != 60 || time.Since(begin) > 10*time.Second {
			t.Errorf("after %s: %v", time.Since(begin), rec.Watched())
		}
	})
	synctest.Test(t, func(t *testing.T) { // before anything was seen
		s := newStage(t, visit{stays: true})
		s.begin(time.Hour)
		synctest.Wait()
		if _, err := s.Finish("gpu7"); gpu.CodeOf(err) != gpu.CodeConflict {
			t.Errorf("got %v", err)
		}
	})
}

// A report that was carried here is kept at once.
func TestAssessAReport(t *testing.T) {
	s := newStage(t)
	r := looks("1").Report
	w := report.Wish{Name: "gpu7", Report: r}
	rec, op, err := s.Create(t.Context(), "tester", w, gpu.Idempotency{Key: "k", Request: "r"})
	if err != nil || op.Status != operation.Done || rec.State != report.StateDone {
		t.Fatalf("%+v %+v %v", rec, op, err)
	}
	if same, again, err := s.Create(t.Context(), "tester", w, gpu.Idempotency{Key: "k", Request: "r"}); err != nil || again.ID != op.ID || !cmp.Equal(same, rec) {
		t.Errorf("the same again: %+v %v\n%s", again, err, cmp.Diff(rec, same))
	}
	if _, _, err := s.Create(t.Context(), "tester", w, gpu.Idempotency{Key: "k", Request: "other"}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("another under the same key: %v", err)
	}
	if _, _, err := s.Create(t.Context(), "tester", w, gpu.Idempotency{}); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "there is one of this name") {
		t.Errorf("the name again: %v", err)
	}
	if got, err := s.Assessment("gpu7"); err != nil || !cmp.Equal(got, rec) {
		t.Errorf("%v\n%s", err, cmp.Diff(rec, got))
	}
	if _, err := s.Delete("gpu7"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete("gpu7"); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Errorf("got %v", err)
	}
}

func TestAssessRefuses(t *testing.T) {
	s := newStage(t, visit{stays: true})
	for name, c := range map[string]struct {
		w    report.Wish
		want string
	}{
		"nothing":      {report.Wish{}, "either a source or an inspection"},
		"both":         {report.Wish{Source: ssh(), Report: looks("1").Report}, "either a source or an inspection"},
		"window":       {report.Wish{Source: ssh(), Window: 61 * 24 * time.Hour}, "up to 1440h0m0s"},
		"negative":     {report.Wish{Source: ssh(), Window: -1}, "up to 1440h0m0s"},
		"interval":     {report.Wish{Source: ssh(), Window: time.Hour, Interval: time.Millisecond}, "1s to 10s"},
		"file watched": {report.Wish{Report: looks("1").Report, Window: time.Hour}, "window and interval are for a source"},
		"no key":       {report.Wish{Source: &report.Source{Address: "a"}}, "host_key is missing"},
	} {
		c.w.Name = "bad"
		_, _, err := s.Create(t.Context(), "tester", c.w, gpu.Idempotency{})
		plan, planErr := s.Plan(c.w)
		if gpu.CodeOf(err) != gpu.CodeInvalid || !strings.Contains(err.Error(), c.want) || planErr != nil || plan.Refusal == nil || plan.Refusal.Error() != err.Error() {
			t.Errorf("%s: got %v, dry run %v %v", name, err, plan.Refusal, planErr)
		}
	}
	// One that is under way is not deleted, and its name is taken.
	op := s.begin(time.Hour)
	var held *operation.ConflictError
	if _, err := s.Delete("gpu7"); !errors.As(err, &held) || held.Holder != op.ID {
		t.Errorf("got %v", err)
	}
	plan, err := s.Plan(report.Wish{Name: "gpu7", Source: ssh()})
	if err != nil || plan.Refusal == nil {
		t.Errorf("got %+v %v", plan, err)
	}
	ops, err := s.engine.List()
	if err != nil || len(ops) != 1 || !slices.Equal(ops[0].Keys, []string{"assessment/gpu7"}) {
		t.Errorf("%+v %v", ops, err)
	}
}
