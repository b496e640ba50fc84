package move

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"gpuvirt/gpu"
)

// An Act is what somebody may ask of a move.
type Act string

// The acts.
const (
	ActSync     Act = "sync"
	ActRetry    Act = "retry"
	ActChange   Act = "change" // how it copies
	ActRehearse Act = "rehearse"
	ActCutover  Act = "cutover"
	ActWithdraw Act = "withdraw" // what is asked for or under way is not wanted any more
	ActFenced   Act = "fenced"   // somebody says that the source is off
	ActAccept   Act = "accept"   // somebody takes the VM though a check failed
	ActRollback Act = "rollback"
	ActReserve  Act = "reserve" // its partitions are kept for longer, or reserved again
)

// unitName is what systemd's names of units look like.
var unitName = regexp.MustCompile(`^[A-Za-z0-9:_.@\\-]{1,240}\.(service|socket|timer|target|path|mount)$`)

// Allows tells whether an act would change anything; the error is why it would be refused,
// with gpu.CodeConflict.
func (m Migration) Allows(a Act) (changes bool, err error) {
	switch a {
	case ActSync:
		if m.copies() || m.Phase == PhaseRehearsing {
			return true, nil
		}
		return false, m.refuse("sync", "it is %s", m.Phase)
	case ActRetry:
		if !m.Abandoned && (m.Phase == PhaseWaiting || m.Phase == PhaseFailed) {
			return true, nil
		}
		return false, m.refuse("retry", "it is %s, and waits for nobody", m.Phase)
	case ActChange:
		if m.Ended == "" && m.Fence == FenceNone {
			return true, nil
		}
		return false, m.refuse("change", "it is %s", m.Phase)
	case ActRehearse, ActCutover:
		if err := m.tries(a); err != nil {
			return false, err
		}
		return true, nil
	case ActWithdraw:
		switch a := m.Pending(); {
		case a == nil || m.Ended != "":
			return false, m.refuse("withdraw from", "nothing is asked for or under way")
		case m.Fence != FenceNone:
			return false, m.refuse("withdraw from", "its source was told to power off").WithHint("gpuvirt migrate rollback %s takes its VM away", m.Name)
		}
		return true, nil
	case ActFenced:
		if m.Phase == PhaseWaiting && m.Fence == FenceAsked {
			return true, nil
		}
		return false, m.refuse("take the word that the source is off for", "it does not wait for that")
	case ActAccept:
		if m.Phase == PhaseWaiting && m.Unverified {
			return true, nil
		}
		return false, m.refuse("accept", "it is %s, and no check of its VM has failed", m.Phase)
	case ActRollback:
		return m.rollback()
	case ActReserve:
		switch {
		case m.VM == nil || len(m.VM.Slices) == 0:
			return false, m.refuse("reserve partitions of", "its VM gets none")
		case m.Fence != FenceNone || !m.copies() && m.Phase != PhaseWaiting && m.Phase != PhaseRehearsing && m.Phase != PhasePlanned:
			return false, m.refuse("reserve partitions of", "it is %s", m.Phase)
		}
		return true, nil
	}
	return false, gpu.Errorf(gpu.CodeInternal, "cannot %s a migration", a)
}

func (m Migration) refuse(verb, why string, args ...any) *gpu.Error {
	return gpu.Errorf(gpu.CodeConflict, "cannot %s migration %q: "+why, append([]any{verb, m.Name}, args...)...)
}

// copies reports whether passes are made, or will be as soon as the source is reached.
func (m Migration) copies() bool {
	return m.Phase == PhaseReserved || m.Phase == PhaseSyncing || m.Phase == PhaseReady
}

