package p2v_test

import (
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/operation"
	"gpuvirt/p2v/report"
)

// That somebody had enough of one assessment is no word on the next of its name.
func TestFinishIsOfOneAssessment(t *testing.T) {
	for name, end := range map[string]func(s *stage, id string){
		"it ended": func(s *stage, id string) { s.done(id) },
		"it was aborted": func(s *stage, id string) {
			if _, err := s.engine.Abort(id); err != nil {
				s.t.Fatal(err)
			}
			s.wait(id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t, visit{lines: []report.Line{looks("1"), sees(60, 1<<30)}, then: away}, visit{dial: away})
				op := s.begin(time.Hour)
				<-time.After(7 * time.Second) // between two tries
				if _, err := s.Finish("gpu7"); err != nil {
					t.Fatal(err)
				}
				end(s, op.ID)
				if _, err := s.Assessment("gpu7"); err == nil {
					if _, err := s.Delete("gpu7"); err != nil {
						t.Fatal(err)
					}
				}
				s.server.mu.Lock()
				s.server.visits = []visit{{slow: time.Second, lines: []report.Line{looks("1"), sees(60, 1<<30)}}}
				s.server.mu.Unlock()
				op = s.begin(time.Minute)
				if op := s.wait(op.ID); op.Status != operation.Done {
					t.Errorf("%s: %+v", op.Status, op.Problem)
				}
				if rec, err := s.Assessment("gpu7"); err != nil || rec.Report == nil || rec.Enough || rec.Watched() != 60 {
					t.Errorf("%+v %v", rec, err)
				}
			})
		})
	}
}
