package daemon

import (
	"context"
	"slices"

	"gpuvirt/api"
	"gpuvirt/gpu"
	"gpuvirt/internal/secret"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/verify"
)

// Migrations is what the routes need of the moves of servers. Their errors are as those of
// Host.
type Migrations interface {
	Migrations() ([]move.Migration, error)
	Migration(name string) (move.Migration, error)
	// Plan says how a move would be carried out now; a blocked one is no error.
	Plan(ctx context.Context, w move.Wish) (assess.Plan, error)
	PlanOf(ctx context.Context, name string) (assess.Plan, error)
	// Refusal says why Create would refuse for another reason than what the plan says.
	Refusal(ctx context.Context, w move.Wish) error
	Create(ctx context.Context, actor string, w move.Wish, idem gpu.Idempotency) (operation.Operation, error)
	SetCopy(name string, c move.Copy) (move.Migration, error)
	SetKeys(name string, keys []move.Key) (move.Migration, error)
	Sync(name string) (move.Migration, error)
	Retry(name string) (move.Migration, error)
	Rollback(name string) (move.Migration, error)
	Rehearse(ctx context.Context, name, actor string, w move.CutWish) (move.Migration, error)
	CutOver(ctx context.Context, name, actor string, w move.CutWish) (move.Migration, error)
	// PlanTry says why one of these would be refused.
	PlanTry(ctx context.Context, name string, kind move.AttemptKind, w move.CutWish) (move.Migration, error)
	// Reserve has the lease begin anew, as one of so many seconds where that is not nil.
	Reserve(ctx context.Context, name string, lease *int) (move.Migration, error)
	PlanReserve(ctx context.Context, name string, lease *int) (move.Migration, error)
	Withdraw(name, actor string) (move.Migration, error)
	// Fenced takes an actor's word that the source is off.
	Fenced(name, actor string) (move.Migration, error)
	Accept(name, actor, reason string) (move.Migration, error)
	Delete(ctx context.Context, name string) (move.Migration, error)
	PlanDelete(name string) (move.Migration, error)
	// Problems says what is wrong with where mirrors are kept.
	Problems(ctx context.Context) []string
}

func migrationOf(m move.Migration) api.Migration {
	out := api.Migration{
		Name: m.Name, Assessment: m.Assessment, Hostname: m.Hostname, Phase: string(m.Phase), Reason: m.Reason,
		Operation: m.Operation, CreatedBy: m.Actor, Created: clock(m.Created), Heard: moment(m.Heard),
		Plan: m.Plan.Listed(), Copy: m.Copy, Disks: list(slices.Clone(m.Disks)), Progress: m.Progress, Forecast: m.Ahead(),
		Wanted: m.Wanted.Listed(), VM: m.VM, Attempts: convert(m.Attempts, attemptOf), Fence: string(m.Fence), Accepted: m.Accepted,
		DisksFrom: m.DisksFrom, Certificates: m.Certificates, ReservedUntil: moment(m.Ends()),
	}
	for _, k := range m.Keys {
		out.Keys = append(out.Keys, api.Key{Volume: k.Volume, Credential: k.Credential, Wanted: slices.Contains(m.Locked, k.Volume)})
	}
	if r := m.Reservation; r != nil {
		out.Reservation = &api.Reservation{State: string(r.State), LeaseSeconds: r.Lease, Problem: r.Problem}
	}
	if m.Source.Address != "" {
		s := api.Source(m.Source)
		out.Source = &s
	}
	for i := range out.Disks {
		out.Disks[i].Passes = slices.Clone(list(out.Disks[i].Passes))
		for j := range out.Disks[i].Passes {
			out.Disks[i].Passes[j].Started = clock(out.Disks[i].Passes[j].Started)
		}
	}
	return out
}

// migrationObject answers with a migration. How far its pass is changes with each look, and nobody asks for it:
// it is not in the ETag, so that who has read the rest may change it meanwhile.
func migrationObject(m move.Migration) response {
	res := object(migrationOf(m))
	if m.Progress != nil {
		m.Progress = nil
		res.of = migrationOf(m)
	}
	return res
}

