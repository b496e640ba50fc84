package gpu

import "time"

// A Token lets whoever has its secret ask the daemon for what its role may do.
type Token struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"` // one token has it at a time
	Role      string    `json:"role"` // viewer, operator, admin
	CreatedBy string    `json:"created_by"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	LastUsed  time.Time `json:"last_used,omitzero"` // to the minute; zero: never
}

// TokenRecord is a token as it is kept: without its secret.
type TokenRecord struct {
	Token

	Hash string `json:"hash"` // SHA-256 of the text that the holder sends, in hexadecimal
}

// TokenWish asks for a token.
type TokenWish struct {
	Name    string
	Role    string
	Expires time.Time
}
