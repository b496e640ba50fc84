package daemon

import (
	"slices"

	"gpuvirt/api"
	"gpuvirt/gpu"
	"gpuvirt/p2v/move"
)

func listAssignments(s *Server, q *request) (response, error) {
	assignments, err := s.host.Assignments(q.Context())
	if err != nil {
		return response{}, err
	}
	items := filter(q, convert(assignments, assignmentOf), map[string]func(api.Assignment) string{
		"profile": func(a api.Assignment) string { return a.Profile },
		"state":   func(a api.Assignment) string { return a.State },
	})
	// Two filters mean either of two fields.
	either := func(name string, get func(api.Assignment) []string) {
		if want, given := q.query[name]; given {
			items = slices.DeleteFunc(items, func(a api.Assignment) bool { return !slices.Contains(get(a), want) })
		}
	}
	either("vm", func(a api.Assignment) []string { return []string{a.VM, a.VMName} })
	either("gpu", func(a api.Assignment) []string { return []string{a.GPU, a.PartitionGPU} })
	return page(q, items, func(a api.Assignment) string { return a.Name })
}

func getAssignment(s *Server, q *request) (response, error) {
	a, err := s.host.Assignment(q.Context(), q.path["assignment"])
	if err != nil {
		return response{}, err
	}
	return object(assignmentOf(a)), nil
}

func putAssignment(s *Server, q *request) (response, error) {
	body, err := decode[api.AssignmentRequest](q)
	if err != nil {
		return response{}, err
	}
	wish, err := wishOf(body)
	if err != nil {
		return response{}, err
	}
	name := q.path["assignment"]
	if err := q.precondition(s.currentAssignment(q, name)); err != nil {
		return response{}, err
	}
	if q.dryRun() {
		plan, err := s.host.PlanAssignment(q.Context(), name, wish)
		return s.planned(q, plan, err)
	}
	a, op, err := s.host.PutAssignment(q.Context(), q.who.Actor, name, wish)
	if err != nil {
		return response{}, err
	}
	if op != nil {
		return accepted(*op), nil
	}
	return object(assignmentOf(a)), nil
}

func applyAssignments(s *Server, q *request) (response, error) {
	body, err := decode[api.ApplyRequest](q)
	if err != nil {
		return response{}, err
	}
	wishes, err := wishesOf(body)
	if err != nil {
		return response{}, err
	}
	idem, err := idempotencyOf(q, wishes)
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		plan, err := s.host.PlanApplyAssignments(q.Context(), wishes)
		return s.planned(q, plan, err)
	}
	all, op, err := s.host.ApplyAssignments(q.Context(), q.who.Actor, wishes, idem)
	if err != nil {
		return response{}, err
	}
	if op != nil {
		return accepted(*op), nil
	}
	return object(api.List[api.Assignment]{Items: convert(all, assignmentOf)}), nil
}

func deleteAssignment(s *Server, q *request) (response, error) {
	name := q.path["assignment"]
	if err := q.precondition(s.currentAssignment(q, name)); err != nil {
		return response{}, err
	}
	if q.dryRun() {
		plan, err := s.host.PlanDeleteAssignment(q.Context(), name)
		if needed := s.needed(q, name); err == nil && needed != nil {
			plan.Changes, plan.Refusal = false, needed
		}
		return s.planned(q, plan, err)
	}
	if err := s.needed(q, name); err != nil {
		return response{}, err
	}
	op, err := s.host.DeleteAssignment(q.Context(), q.who.Actor, name)
	if err != nil {
		return response{}, err
	}
	return accepted(op), nil
}

// needed refuses to delete an assignment by which a migration that goes on has its partition: the host
// knows nothing of migrations.
func (s *Server) needed(q *request, name string) error {
	if s.migrations == nil {
		return nil
	}
	all, err := s.migrations.Migrations()
	if err != nil {
		return gpu.Wrap(err, gpu.CodeInternal, "cannot look whether a migration needs assignment %q", name)
	}
	if !slices.ContainsFunc(all, func(m move.Migration) bool { return m.GoesOn() }) {
		return nil
	}
	a, err := s.host.Assignment(q.Context(), name)
	if err != nil {
		return nil //nolint:nilerr // who deletes it says so
	}
	for _, m := range all {
		if m.Needs(name, a.Wish.VM) {
			return gpu.Errorf(gpu.CodeConflict, "cannot detach %q: migration %s has its partition by it", name, m.Name).
				WithBlockers(gpu.Blocker{Kind: "migration", ID: m.Name}).
				WithHint("take the migration back, which deletes it: gpuvirt migrate rollback %s", m.Name)
		}
	}
	return nil
}

func (s *Server) currentAssignment(q *request, name string) func() (any, error) {
	return func() (any, error) {
		a, err := s.host.Assignment(q.Context(), name)
		return assignmentOf(a), err
	}
}
