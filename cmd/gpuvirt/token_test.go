package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
)

// A secret in a file is its owner's only; where none was made, there is no file, and one that
// is there stays.
func TestSecretFile(t *testing.T) {
	f, socket := startFake(t)
	path := filepath.Join(t.TempDir(), "token")
	create := func() *session {
		s := &session{args: []string{"token", "create", "ci", "--role", "operator", "--secret-file", path, "-o", "name"}}
		s.run(t.Context(), socket)
		return s
	}
	s := create()
	data, err := os.ReadFile(path)
	info, _ := os.Stat(path)
	if s.code != exitDone || err != nil || string(data) != secret+"\n" || info.Mode() != 0o600 {
		t.Errorf("%s\n%q, %v, %v", s, data, info.Mode(), err)
	}
	if s.stdout != tokens[0].ID+"\n" || strings.Contains(s.stdout+s.stderr, secret) {
		t.Error(s)
	}
	writes := len(f.requests)
	if s := create(); s.code != exitFailed || len(f.requests) != writes {
		t.Errorf("over a file that is there: %s", s)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.answers["POST tokens"] = &api.Problem{Status: 409, Code: "conflict", Detail: "there is one of this name"}
	if s := create(); s.code != exitConflict {
		t.Error(s)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file without a token is left")
	}
}

func TestParseExpiry(t *testing.T) {
	now := time.Date(2026, 11, 26, 10, 0, 0, 5, time.UTC)
	for text, want := range map[string]string{
		"12h": "2026-11-26T22:00:00Z", "30d": "2026-12-26T10:00:00Z", "90m": "2026-11-26T11:30:00Z", "2027-01-31T01:00:00+01:00": "2027-01-31T00:00:00Z",
	} {
		if got, err := parseExpiry(text, now); err != nil || got.Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "0d", "-1d", "1.5d", "99999d", "-5m", "0s", "2027-01-31", "never"} {
		if got, err := parseExpiry(text, now); err == nil {
			t.Errorf("%q: %s", text, got)
		}
	}
}