// tries says why there can be no rehearsal or cut-over now.
func (m Migration) tries(a Act) error {
	verb := map[Act]string{ActRehearse: "rehearse", ActCutover: "cut over"}[a]
	switch {
	case m.Pending() != nil:
		return m.refuse(verb, "a %s is under way", m.Pending().Kind).WithBlockers(gpu.Blocker{Kind: "operation", ID: m.Operation})
	case !m.copies():
		return m.refuse(verb, "it is %s", m.Phase)
	case m.VM == nil:
		return m.refuse(verb, "it was begun by a version that could only copy").WithHint("roll it back and begin it again")
	case len(m.Locked) > 0:
		return m.refuse(verb, "%s", m.Unlock())
	case m.Forecast == nil && a == ActRehearse:
		return m.refuse(verb, "its disks were not passed over yet since the source was reached")
	}
	return nil
}

// Refuses says why an attempt would be refused now; nil: it would not.
func (m Migration) Refuses(kind AttemptKind, w CutWish) error {
	err := w.Check()
	switch {
	case err == nil && kind == Cutover && w.Live:
		err = errors.New("live is of rehearsals")
	case err == nil && kind == Rehearsal && (w.Unrehearsed != "" || w.WhenReady || w.SourceOff):
		err = errors.New("unrehearsed, when_ready and source_off are of cut-overs")
	case err == nil && m.AtRest() && len(w.Stop) > 0:
		err = errors.New("stop_services are of servers that run")
	}
	if err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot try a %s of migration %q: %w", kind, m.Name, err)
	}
	if kind == Cutover {
		return m.canCut(w)
	}
	return m.tries(ActRehearse)
}

// canCut says why a cut-over as somebody wants it would be refused.
func (m Migration) canCut(w CutWish) error {
	if err := m.tries(ActCutover); err != nil {
		return err
	}
	last := m.Last(Rehearsal)
	switch {
	case m.AtRest() && !w.SourceOff:
		return m.refuse("cut over", "its disks are read without the server, and nobody has said that it is off").
			WithHint("look at it, and say so: --source-off. Two machines with one address are worse than none")
	case !m.AtRest() && w.SourceOff:
		return m.refuse("cut over", "its server runs, and is powered off as the last step").WithHint("leave out --source-off")
	case w.Unrehearsed != "":
	case last == nil:
		return m.refuse("cut over", "it was not rehearsed").WithHint("gpuvirt migrate rehearse %s; or say why it need not be: --unrehearsed REASON", m.Name)
	case last.State != Passed:
		return m.refuse("cut over", "the last rehearsal has failed: %s", last.Problem).WithHint("rehearse it again, or say why it need not be: --unrehearsed REASON")
	}
	switch {
	case w.WhenReady:
	case m.Forecast == nil:
		return m.refuse("cut over", "its disks were not passed over yet since the source was reached").WithHint("wait, or have it done then: --when-ready")
	default:
		if e := m.excess(w); e != nil {
			return m.refuse("cut over", "%s", e).WithHint("%s", e.hint(m.Name))
		}
	}
	return nil
}

// Unlock says that passphrases are wanted again, and how they are given.
func (m Migration) Unlock() string {
	return fmt.Sprintf("the passphrase of %s is wanted again, as the daemon was started since: gpuvirt migrate set %s --passphrase-file %s=FILE",
		strings.Join(m.Locked, " and "), m.Name, m.Locked[0])
}

func (m Migration) rollback() (changes bool, err error) {
	switch {
	case m.Phase == PhaseDone:
		return false, m.refuse("roll back", "it is done, and its VM goes on by itself")
	case m.Ended != "" || m.Phase == PhaseRollingBack:
		return false, nil
	case m.Abandoned:
		return false, m.refuse("roll back", "its operation was forgotten").
			WithHint("delete it, which removes its mirrors: gpuvirt migrate delete %s", m.Name)
	case m.Phase == PhaseFailed:
		return false, m.refuse("roll back", "that has failed already: %s", m.Reason).
			WithBlockers(gpu.Blocker{Kind: "operation", ID: m.Operation}).WithHint("when that is mended: gpuvirt migrate retry %s", m.Name)
	}
	return true, nil
}
