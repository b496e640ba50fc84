package p2v

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/p2v/move"
)

// Rehearse asks for the VM to be tried on a copy, with its partitions and without a network.
// The source is at rest for as long as what was written since the last pass takes.
func (m *Migrations) Rehearse(ctx context.Context, name, actor string, w move.CutWish) (move.Migration, error) {
	return m.try(ctx, name, actor, move.Rehearsal, w)
}

// CutOver asks for the server to become the VM now.
func (m *Migrations) CutOver(ctx context.Context, name, actor string, w move.CutWish) (move.Migration, error) {
	return m.try(ctx, name, actor, move.Cutover, w)
}

func (m *Migrations) try(ctx context.Context, name, actor string, kind move.AttemptKind, w move.CutWish) (move.Migration, error) {
	act := move.ActRehearse
	if kind == move.Cutover {
		act = move.ActCutover
	}
	if v, err := m.PlanTry(ctx, name, kind, w); err != nil {
		return v, err
	}
	r, err := m.ask(name, act, func(v move.Migration, r *move.Record) error {
		if err := v.Refuses(kind, w); err != nil {
			return err
		}
		r.Try(move.Attempt{Kind: kind, Wish: w, Actor: actor, Asked: m.cfg.Now().UTC(), State: move.Asked})
		m.want(v.Reservation, r)
		m.tries.raise(name)
		return nil
	})
	if err != nil {
		return move.Migration{}, err
	}
	m.hurry() // where its partitions were given back
	return m.view(r)
}

// Withdraw ends what is asked for or under way, unless the source was told to power off.
func (m *Migrations) Withdraw(name, actor string) (move.Migration, error) {
	r, err := m.ask(name, move.ActWithdraw, func(_ move.Migration, r *move.Record) error {
		if a := r.Pending(); a.State == move.Asked {
			withdrawn(a, m.cfg.Now(), actor)
		}
		return nil
	})
	if err != nil {
		return move.Migration{}, err
	}
	if cancel, there := m.trying.Load(name); there {
		cancel.(context.CancelCauseFunc)(&withdrawnError{actor}) //nolint:forcetypeassert,errcheck // nothing else is put there
	}
	return m.view(r)
}

// A withdrawnError is the cause of the context of an attempt that somebody does not want any
// more.
type withdrawnError struct{ actor string }

func (e *withdrawnError) Error() string { return e.actor + " does not want it any more" }

func withdrawn(a *move.Attempt, now time.Time, actor string) {
	a.Ended, a.State, a.Problem, a.CopyWaits = now.UTC(), move.Withdrawn, (&withdrawnError{actor}).Error(), ""
}

// Fenced takes somebody's word that the source is off, where that could not be found out.
func (m *Migrations) Fenced(name, actor string) (move.Migration, error) {
	_, err := m.ask(name, move.ActFenced, func(_ move.Migration, r *move.Record) error {
		r.Fence, r.CameFrom = move.FenceOff, netip.Addr{}
		if a := r.Last(move.Cutover); a != nil {
			a.State, a.Problem = move.Moved, ""
			a.Phase = "the source is off, as " + actor + " says"
		}
		return nil
	})
	if err != nil {
		return move.Migration{}, err
	}
	return m.Retry(name)
}

// Accept takes a VM as it is though a check of it has failed.
func (m *Migrations) Accept(name, actor, reason string) (move.Migration, error) {
	_, err := m.ask(name, move.ActAccept, func(_ move.Migration, r *move.Record) error {
		r.Accepted = actor + ": " + reason
		return nil
	})
	if err != nil {
		return move.Migration{}, err
	}
	return m.Retry(name)
}

// inUse says which moves rest on an assessment, nil: none does.
func (c Config) inUse(assessment string) error {
	all, err := c.Store.MigrationRecords()
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.Assessment == assessment && r.Ended == "" {
			return gpu.Errorf(gpu.CodeConflict, "cannot delete assessment %q: a migration rests on it", assessment).
				WithBlockers(gpu.Blocker{Kind: "migration", ID: r.Name})
		}
	}
	return nil
}

// discardForgotten is Delete's way to what a forgotten move has left.
func (m *Migrations) discardForgotten(ctx context.Context, v move.Migration) error {
	if !v.Abandoned {
		return nil
	}
	// Without its folder there is no VM, whoever has removed it.
	if _, err := os.Lstat(m.folder(v.Name)); v.Fence != move.FenceNone && !errors.Is(err, fs.ErrNotExist) {
		return gpu.Errorf(gpu.CodeConflict, "cannot delete migration %q: its source was powered off, and its VM may be all there is", v.Name).
			WithHint("look which of them is to stay; remove %s if the VM is of no use, and delete again", m.folder(v.Name))
	}
	if err := m.clear(ctx, v.Record); err != nil {
		refusal := gpu.Wrap(err, gpu.CodeConflict, "cannot delete migration %q: what it left cannot be removed", v.Name)
		refusal.Code = gpu.CodeConflict
		if refusal.Hint == "" {
			refusal.Hint = "mend that, or remove what is in the way; then: gpuvirt migrate delete " + v.Name
		}
		return refusal
	}
	return nil
}
