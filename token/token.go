// Package token owns the tokens by which programs are known to the daemon over the
// network: who has one, what it may do and until when. A token that was deleted, or has
// expired, is refused from that moment on. Secrets are not kept, only what tells whether
// one is right.
package token

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// How long tokens live, and how many there are.
const (
	DefaultLife = 90 * 24 * time.Hour
	MaxLife     = 366 * 24 * time.Hour
	most        = 1000
	keepExpired = 30 * 24 * time.Hour // so that it can be seen why one stopped working
	flushEvery  = 5 * time.Minute     // of when tokens were used last
	sureAfter   = 24 * time.Hour      // that the clock is right that says so
)

// What the text of a token looks like: the prefix tells programs that search for secrets
// what they have found.
const (
	prefix      = "gpuvirt_"
	secretBytes = 32
)

var lengthOf = struct{ id, secret, text int }{
	ulid.EncodedSize, base64.RawURLEncoding.EncodedLen(secretBytes),
	len(prefix) + ulid.EncodedSize + 1 + base64.RawURLEncoding.EncodedLen(secretBytes),
}

// Store is where tokens are kept.
type Store interface {
	TokenRecords() ([]gpu.TokenRecord, error)
	Apply(rows ...operation.Row) error
}

// A Set is all tokens of a daemon. Its methods may be called concurrently.
type Set struct {
	store Store
	log   *slog.Logger
	now   func() time.Time

	writing sync.Mutex // one change at a time; before mu
	mu      sync.RWMutex
	held    map[string]*held // by id
}

type held struct {
	record gpu.TokenRecord // never changes, and says nothing of its use
	hash   []byte
	gone   chan struct{} // closed when it is deleted
	// expired is when it was first seen that it is to be forgotten; flush's own. A clock that
	// is wrong for a while after a boot takes no token away.
	expired time.Time
	// The minute of its last use, as it is and as it is stored: since 1970, 0: never.
	used, stored atomic.Int64
}

// token returns the token with when it was used last.
func (h *held) token() gpu.Token {
	t := h.record.Token
	if used := h.used.Load(); used != 0 {
		t.LastUsed = time.Unix(used*60, 0).UTC()
	}
	return t
}

// Open reads the tokens of a store.
func Open(store Store, log *slog.Logger, now func() time.Time) (*Set, error) {
	records, err := store.TokenRecords()
	if err != nil {
		return nil, err
	}
	s := &Set{store: store, log: log, now: now, held: map[string]*held{}}
	for _, r := range records {
		if err := s.hold(r); err != nil {
			log.Error("a token cannot be used", "token", r.ID, "err", err)
		}
	}
	return s, nil
}

func (s *Set) hold(r gpu.TokenRecord) error {
	hash, err := hex.DecodeString(r.Hash)
	if err != nil || len(hash) != sha256.Size {
		return fmt.Errorf("cannot read token %q: its hash is none", r.ID)
	}
	h := &held{record: r, hash: hash, gone: make(chan struct{})}
	if !r.LastUsed.IsZero() {
		h.used.Store(r.LastUsed.Unix() / 60)
		h.stored.Store(r.LastUsed.Unix() / 60)
	}
	h.record.LastUsed = time.Time{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[r.ID] = h
	return nil
}

// Tokens lists the tokens, sorted by id, which is by age; those that have expired too.
func (s *Set) Tokens() []gpu.Token {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]gpu.Token, 0, len(s.held))
	for _, id := range slices.Sorted(maps.Keys(s.held)) {
		out = append(out, s.held[id].token())
	}
	return out
}

// Token returns one; without one the error has gpu.CodeNotFound.
func (s *Set) Token(id string) (gpu.Token, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	h, ok := s.held[id]
	if !ok {
		return gpu.Token{}, gpu.Errorf(gpu.CodeNotFound, "there is no token %q", id)
	}
	return h.token(), nil
}

// Plan says whether Create would make such a token: nil, or why not.
func (s *Set) Plan(w gpu.TokenWish) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	now := s.now()
	switch {
	case !w.Expires.After(now):
		return gpu.Errorf(gpu.CodeInvalid, "cannot make token %q: it would have expired already", w.Name)
	case w.Expires.After(now.Add(MaxLife)):
		return gpu.Errorf(gpu.CodeInvalid, "cannot make token %q: a token lives %d days at most", w.Name, MaxLife/(24*time.Hour))
	case len(s.held) >= most:
		return gpu.Errorf(gpu.CodeConflict, "cannot make token %q: there are %d, which is all there may be", w.Name, most).
			WithHint("delete those that nobody uses any more")
	}
	for id, h := range s.held {
		if h.record.Name == w.Name {
			return gpu.Errorf(gpu.CodeConflict, "cannot make token %q: there is one of this name", w.Name).
				WithHint("choose another name, or delete token %s first", id)
		}
	}
	return nil
}

