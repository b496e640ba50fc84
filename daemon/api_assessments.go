package daemon

import (
	"encoding/json"
	"net/http"
	"time"

	"gpuvirt/api"
	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
)

// maxInspection is for an inspection and what it is wrapped in.
const maxInspection = report.MaxBytes + 64<<10

func (s *Server) assessmentOf(r report.AssessmentRecord) api.Assessment {
	out := api.Assessment{
		Name: r.Name, State: string(r.State), WindowSeconds: r.Window, IntervalSeconds: r.Interval, WatchedSeconds: r.Watched(),
		Operation: r.Operation, CreatedBy: r.Actor, Created: clock(r.Created), Heard: moment(r.Heard),
	}
	if r.Source != nil {
		source := api.Source(*r.Source)
		out.Source = &source
	}
	if r.Report != nil {
		out.Hostname = r.Report.Hostname
		out.Findings = findingsOf(assess.Assess(*r.Report, s.assessments.Policy()))
		if r.Report.Usage != nil {
			out.Samples = r.Report.Usage.Samples
		}
	}
	return out
}

func listAssessments(s *Server, q *request) (response, error) {
	records, err := s.assessments.Assessments()
	if err != nil {
		return response{}, err
	}
	items := filter(q, convert(records, s.assessmentOf), map[string]func(api.Assessment) string{
		"state": func(a api.Assessment) string { return a.State },
	})
	return page(q, items, func(a api.Assessment) string { return a.Name })
}

func showAssessment(s *Server, q *request) (response, error) {
	r, err := s.assessments.Assessment(q.path["assessment"])
	return object(s.assessmentOf(r)), err
}

// getInspection answers with what was seen of a server, as the inspector writes it.
func getInspection(s *Server, q *request) (response, error) {
	r, err := s.assessments.Assessment(q.path["assessment"])
	switch {
	case err != nil:
		return response{}, err
	case r.Report == nil:
		return response{}, gpu.Errorf(gpu.CodeNotFound, "there is no inspection of assessment %q yet: nothing was seen of the server", r.Name).
			WithBlockers(gpu.Blocker{Kind: "operation", ID: r.Operation})
	}
	r.Report.Clean() // lists are never null on the wire
	return object(r.Report), nil
}

func createAssessment(s *Server, q *request) (response, error) {
	if err := checkInspectionVersion(q.body); err != nil {
		return response{}, err
	}
	body, err := decode[api.AssessmentRequest](q)
	if err != nil {
		return response{}, err
	}
	wish, err := assessmentWish(body)
	if err != nil {
		return response{}, err
	}
	idem, err := idempotencyOf(q, wish)
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		plan, err := s.assessments.Plan(wish)
		return s.planned(q, plan, err)
	}
	r, op, err := s.assessments.Create(q.Context(), q.who.Actor, wish, idem)
	switch {
	case err != nil:
		return response{}, err
	case wish.Report == nil:
		return accepted(*op), nil
	}
	return response{status: http.StatusCreated, header: http.Header{"Location": {"/v1/assessments/" + r.Name}}, body: s.assessmentOf(r)}, nil
}

// checkInspectionVersion is there to be asked first: of another version of gpuvirt an
// inspection has fields that would be refused one by one.
func checkInspectionVersion(body []byte) error {
	var head struct {
		Inspection *struct {
			Version *int `json:"version"`
		} `json:"inspection"`
	}
	if json.Unmarshal(body, &head) != nil || head.Inspection == nil {
		return nil // what is wrong is told where all is read
	}
	switch v := head.Inspection.Version; {
	case v == nil:
		return invalid(`field "inspection.version" is missing: is this what "gpuvirt p2v inspect" wrote?`)
	case *v != report.Version:
		return invalid(`field "inspection.version" is %d, and this daemon reads %d: inspect with the same version of gpuvirt`, *v, report.Version)
	}
	return nil
}

func assessmentWish(body api.AssessmentRequest) (report.Wish, error) {
	w := report.Wish{Name: body.Name, Report: body.Inspection}
	if err := checkAssignmentName(w.Name); err != nil {
		return w, invalid("field %q is malformed: %w", "name", err)
	}
	if (body.Source == nil) == (body.Inspection == nil) {
		return w, invalid("there must be either a field %q or a field %q", "source", "inspection")
	}
	const longest = int(100 * 365 * 24 * time.Hour / time.Second) // what a time.Duration holds, and a shorter one is for p2v to say
	for _, f := range []struct {
		name    string
		seconds int
		into    *time.Duration
	}{{"window_seconds", body.WindowSeconds, &w.Window}, {"interval_seconds", body.IntervalSeconds, &w.Interval}} {
		if f.seconds < 0 || f.seconds > longest {
			return w, invalid("field %q is %d, which is no number of seconds", f.name, f.seconds)
		}
		*f.into = time.Duration(f.seconds) * time.Second
	}
	if body.Inspection != nil {
		if err := body.Inspection.Check(); err != nil {
			return w, invalid("field %q is malformed: %w", "inspection", err)
		}
		return w, nil
	}
	source, err := report.Source(*body.Source).Complete()
	if err != nil {
		return w, invalid("field %q is malformed: %w", "source", err)
	}
	w.Source = &source
	return w, nil
}

func (s *Server) currentAssessment(name string) func() (any, error) {
	return func() (any, error) {
		r, err := s.assessments.Assessment(name)
		return s.assessmentOf(r), err
	}
}

func finishAssessment(s *Server, q *request) (response, error) {
	name := q.path["assessment"]
	if err := q.precondition(s.currentAssessment(name)); err != nil {
		return response{}, err
	}
	if q.dryRun() {
		r, err := s.assessments.Assessment(name)
		return ok(planOf(gpu.Plan{Summary: "end the watching of " + name + " early", Changes: r.State != report.StateDone && !r.Enough})), err
	}
	r, err := s.assessments.Finish(name)
	return object(s.assessmentOf(r)), err
}

func forgetAssessment(s *Server, q *request) (response, error) {
	name := q.path["assessment"]
	if err := q.precondition(s.currentAssessment(name)); err != nil {
		return response{}, err
	}
	if q.dryRun() {
		_, err := s.assessments.PlanDelete(name)
		return s.planned(q, gpu.Plan{Summary: "delete assessment " + name, Changes: err == nil, Refusal: err}, nil)
	}
	r, err := s.assessments.Delete(name)
	return ok(s.assessmentOf(r)), err
}
