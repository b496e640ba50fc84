package api

// ContentTypeProblem is the media type of a Problem (RFC 9457).
const ContentTypeProblem = "application/problem+json"

// Problem is an error on the wire (RFC 9457) with gpuvirt's members.
type Problem struct {
	Type      string    `json:"type"`
	Title     string    `json:"title"`
	Status    int       `json:"status"`
	Detail    string    `json:"detail"`
	Code      string    `json:"code"`
	Hint      string    `json:"hint,omitempty"`
	Operation string    `json:"operation,omitempty"`
	Step      string    `json:"step,omitempty"` // of an operation's problem
	Blockers  []Blocker `json:"blockers"`
	// Diff maps a field to the stored and the asked-for value, on a conflict of wishes.
	Diff map[string]Difference `json:"diff,omitempty"`
}

// Error returns the detail, so that a client can return a Problem as an error.
func (p *Problem) Error() string { return p.Detail }

// Blocker is what stands in the way.
type Blocker struct {
	Kind string `json:"kind"` // vm, process, driver, operation, partition, gpu
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	Note string `json:"note,omitempty"`
}

// Difference is a field's value as stored and as asked for.
type Difference struct {
	Stored string `json:"stored"`
	Asked  string `json:"asked"`
}