// Create makes a token for whoever by is. The text is what its holder sends; it is told here
// and never again.
func (s *Set) Create(w gpu.TokenWish, by string) (t gpu.Token, text string, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.Plan(w); err != nil {
		return gpu.Token{}, "", err
	}
	now := s.now()
	id, err := ulid.New(ulid.Timestamp(now), rand.Reader)
	if err != nil {
		return gpu.Token{}, "", fmt.Errorf("cannot make token %q: %w", w.Name, err)
	}
	secret := make([]byte, secretBytes)
	if _, err := rand.Read(secret); err != nil {
		return gpu.Token{}, "", fmt.Errorf("cannot make token %q: %w", w.Name, err)
	}
	text = prefix + id.String() + "_" + base64.RawURLEncoding.EncodeToString(secret)
	hash := sha256.Sum256([]byte(text))
	r := gpu.TokenRecord{
		Token: gpu.Token{ID: id.String(), Name: w.Name, Role: w.Role, CreatedBy: by, Created: now.UTC(), Expires: w.Expires.UTC()},
		Hash:  hex.EncodeToString(hash[:]),
	}
	if err := s.store.Apply(operation.Put(gpu.RecordToken, r.ID, r)); err != nil {
		return gpu.Token{}, "", fmt.Errorf("cannot make token %q: %w", w.Name, err)
	}
	return r.Token, text, s.hold(r)
}

// Delete ends a token: it is refused from now on, and whoever waits on what Check
// returned for it is told.
func (s *Set) Delete(id string) (gpu.Token, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	t, err := s.Token(id)
	if err != nil {
		return t, err
	}
	if err := s.store.Apply(operation.Delete(gpu.RecordToken, id)); err != nil {
		return t, fmt.Errorf("cannot delete token %q: %w", id, err)
	}
	s.drop(id)
	return t, nil
}

func (s *Set) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.held[id].gone)
	delete(s.held, id)
}

// errUnknown does not tell whether there is such a token.
var errUnknown = errors.New("the token is not one of this host, or was deleted")

// Check tells whose token a text is, and a channel that is closed when it is deleted. What
// is none is an error with gpu.CodeUnauthorized that holds nothing of the text.
func (s *Set) Check(text string) (gpu.Token, <-chan struct{}, error) {
	id, err := idOf(text)
	if err != nil {
		return gpu.Token{}, nil, gpu.Errorf(gpu.CodeUnauthorized, "%w", err)
	}
	s.mu.RLock()
	h := s.held[id]
	s.mu.RUnlock()
	want := make([]byte, sha256.Size)
	if h != nil {
		want = h.hash
	}
	hash := sha256.Sum256([]byte(text))
	if subtle.ConstantTimeCompare(hash[:], want) != 1 || h == nil {
		return gpu.Token{}, nil, gpu.Errorf(gpu.CodeUnauthorized, "%w", errUnknown)
	}
	now := s.now()
	if !now.Before(h.record.Expires) {
		return gpu.Token{}, nil, gpu.Errorf(gpu.CodeUnauthorized, "the token %q expired at %s", h.record.Name, h.record.Expires.Format(time.RFC3339)).
			WithHint("ask an administrator for another one: gpuvirt token create")
	}
	h.used.Store(now.Unix() / 60)
	return h.token(), h.gone, nil
}

// idOf reads which token a text says it is.
func idOf(text string) (string, error) {
	rest, ours := strings.CutPrefix(text, prefix)
	if !ours || len(text) != lengthOf.text || rest[lengthOf.id] != '_' {
		return "", errors.New("what was sent is no token of gpuvirt")
	}
	return rest[:lengthOf.id], nil
}

// Run keeps what is stored up to date until ctx ends: when tokens were used, and those
// that expired long ago not at all.
func (s *Set) Run(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.flush()
		case <-ctx.Done():
			s.flush()
			return
		}
	}
}

// flush writes what changed in one transaction.
func (s *Set) flush() {
	s.writing.Lock()
	defer s.writing.Unlock()
	var rows []operation.Row
	var old []string
	var flushed []func()
	s.mu.RLock()
	for id, h := range s.held {
		t, used := h.token(), h.used.Load()
		switch {
		case s.now().Sub(t.Expires) <= keepExpired:
			h.expired = time.Time{}
		case h.expired.IsZero():
			h.expired = time.Now()
		case time.Since(h.expired) >= sureAfter:
			rows, old = append(rows, operation.Delete(gpu.RecordToken, id)), append(old, id)
			continue
		}
		if used != h.stored.Load() {
			rows = append(rows, operation.Put(gpu.RecordToken, id, gpu.TokenRecord{Token: t, Hash: h.record.Hash}))
			flushed = append(flushed, func() { h.stored.Store(used) })
		}
	}
	s.mu.RUnlock()
	if len(rows) == 0 {
		return
	}
	if err := s.store.Apply(rows...); err != nil {
		s.log.Warn("cannot store when tokens were used", "err", err)
		return
	}
	for _, done := range flushed {
		done()
	}
	for _, id := range old {
		s.drop(id)
	}
}
