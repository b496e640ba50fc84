package gpu

// Modes are how a card is set up, beside how it is cut. They are shown, and nothing is
// decided by them.
type Modes struct {
	ECC     *ECC // nil: the card has none, or it is not known
	Compute ComputeMode
}

// ECC tells whether a card's memory corrects errors, now and after the next reset.
type ECC struct{ Current, Pending bool }

// ComputeMode is who may compute on a card at a time; empty: unknown.
type ComputeMode string

// The compute modes.
const (
	ComputeDefault    ComputeMode = "default"           // any number of programs
	ComputeExclusive  ComputeMode = "exclusive-process" // one
	ComputeProhibited ComputeMode = "prohibited"        // none
)
