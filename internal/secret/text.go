package secret

import "fmt"

// Text is a secret that somebody has sent, and that is held in memory. It is neither printed nor
// logged nor written: whoever needs it takes it as a string.
type Text string

// Format prints that there is one.
func (Text) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(a secret)")) }

// MarshalText writes that there is one.
func (Text) MarshalText() ([]byte, error) { return []byte("(a secret)"), nil }
