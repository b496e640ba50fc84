package api

import "time"

// Token lets whoever has its secret ask the daemon for what its role may do.
type Token struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Role      string     `json:"role"` // viewer, operator, admin
	CreatedBy string     `json:"created_by"`
	Created   time.Time  `json:"created"`
	Expires   time.Time  `json:"expires"`
	LastUsed  *time.Time `json:"last_used,omitempty"` // to the minute; nil: never
}

// TokenRequest asks for a token.
type TokenRequest struct {
	Name    string     `json:"name"`
	Role    string     `json:"role"`
	Expires *time.Time `json:"expires,omitempty"` // nil: in 90 days
}

// TokenCreated is a token that was made, with its secret, which is told once.
type TokenCreated struct {
	Token  Token  `json:"token"`
	Secret string `json:"secret"` // what to send as "Authorization: Bearer …"
}
