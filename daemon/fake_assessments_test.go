package daemon

import (
	"context"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
)

// fakeAssessments has one that is done, "carried", and one whose server is being looked at,
// "gpu7".
type fakeAssessments struct {
	host       *fakeHost
	inspection string // as JSON: like those of a store, each record is of whoever asked
}

func (f *fakeAssessments) Assessments() ([]report.AssessmentRecord, error) {
	leave, err := f.host.enter()
	defer leave()
	if err != nil {
		return nil, err
	}
	inspection, err := report.Read(strings.NewReader(f.inspection))
	if err != nil {
		return nil, err
	}
	return []report.AssessmentRecord{
		{Name: "carried", Actor: "root", Created: born, State: report.StateDone, Heard: born, Report: &inspection},
		{
			Name: "gpu7", Actor: "root", Created: born, State: report.StateInspecting, Window: 600, Interval: 5, Operation: "01KAR2Z7T4Y2M8Q6V0R9X3B0AC",
			Source: &report.Source{Address: "gpu7.example", Port: 22, User: "root", HostKey: "SHA256:" + strings.Repeat("A", 43), Credential: "gpu7"},
		},
	}, nil
}

func (f *fakeAssessments) Policy() assess.Policy { return assess.Policy{BootSeconds: 240} }

func (f *fakeAssessments) Assessment(name string) (report.AssessmentRecord, error) {
	all, err := f.Assessments()
	for _, r := range all {
		if r.Name == name {
			return r, nil
		}
	}
	if err == nil {
		err = gpu.Errorf(gpu.CodeNotFound, "cannot find assessment %q: there is no record of it", name)
	}
	return report.AssessmentRecord{}, err
}

func (f *fakeAssessments) Create(_ context.Context, actor string, w report.Wish, _ gpu.Idempotency) (report.AssessmentRecord, *operation.Operation, error) {
	p, err := f.Plan(w)
	if err == nil {
		err = p.Refusal
	}
	if err != nil {
		return report.AssessmentRecord{}, nil, err
	}
	op, err := f.write("Create", actor)
	return report.AssessmentRecord{Name: w.Name, Actor: actor, Created: born, State: report.StateDone, Report: w.Report}, &op, err
}

func (f *fakeAssessments) Plan(w report.Wish) (gpu.Plan, error) {
	all, err := f.Assessments()
	for _, r := range all {
		if r.Name == w.Name {
			return gpu.Plan{Refusal: gpu.Errorf(gpu.CodeConflict, "cannot make assessment %q: there is one of this name", w.Name)}, nil
		}
	}
	return gpu.Plan{Summary: "assess", Changes: true}, err
}

// write counts a write, of an actor as an operation.
func (f *fakeAssessments) write(what, actor string) (op operation.Operation, err error) {
	leave, err := f.host.enter()
	defer leave()
	if err == nil {
		err = f.host.write(what)
	}
	if err == nil && actor != "" {
		op = f.host.ops.add("assess", actor, operation.Running)
	}
	return op, err
}

func (f *fakeAssessments) Finish(name string) (report.AssessmentRecord, error) {
	if _, err := f.write("Finish", ""); err != nil {
		return report.AssessmentRecord{}, err
	}
	return f.Assessment(name)
}

func (f *fakeAssessments) Delete(name string) (report.AssessmentRecord, error) {
	if _, err := f.write("Delete", ""); err != nil {
		return report.AssessmentRecord{}, err
	}
	return f.PlanDelete(name)
}

func (f *fakeAssessments) PlanDelete(name string) (report.AssessmentRecord, error) {
	r, err := f.Assessment(name)
	if err == nil && r.State != report.StateDone {
		err = &operation.ConflictError{Key: "assessment/" + name, Holder: r.Operation, Summary: "assess"}
	}
	return r, err
}

// exampleInspection is the one of openapi.yaml, as JSON.
func exampleInspection(t testing.TB) string {
	t.Helper()
	text, err := encode(loadDocument(t).Components.Examples["inspection"].Value.Value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