func listMigrations(s *Server, q *request) (response, error) {
	all, err := s.migrations.Migrations()
	if err != nil {
		return response{}, err
	}
	items := filter(q, convert(all, migrationOf), map[string]func(api.Migration) string{
		"phase":      func(m api.Migration) string { return m.Phase },
		"assessment": func(m api.Migration) string { return m.Assessment },
	})
	return page(q, items, func(m api.Migration) string { return m.Name })
}

func getMigration(s *Server, q *request) (response, error) {
	m, err := s.migrations.Migration(q.path["migration"])
	return migrationObject(m), err
}

// getMigrationPlan plans anew with what was asked for and is reserved: the host may be another by now.
func getMigrationPlan(s *Server, q *request) (response, error) {
	p, err := s.migrations.PlanOf(q.Context(), q.path["migration"])
	return ok(api.MigrationPlan{Plan: p}), err
}

func attemptOf(a move.Attempt) move.Attempt {
	a.Asked, a.Began, a.Ended, a.AtRest = clock(a.Asked), clock(a.Began), clock(a.Ended), clock(a.AtRest)
	a.Wish.Stop, a.Left = list(a.Wish.Stop), list(slices.Clone(a.Left))
	for i := range a.Left {
		a.Left[i].Items = list(a.Left[i].Items)
	}
	if a.Before != nil {
		b := *a.Before
		b.Taken, b.Failed, b.Results = clock(b.Taken), list(b.Failed), list(b.Results)
		a.Before = &b
	}
	if a.Report != nil {
		r := *a.Report
		r.Began, r.Ended, r.Results = clock(r.Began), clock(r.Ended), list(r.Results)
		a.Report = &r
	}
	return a
}

func createMigration(s *Server, q *request) (response, error) {
	body, err := decode[api.MigrationRequest](q)
	if err != nil {
		return response{}, err
	}
	w, err := migrationWish(body, q.who.Actor)
	if err != nil {
		return response{}, err
	}
	if w.Name == "" && !q.dryRun() {
		return response{}, invalid("field %q is missing", "name")
	}
	idem, err := idempotencyOf(q, w)
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		p, err := s.migrations.Plan(q.Context(), w)
		if err != nil {
			return response{}, err
		}
		out := api.MigrationPlan{Plan: p}
		if refusal := s.migrations.Refusal(q.Context(), w); refusal != nil {
			out.Problem = problemOf(refusal)
		}
		return ok(out), nil
	}
	op, err := s.migrations.Create(q.Context(), q.who.Actor, w, idem)
	if err != nil {
		return response{}, err
	}
	return accepted(op), nil
}

func migrationWish(body api.MigrationRequest, actor string) (w move.Wish, err error) {
	w = move.Wish{Name: body.Name, Assessment: body.Assessment}
	for field, name := range map[string]string{"name": w.Name, "assessment": w.Assessment} {
		if err := checkAssignmentName(name); err != nil && (name != "" || field != "name") {
			return w, invalid("field %q is malformed: %w", field, err)
		}
	}
	if body.Plan != nil {
		plan, err := planWish(*body.Plan, actor)
		if err != nil {
			return w, err
		}
		w.Plan = plan
	}
	if body.Copy != nil {
		if w.Copy, err = copyOf(*body.Copy, move.Copy{}); err != nil {
			return w, err
		}
	}
	if body.VM != nil {
		w.VM = vmWish(*body.VM)
	}
	if err := w.VM.Check(); err != nil {
		return w, invalid("field %q is malformed: %w", "vm", err)
	}
	for _, d := range body.DisksFrom {
		w.DisksFrom = append(w.DisksFrom, move.DiskFrom(d))
	}
	w.Certificates = body.Certificates
	if w.Keys, err = keysOf(body.Keys); err != nil {
		return w, err
	}
	if w.Lease, err = leaseOf(body.LeaseSeconds); err != nil {
		return w, err
	}
	if err := move.CheckFrom(w.DisksFrom, w.Certificates); err != nil {
		return w, invalid("field %w", err)
	}
	return w, nil
}

