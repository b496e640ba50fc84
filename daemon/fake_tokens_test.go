package daemon

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/token"
)

// oldToken is one that every test finds, and nobody has the text of.
const oldToken = "01KAR2Z7T4Y2M8Q6V0R9X3B0AA"

// tokenStore is a store of tokens that forgets.
type tokenStore struct {
	mu    sync.Mutex
	count int
}

func (s *tokenStore) writes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

func (s *tokenStore) TokenRecords() ([]gpu.TokenRecord, error) {
	return []gpu.TokenRecord{{
		Token: gpu.Token{ID: oldToken, Name: "old", Role: "viewer", CreatedBy: "root", Created: born, Expires: born.Add(10 * 365 * 24 * time.Hour), LastUsed: born},
		Hash:  "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
	}}, nil
}

func (s *tokenStore) Apply(...operation.Row) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	return nil
}

func newTokens(t testing.TB, store *tokenStore) *token.Set {
	t.Helper()
	s, err := token.Open(store, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newToken makes a token and returns what its holder sends.
func (h *harness) newToken(t testing.TB, name string, role Role, life time.Duration) (gpu.Token, string) {
	t.Helper()
	made, text, err := h.tokens.Create(gpu.TokenWish{Name: name, Role: role.String(), Expires: time.Now().Add(life)}, "root")
	if err != nil {
		t.Fatal(err)
	}
	return made, text
}
