package token

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/store"
)

func open(t *testing.T, path string) (*Set, *store.Store) {
	t.Helper()
	db, err := store.Open(t.Context(), path, store.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s, err := Open(db, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return s, db
}

func wish(name string, life time.Duration) gpu.TokenWish {
	return gpu.TokenWish{Name: name, Role: "viewer", Expires: time.Now().Add(life)}
}

// A token is known by its text, also after a restart, until it is deleted or expires.
// Nothing of the text is stored.
func TestLife(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, db := open(t, path)
	made, text, err := s.Create(wish("ci", time.Hour), "root")
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := s.Create(wish("other", time.Hour), "root")
	if err != nil {
		t.Fatal(err)
	}
	records, err := db.TokenRecords()
	if err != nil || len(records) != 2 || !slices.ContainsFunc(records, func(r gpu.TokenRecord) bool { return r.ID == made.ID && r.CreatedBy == "root" }) {
		t.Fatalf("%+v, %v", records, err)
	}
	secret := text[len(text)-lengthOf.secret:]
	if row := string(operation.Put(gpu.RecordToken, "x", records).Value); strings.Contains(row, secret) {
		t.Errorf("the secret is stored: %s", row)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	s, _ = open(t, path)
	got, gone, err := s.Check(text)
	if err != nil || got.ID != made.ID || got.Role != "viewer" || got.LastUsed.IsZero() {
		t.Fatalf("%+v, %v", got, err)
	}
	select {
	case <-gone:
		t.Fatal("it is gone")
	default:
	}
	if _, err := s.Delete(made.ID); err != nil {
		t.Fatal(err)
	}
	<-gone
	if _, _, err := s.Check(text); gpu.CodeOf(err) != gpu.CodeUnauthorized {
		t.Errorf("after its deletion: %v", err)
	}
	if _, err := s.Delete(made.ID); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Errorf("deleted twice: %v", err)
	}
	if all := s.Tokens(); len(all) != 1 || all[0].ID != other.ID {
		t.Errorf("%+v", all)
	}
}

// What is no token of this host is refused, whatever is like one in it.
func TestRefused(t *testing.T) {
	s, _ := open(t, filepath.Join(t.TempDir(), "db"))
	elsewhere, _ := open(t, filepath.Join(t.TempDir(), "db"))
	made, text, err := s.Create(wish("ci", time.Hour), "root")
	if err != nil {
		t.Fatal(err)
	}
	_, foreign, err := elsewhere.Create(wish("ci", time.Hour), "root")
	if err != nil {
		t.Fatal(err)
	}
	last := map[byte]string{'A': "B"}[text[len(text)-1]]
	if last == "" {
		last = "A"
	}
	for name, wrong := range map[string]string{
		"nothing": "", "the id": made.ID, "another host's": foreign, "one letter": text[:len(text)-1] + last,
		"longer": text + "A", "shorter": text[:len(text)-1], "lower case": strings.ToLower(text), "its hash": s.held[made.ID].record.Hash,
		"our id, their secret": text[:len(text)-lengthOf.secret] + foreign[len(foreign)-lengthOf.secret:],
		"no underscore":        strings.Replace(text, made.ID+"_", made.ID+"-", 1),
	} {
		_, _, err := s.Check(wrong)
		if gpu.CodeOf(err) != gpu.CodeUnauthorized {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && wrong != "" && strings.Contains(err.Error(), wrong) {
			t.Errorf("%s: the error tells the text: %v", name, err)
		}
	}
	for name, w := range map[string]gpu.TokenWish{
		"taken": wish("ci", time.Hour), "expired": wish("a", -time.Second), "too long": wish("b", MaxLife+time.Hour),
	} {
		if _, text, err := s.Create(w, "root"); err == nil || text != "" {
			t.Errorf("%s: made", name)
		}
	}
	if len(s.Tokens()) != 1 {
		t.Errorf("%+v", s.Tokens())
	}
}

// memory is a store that can fail.
type memory struct {
	mu     sync.Mutex
	rows   map[string]operation.Row
	writes int
	err    error
}

func (m *memory) TokenRecords() ([]gpu.TokenRecord, error) { return nil, m.err }

func (m *memory) Apply(rows ...operation.Row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.writes++
	for _, r := range rows {
		m.rows[r.Key] = r
	}
	return nil
}

// written returns how often it was written to, and the row of a key.
func (m *memory) written(key string) (int, operation.Row) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writes, m.rows[key]
}

// When tokens were used is written now and then, not at each request; one that expired is
// refused at that moment, and forgotten a month later.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &memory{rows: map[string]operation.Row{}}
		s, err := Open(db, slog.New(slog.DiscardHandler), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		made, text, err := s.Create(wish("ci", time.Hour), "root")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.Run(ctx) })
		pass := func(d time.Duration) {
			<-time.After(d)
			synctest.Wait()
		}
		for range 1000 {
			if _, _, err := s.Check(text); err != nil {
				t.Fatal(err)
			}
		}
		pass(time.Hour - time.Second)
		if _, _, err := s.Check(text); err != nil {
			t.Error(err)
		}
		if writes, _ := db.written(made.ID); writes != 2 { // it was made, and used at one time
			t.Errorf("%d writes", writes)
		}
		pass(time.Second)
		if _, _, err := s.Check(text); gpu.CodeOf(err) != gpu.CodeUnauthorized || !strings.Contains(err.Error(), "expired") {
			t.Errorf("after its end: %v", err)
		}
		pass(keepExpired - 2*flushEvery)
		if got, err := s.Token(made.ID); err != nil || got.LastUsed.IsZero() {
			t.Errorf("%+v, %v", got, err)
		}
		pass(4 * flushEvery)
		if len(s.Tokens()) != 1 {
			t.Error("it was forgotten at once: the clock may be wrong")
		}
		pass(sureAfter)
		if _, row := db.written(made.ID); len(s.Tokens()) != 0 || row.Value != nil {
			t.Errorf("%+v, %s", s.Tokens(), row.Value)
		}
		cancel()
		running.Wait()
	})
}

// What could not be stored was not done.
func TestStoreFails(t *testing.T) {
	db := &memory{rows: map[string]operation.Row{}}
	s, err := Open(db, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	made, text, err := s.Create(wish("ci", time.Hour), "root")
	if err != nil {
		t.Fatal(err)
	}
	db.err = errors.New("disk")
	if _, text, err := s.Create(wish("b", time.Hour), "root"); !errors.Is(err, db.err) || text != "" {
		t.Errorf("%v", err)
	}
	if _, err := s.Delete(made.ID); !errors.Is(err, db.err) {
		t.Errorf("%v", err)
	}
	if _, _, err := s.Check(text); err != nil || len(s.Tokens()) != 1 {
		t.Errorf("%v, %+v", err, s.Tokens())
	}
	if _, err := Open(db, s.log, s.now); !errors.Is(err, db.err) {
		t.Errorf("%v", err)
	}
}