func keysOf(keys []api.KeyRequest) (out []move.Key, err error) {
	for _, k := range keys {
		out = append(out, move.Key{Volume: k.Volume, Credential: k.Credential, Passphrase: secret.Text(k.Passphrase)})
	}
	if err := move.CheckKeys(out); err != nil {
		return nil, invalid("field %w", err)
	}
	return out, nil
}

func leaseOf(seconds *int) (*int, error) {
	if seconds != nil {
		if err := move.CheckLease(*seconds); err != nil {
			return nil, invalid("field %w", err)
		}
	}
	return seconds, nil
}

func vmWish(r api.VMRequest) move.VMWish {
	w := move.VMWish{Name: r.Name, Network: r.Network, Bridge: r.Bridge, CPU: r.CPU, Emulated: r.Emulated, Convert: move.Conversion(r.Convert)}
	for _, n := range r.NICs {
		w.NICs = append(w.NICs, move.NIC(n))
	}
	for _, c := range r.Checks {
		w.Checks = append(w.Checks, verify.Check(c))
	}
	return w
}

// copyOf lays what was asked for over what is. The defaults are what is left out, and no 0 that was sent.
func copyOf(r api.CopyRequest, c move.Copy) (move.Copy, error) {
	for field, n := range map[string]*int{"interval_seconds": r.IntervalSeconds, "connections": r.Connections} {
		if n != nil && *n == 0 {
			return c, invalid("field %q cannot be 0: leave it out", "copy."+field)
		}
	}
	set(&c.Bandwidth, r.BandwidthBytesPerSecond)
	set(&c.Interval, r.IntervalSeconds)
	set(&c.Connections, r.Connections)
	set(&c.Compress, r.Compress)
	if err := c.Check(); err != nil {
		return c, invalid("field %q is malformed: %w", "copy", err)
	}
	return c, nil
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func planWish(r api.PlanRequest, actor string) (assess.Wish, error) {
	w := assess.Wish{
		Partitions: []assess.WishPartition{}, Prefer: r.Prefer, GuestDriver: r.GuestDriver, LicenceToken: r.LicenceToken, MemoryBytes: r.MemoryBytes,
		Threads: r.Threads, Disks: list(r.Disks), CopyRate: r.CopyRate, ChangeRate: r.ChangeRate, DowntimeSeconds: r.DowntimeSeconds, Waivers: []assess.Waiver{},
	}
	if !slices.Contains([]string{"", "card", "mig-backed", "time-sliced"}, r.Prefer) {
		return w, invalid("field %q is none of card, mig-backed, time-sliced", "plan.prefer")
	}
	if r.Threads < 0 {
		return w, invalid("field %q cannot be below 0", "plan.threads")
	}
	if r.DowntimeSeconds < 0 {
		return w, invalid("field %q cannot be below 0", "plan.downtime_seconds")
	}
	texts := append([]string{r.GuestDriver}, r.Disks...)
	for i, p := range r.Partitions {
		if p.Source != "" && slices.ContainsFunc(r.Partitions[:i], func(before api.PlanPartitionRequest) bool { return before.Source == p.Source }) {
			return w, invalid("field %q names GPU %q of the server twice", "plan.partitions", p.Source)
		}
		if p.SMs < 0 || !slices.Contains([]string{"", string(assess.Compute), string(assess.Graphics)}, p.Class) {
			return w, invalid("field %q is malformed: %q is 0 or more, and %q is compute or graphics", "plan.partitions", "sms", "class")
		}
		texts = append(texts, p.Source, p.GPU, p.Profile)
		w.Partitions = append(w.Partitions, assess.WishPartition{
			Source: p.Source, GPU: p.GPU, Profile: p.Profile, MemoryBytes: p.MemoryBytes, SMs: p.SMs, Class: assess.Class(p.Class), None: p.None,
		})
	}
	for _, v := range r.Waivers {
		if v.ID == "" || v.Reason == "" {
			return w, invalid("field %q is malformed: a waiver names a concern and gives a reason", "plan.waivers")
		}
		texts = append(texts, v.ID, v.Reason)
		w.Waivers = append(w.Waivers, assess.Waiver{ID: v.ID, Reason: v.Reason, By: actor})
	}
	for _, t := range texts {
		if t == "" {
			continue
		}
		if err := checkText(t); err != nil {
			return w, invalid("field %q is malformed: %w", "plan", err)
		}
	}
	return w, nil
}

func (s *Server) currentMigration(name string) func() (any, error) {
	return func() (any, error) {
		m, err := s.migrations.Migration(name)
		m.Progress = nil // as the ETag
		return migrationOf(m), err
	}
}

func patchMigration(s *Server, q *request) (response, error) {
	name := q.path["migration"]
	body, err := decode[api.MigrationPatch](q)
	if err != nil {
		return response{}, err
	}
	if err := q.precondition(s.currentMigration(name)); err != nil {
		return response{}, err
	}
	m, err := s.migrations.Migration(name)
	if err != nil {
		return response{}, err
	}
	if body.Copy == nil && len(body.Keys) == 0 {
		return response{}, invalid("field %q or %q is missing", "copy", "keys")
	}
	keys, err := keysOf(body.Keys)
	if err != nil {
		return response{}, err
	}
	c := m.Copy
	if body.Copy != nil {
		if c, err = copyOf(*body.Copy, c); err != nil {
			return response{}, err
		}
	}
	if q.dryRun() {
		_, refusal := m.Allows(move.ActChange)
		return s.planned(q, gpu.Plan{Summary: "change how " + name + " is copied", Changes: refusal == nil && (c.Complete() != m.Copy || len(keys) > 0), Refusal: refusal}, nil)
	}
	if len(keys) > 0 {
		if m, err = s.migrations.SetKeys(name, keys); err != nil {
			return response{}, err
		}
	}
	if c.Complete() == m.Copy {
		return migrationObject(m), nil
	}
	m, err = s.migrations.SetCopy(name, c)
	return migrationObject(m), err
}

func syncMigration(s *Server, q *request) (response, error) {
	return s.actOn(q, "pass over the disks of "+q.path["migration"]+" at once", move.ActSync, s.migrations.Sync)
}

func retryMigration(s *Server, q *request) (response, error) {
	return s.actOn(q, "go on with "+q.path["migration"], move.ActRetry, s.migrations.Retry)
}

func rollbackMigration(s *Server, q *request) (response, error) {
	name, server := q.path["migration"], "the server stays as it is"
	if q.dryRun() {
		m, err := s.migrations.Migration(name)
		if err != nil {
			return response{}, err
		}
		switch m.Fence {
		case move.FenceOff:
			server = "the server is off: start it again afterwards"
		case move.FenceAsked:
			server = "it is not known whether the server is off: look at it, and start it again afterwards if it is"
		case move.FenceNone:
		}
	}
	return s.actOn(q, "take migration "+name+" back: its copies of disks, its VM with what was written in it, and its reservation go; "+server, move.ActRollback, s.migrations.Rollback)
}

func rehearseMigration(s *Server, q *request) (response, error) {
	return s.tryOf(q, move.Rehearsal, "start the VM of "+q.path["migration"]+" on a copy, without a network, and take it down again", s.migrations.Rehearse)
}

func cutOverMigration(s *Server, q *request) (response, error) {
	return s.tryOf(q, move.Cutover, "power the server of "+q.path["migration"]+" off, and start its VM", s.migrations.CutOver)
}

func (s *Server) tryOf(q *request, kind move.AttemptKind, summary string, act func(ctx context.Context, name, actor string, w move.CutWish) (move.Migration, error)) (response, error) {
	name := q.path["migration"]
	body, err := decode[api.TryRequest](q)
	if err != nil {
		return response{}, err
	}
	if body.Unrehearsed != "" {
		if err := checkText(body.Unrehearsed); err != nil {
			return response{}, invalid("field %q is malformed: %w", "unrehearsed", err)
		}
	}
	w := move.CutWish{Stop: list(body.StopServices), Limit: body.LimitSeconds, Verify: body.Verify, Live: body.Live, WhenReady: body.WhenReady, Unrehearsed: body.Unrehearsed, SourceOff: body.SourceOff}
	if err := w.Check(); err != nil {
		return response{}, invalid("field %w", err)
	}
	if err := q.precondition(s.currentMigration(name)); err != nil {
		return response{}, err
	}
	if q.dryRun() {
		m, refusal := s.migrations.PlanTry(q.Context(), name, kind, w)
		if m.Name == "" { // there is none
			return response{}, refusal
		}
		if kind == move.Cutover && m.AtRest() {
			summary = "start the VM of " + name + ", whose server is off"
		}
		return s.planned(q, gpu.Plan{Summary: summary, Changes: refusal == nil, Refusal: refusal}, nil)
	}
	m, err := act(q.Context(), name, q.who.Actor, w)
	return migrationObject(m), err
}

func reserveMigration(s *Server, q *request) (response, error) {
	name := q.path["migration"]
	body, err := decode[api.ReserveRequest](q)
	if err != nil {
		return response{}, err
	}
	lease, err := leaseOf(body.LeaseSeconds)
	if err != nil {
		return response{}, err
	}
	if err := q.precondition(s.currentMigration(name)); err != nil {
		return response{}, err
	}
	if q.dryRun() {
		m, refusal := s.migrations.PlanReserve(q.Context(), name, lease)
		if m.Name == "" { // there is none
			return response{}, refusal
		}
		return s.planned(q, gpu.Plan{Summary: "keep the partitions of " + name + ", or reserve them again", Changes: refusal == nil, Refusal: refusal}, nil)
	}
	m, err := s.migrations.Reserve(q.Context(), name, lease)
	return migrationObject(m), err
}

func withdrawMigration(s *Server, q *request) (response, error) {
	return s.actOn(q, "end what is asked for or under way of "+q.path["migration"]+", and let its server go on", move.ActWithdraw, func(name string) (move.Migration, error) {
		return s.migrations.Withdraw(name, q.who.Actor)
	})
}

func fencedMigration(s *Server, q *request) (response, error) {
	return s.actOn(q, "take it that the server of "+q.path["migration"]+" is off, and start its VM", move.ActFenced, func(name string) (move.Migration, error) {
		return s.migrations.Fenced(name, q.who.Actor)
	})
}

func acceptMigration(s *Server, q *request) (response, error) {
	body, err := decode[api.AcceptRequest](q)
	if err != nil {
		return response{}, err
	}
	if err := checkText(body.Reason); err != nil {
		return response{}, invalid("field %q is malformed: %w", "reason", err)
	}
	return s.actOn(q, "take the VM of "+q.path["migration"]+" as it is", move.ActAccept, func(name string) (move.Migration, error) {
		return s.migrations.Accept(name, q.who.Actor, body.Reason)
	})
}

func (s *Server) actOn(q *request, summary string, what move.Act, act func(name string) (move.Migration, error)) (response, error) {
	name := q.path["migration"]
	if err := q.precondition(s.currentMigration(name)); err != nil {
		return response{}, err
	}
	if q.dryRun() {
		m, err := s.migrations.Migration(name)
		changes, refusal := m.Allows(what)
		return s.planned(q, gpu.Plan{Summary: summary, Changes: changes, Refusal: refusal}, err)
	}
	m, err := act(name)
	return migrationObject(m), err
}

func deleteMigration(s *Server, q *request) (response, error) {
	name := q.path["migration"]
	if err := q.precondition(s.currentMigration(name)); err != nil {
		return response{}, err
	}
	if q.dryRun() {
		_, err := s.migrations.PlanDelete(name)
		return s.planned(q, gpu.Plan{Summary: "delete migration " + name, Changes: err == nil, Refusal: err}, nil)
	}
	m, err := s.migrations.Delete(q.Context(), name)
	return ok(migrationOf(m)), err
}

func migrationQuery() []param {
	return listQuery(
		param{name: "phase", enum: texts(move.Phases())},
		param{name: "assessment", check: checkAssignmentName})
}

// findingsOf is what follows from an inspection.
func findingsOf(a assess.Assessment) *assess.Assessment {
	a.Workloads, a.Concerns, a.Needs = list(a.Workloads), list(a.Concerns), list(a.Needs)
	return &a
}
