package p2v_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v"
	"gpuvirt/p2v/report"
	"gpuvirt/store"
)

// A fullStore keeps nothing new while it is full.
type fullStore struct {
	*store.Store

	full atomic.Bool
}

func (f *fullStore) Apply(rows ...operation.Row) error {
	if f.full.Load() {
		return errors.New("no space left on device")
	}
	return f.Store.Apply(rows...)
}

// What was seen for days is not lost where the store is full for a while.
func TestAssessWithAFullStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, stays: true}, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}})
		s.engine.Stop()
		kept := &fullStore{Store: s.store}
		s.engine = operation.New(operation.Config{Store: s.store, Log: slog.New(slog.DiscardHandler), Problem: problem, Now: time.Now})
		s.Assessments = p2v.New(p2v.Config{
			Store: kept, Engine: s.engine, Log: slog.New(slog.DiscardHandler), Now: time.Now, Dial: s.server.dial,
			Open: func() (p2v.Inspector, error) { return program{strings.NewReader("#!")}, nil },
		})
		if err := s.engine.Start(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		op := s.begin(time.Minute)
		synctest.Wait()
		kept.full.Store(true)
		<-time.After(30 * time.Minute)
		kept.full.Store(false)
		<-time.After(time.Minute)
		if rec := s.done(op.ID); rec.Report == nil || rec.State != report.StateDone {
			t.Errorf("%+v", rec)
		}
	})
}

// A name is given once, whoever asks at once.
func TestAssessANameOnce(t *testing.T) {
	s := newStage(t)
	var begun atomic.Int32
	var asking sync.WaitGroup
	for range 32 {
		asking.Go(func() {
			_, _, err := s.Create(t.Context(), "tester", report.Wish{Name: "gpu7", Report: looks("1").Report}, gpu.Idempotency{})
			switch {
			case err == nil:
				begun.Add(1)
			case gpu.CodeOf(err) != gpu.CodeConflict:
				t.Error(err)
			}
		})
	}
	asking.Wait()
	if begun.Load() != 1 {
		t.Errorf("%d times", begun.Load())
	}
}

// A server that takes what it is given and is never done with it is given up.
func TestAssessPlaceIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, visit{swallows: true})
		if op := s.wait(s.begin(0).ID); op.Status != operation.Undone || !strings.Contains(op.Problem.Detail, "cannot bring the inspector") {
			t.Errorf("%s %+v", op.Status, op.Problem)
		}
		s.clean()
	})
}
