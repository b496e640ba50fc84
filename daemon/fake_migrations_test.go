package daemon

import (
	"context"
	"sync/atomic"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/verify"
)

// fakeMigrations has one that is ready, "gpu7", one that was rolled back, "gone", and one of a
// server that is off, "rest", which is passed over.
type fakeMigrations struct {
	*fakeAssessments

	copied atomic.Uint64 // bytes that the pass over the disk of "rest" has settled
}

func (f *fakeMigrations) Problems(context.Context) []string { return f.host.mirrors }

func (f *fakeMigrations) Migrations() ([]move.Migration, error) {
	leave, err := f.host.enter()
	defer leave()
	if err != nil {
		return nil, err
	}
	r := move.Record{
		Name: "gone", Assessment: "carried", Hostname: "gpu7", Source: report.Source{Address: "a", Port: 22, User: "root", HostKey: "SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8", Credential: "c"},
		Actor: "root", Created: born, Operation: "01KAR2Z7T4Y2M8Q6V0R9X3B0AD", Copy: move.Copy{}.Complete(), Ended: move.PhaseRolledBack,
	}
	running := r
	running.Name, running.Ended, running.Forecast, running.Heard = "gpu7", "", &move.Forecast{FinalSeconds: 3, BudgetSeconds: 600, Fits: true, Converges: true}, born
	running.VM = &move.VM{UUID: "5f0c8a5e-3f0e-4b64-9a0b-8c2a4a1d9c10", Name: "gpu7", Slices: []move.Slice{{Assignment: "gpu7", Profile: "H100-2-20C", GPU: "0000:41:00.0"}}}
	running.Reservation = &move.Reservation{State: move.Ending, Lease: 30 * 24 * 3600, Until: born}
	running.Attempts = []move.Attempt{{
		Kind: move.Rehearsal, Actor: "root", Asked: born, State: move.Passed, CopyWaits: "no room", Began: born, Ended: born, Before: &verify.Baseline{Taken: born},
		Report: &verify.Report{Began: born, Ended: born, Verdict: verify.StateOK},
	}}
	running.Disks = []move.Disk{{Name: "nvme0n1", ID: "wwn:x", Size: 1 << 30, Total: 1, Passes: []move.Pass{{Started: born, Seconds: 3, Complete: true}}}}
	r.Keys = []move.Key{{Volume: "nvme0n1p3"}, {Volume: "sda", Credential: "gpu7-sda"}}
	rest := running
	rest.Name, rest.Source, rest.DisksFrom, rest.Attempts = "rest", report.Source{}, []move.DiskFrom{{Disk: "nvme0n1", Image: "/srv/images/x.raw"}}, nil
	off, asked := running, running
	off.Name, off.Fence = "off", move.FenceOff
	asked.Name, asked.Fence = "asked", move.FenceAsked
	left := 12.5
	passed := &move.Progress{Disk: "nvme0n1", Done: f.copied.Load(), Total: 1 << 30, Rate: 43e6, Remaining: &left}
	return []move.Migration{{Record: r, Phase: move.PhaseRolledBack, Locked: []string{"nvme0n1p3"}}, {Record: running, Phase: move.PhaseReady}, {Record: rest, Phase: move.PhaseReady, Progress: passed}, {Record: off, Phase: move.PhaseWaiting}, {Record: asked, Phase: move.PhaseWaiting}}, nil
}

func (f *fakeMigrations) Migration(name string) (move.Migration, error) {
	all, err := f.Migrations()
	for _, m := range all {
		if m.Name == name {
			return m, nil
		}
	}
	if err == nil {
		err = gpu.Errorf(gpu.CodeNotFound, "cannot find migration %q: there is no record of it", name)
	}
	return move.Migration{}, err
}

