package metrics

import (
	"gpuvirt/p2v/move"
)

// Migrations is what is asked of the moves of servers. There are few, and the label of each
// is its name: what the server calls itself is no label.
type Migrations interface {
	Migrations() ([]move.Migration, error)
}

var (
	migrationPhase    = gauge("migration_phase", "How far a migration is: 1 for the phase that it is in.", "migration", "phase")
	migrationDisks    = gauge("migration_disk_bytes", "Size of the disks that a migration moves.", "migration")
	migrationSent     = gauge("migration_last_pass_sent_bytes", "What the last pass over the disks of a migration took from the network.", "migration")
	migrationWritten  = gauge("migration_last_pass_written_bytes", "What had changed on the disks of a migration when they were passed over last.", "migration")
	migrationCopied   = gauge("migration_copied_bytes", "How much of a migration's disks was passed over at least once, by passes that have ended.", "migration")
	migrationDone     = gauge("migration_pass_done_bytes", "How much of a disk is settled by the pass that is under way.", "migration")
	migrationTotal    = gauge("migration_pass_total_bytes", "How much of a disk the pass looks at that is under way.", "migration")
	migrationFinal    = gauge("migration_forecast_final_seconds", "What the last pass would take now, where that is known.", "migration")
	migrationRest     = gauge("migration_forecast_rest_seconds", "For how long the server would be at rest in a cut-over now, where the last pass is known.", "migration")
	migrationDown     = gauge("migration_forecast_downtime_seconds", "What the downtime of a cut-over would be now, as far as its parts are known.", "migration")
	migrationBudget   = gauge("migration_downtime_budget_seconds", "What the downtime has to fit, where it is known what it would be.", "migration")
	migrationHeard    = gauge("migration_heard_timestamp_seconds", "When the server of a migration was heard of last.", "migration")
	migrationAttempts = gauge("migration_attempts", "Rehearsals and cut-overs of a migration that are kept, by how far they are.", "migration", "kind", "state")
	migrationAtRest   = gauge("migration_at_rest", "Whether the server of a migration is at rest now: 1, or 0.", "migration")
	migrationReserved = gauge("migration_reservation", "Whether the partitions of a migration are held for it: 1 for the state that they are in.", "migration", "state")
	migrationUntil    = gauge("migration_reserved_until_timestamp_seconds", "When the partitions of a migration are given back if nobody does anything with it.", "migration")
	migrationDowntime = gauge("migration_downtime_seconds", "From when the server came to rest until its VM was known to be well, of a migration that is done.", "migration")
)

func (s *snapshot) migrations() error {
	all, err := s.conf.Migrations.Migrations()
	if err != nil {
		return err
	}
	for _, m := range all {
		for _, p := range move.Phases() {
			s.send(migrationPhase, oneIf(m.Phase == p), m.Name, string(p))
		}
		s.copying(m)
		s.attempts(m)
		s.reservation(m)
		if !m.Heard.IsZero() {
			s.send(migrationHeard, seconds(m.Heard), m.Name)
		}
	}
	return nil
}

// copying tells how far the disks of a move are.
func (s *snapshot) copying(m move.Migration) {
	var size, copied, sent, written uint64
	passed := false
	for _, d := range m.Disks {
		size += d.Size
		most := uint64(0)
		for _, p := range d.Passes {
			if most = max(most, min(p.Bytes, d.Size)); p.Complete {
				most = d.Size // a pass over what was written since has less
			}
		}
		copied += most
		if n := len(d.Passes); n > 0 {
			passed = true
			sent += d.Passes[n-1].Sent
			written += d.Passes[n-1].Written
		}
	}
	s.send(migrationDisks, float64(size), m.Name)
	s.send(migrationCopied, float64(copied), m.Name)
	if passed {
		s.send(migrationSent, float64(sent), m.Name)
		s.send(migrationWritten, float64(written), m.Name)
	}
	if p := m.Progress; p != nil {
		s.send(migrationDone, float64(p.Done), m.Name)
		s.send(migrationTotal, float64(p.Total), m.Name)
	}
	if f := m.Ahead(); f != nil {
		s.send(migrationFinal, f.FinalSeconds, m.Name)
		s.send(migrationRest, f.RestSeconds, m.Name)
		s.send(migrationDown, f.DowntimeSeconds, m.Name)
		s.send(migrationBudget, f.BudgetSeconds, m.Name)
	}
}

// reservation tells whether the partitions of a move are held.
func (s *snapshot) reservation(m move.Migration) {
	if m.Reservation == nil {
		return
	}
	for _, r := range move.ReservationStates() {
		s.send(migrationReserved, oneIf(m.Reservation.State == r), m.Name, string(r))
	}
	if until := m.Ends(); !until.IsZero() {
		s.send(migrationUntil, seconds(until), m.Name)
	}
}

// attempts tells what was tried of a move.
func (s *snapshot) attempts(m move.Migration) {
	type key struct {
		kind  move.AttemptKind
		state move.AttemptState
	}
	counts := map[key]int{}
	for _, a := range m.Attempts {
		counts[key{a.Kind, a.State}]++
	}
	for _, kind := range []move.AttemptKind{move.Rehearsal, move.Cutover} {
		for _, state := range move.AttemptStates() {
			s.send(migrationAttempts, float64(counts[key{kind, state}]), m.Name, string(kind), string(state))
		}
	}
	last := m.Pending()
	// A rehearsal goes on when the server does: Rest is set then.
	s.send(migrationAtRest, oneIf(last != nil && last.State == move.Running && !last.AtRest.IsZero() && last.Rest == 0), m.Name)
	if c := m.Last(move.Cutover); c != nil && c.Downtime > 0 {
		s.send(migrationDowntime, c.Downtime, m.Name)
	}
}