func (f *fakeMigrations) Plan(_ context.Context, w move.Wish) (assess.Plan, error) {
	r, err := f.Assessment(w.Assessment)
	if err != nil {
		return assess.Plan{}, err
	}
	if r.Report == nil {
		return assess.Plan{}, gpu.Errorf(gpu.CodeConflict, "nothing was seen")
	}
	return assess.NewPlan(*r.Report, w.Plan, assess.HostState{}, assess.Policy{}, assess.BuiltInDrivers()), nil
}

func (f *fakeMigrations) PlanOf(ctx context.Context, name string) (assess.Plan, error) {
	m, err := f.Migration(name)
	if err != nil {
		return assess.Plan{}, err
	}
	return f.Plan(ctx, move.Wish{Assessment: m.Assessment, Plan: m.Plan})
}

func (f *fakeMigrations) Refusal(_ context.Context, w move.Wish) error {
	if _, err := f.Assessment(w.Assessment); err != nil {
		return err
	}
	if _, err := f.Migration(w.Name); err == nil {
		return gpu.Errorf(gpu.CodeConflict, "there is a migration of this name")
	}
	return nil
}

func (f *fakeMigrations) Create(ctx context.Context, actor string, w move.Wish, _ gpu.Idempotency) (operation.Operation, error) {
	if err := f.Refusal(ctx, w); err != nil {
		return operation.Operation{}, err
	}
	return f.write("Create", actor)
}

func (f *fakeMigrations) changed(what, name string) (move.Migration, error) {
	if _, err := f.write(what, ""); err != nil {
		return move.Migration{}, err
	}
	return f.Migration(name)
}

func (f *fakeMigrations) SetCopy(name string, _ move.Copy) (move.Migration, error) {
	return f.changed("SetCopy", name)
}

func (f *fakeMigrations) SetKeys(name string, _ []move.Key) (move.Migration, error) {
	return f.changed("SetKeys", name)
}

func (f *fakeMigrations) Sync(name string) (move.Migration, error) { return f.changed("Sync", name) }

func (f *fakeMigrations) Retry(name string) (move.Migration, error) { return f.changed("Retry", name) }

func (f *fakeMigrations) Rollback(name string) (move.Migration, error) {
	return f.changed("Rollback", name)
}

func (f *fakeMigrations) Rehearse(_ context.Context, name, _ string, _ move.CutWish) (move.Migration, error) {
	return f.changed("Rehearse", name)
}

func (f *fakeMigrations) CutOver(_ context.Context, name, _ string, _ move.CutWish) (move.Migration, error) {
	return f.changed("CutOver", name)
}

func (f *fakeMigrations) PlanTry(_ context.Context, name string, kind move.AttemptKind, w move.CutWish) (move.Migration, error) {
	m, err := f.Migration(name)
	if err == nil {
		err = m.Refuses(kind, w)
	}
	return m, err
}

func (f *fakeMigrations) Reserve(_ context.Context, name string, _ *int) (move.Migration, error) {
	return f.changed("Reserve", name)
}

func (f *fakeMigrations) PlanReserve(_ context.Context, name string, _ *int) (move.Migration, error) {
	m, err := f.Migration(name)
	if err == nil {
		_, err = m.Allows(move.ActReserve)
	}
	return m, err
}

func (f *fakeMigrations) Withdraw(name, _ string) (move.Migration, error) {
	return f.changed("Withdraw", name)
}

func (f *fakeMigrations) Fenced(name, _ string) (move.Migration, error) {
	return f.changed("Fenced", name)
}

func (f *fakeMigrations) Accept(name, _, _ string) (move.Migration, error) {
	return f.changed("Accept", name)
}

func (f *fakeMigrations) Delete(_ context.Context, name string) (move.Migration, error) {
	if _, err := f.write("Delete", ""); err != nil {
		return move.Migration{}, err
	}
	return f.PlanDelete(name)
}

func (f *fakeMigrations) PlanDelete(name string) (move.Migration, error) {
	m, err := f.Migration(name)
	if err == nil && m.Ended == "" {
		err = gpu.Errorf(gpu.CodeConflict, "cannot delete migration %q: it is %s", name, m.Phase)
	}
	return m, err
}
