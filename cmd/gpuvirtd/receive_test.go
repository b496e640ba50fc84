package main

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func authorized(t *testing.T) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(key))
}

func TestAdmission(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		mode  os.FileMode
		keys  int
		want  string // of the error; empty: none
	}{
		"password":       {files: map[string]string{p2vPassword: "correct horse\n"}},
		"keys":           {files: map[string]string{p2vKeys: authorized(t) + "\n# a comment\n" + authorized(t)}, keys: 2},
		"then a comment": {files: map[string]string{p2vKeys: authorized(t) + "# the end\n"}, keys: 1},
		"half":           {files: map[string]string{p2vKeys: authorized(t) + "ssh-ed25519 AAAA\n" + authorized(t)}, want: "virt-p2v.keys: line 2: "},
		"both":           {files: map[string]string{p2vPassword: "correct horse", p2vKeys: authorized(t)}, keys: 1},
		"neither":        {want: "neither virt-p2v.password nor virt-p2v.keys"},
		"empty":          {files: map[string]string{p2vPassword: "\n"}, want: "fewer than 12 characters"},
		"short":          {files: map[string]string{p2vPassword: "secret", p2vKeys: authorized(t)}, want: "fewer than 12 characters"},
		"others read it": {files: map[string]string{p2vPassword: "correct horse"}, mode: 0o644, want: "must be 0600"},
		"no keys":        {files: map[string]string{p2vKeys: "correct horse"}, want: "virt-p2v.keys: "},
		"restricted":     {files: map[string]string{p2vKeys: `from="10.0.0.0/8" ` + authorized(t)}, want: "not known here"},
		"a comment":      {files: map[string]string{p2vKeys: "# nobody\n"}, want: "virt-p2v.keys: "},
	} {
		folder := t.TempDir()
		for file, text := range tc.files {
			mode := tc.mode
			if mode == 0 {
				mode = 0o600
			}
			if err := os.WriteFile(filepath.Join(folder, file), []byte(text), mode); err != nil {
				t.Fatal(err)
			}
		}
		got, err := admission(folder)
		switch {
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || got.Password != "" || len(got.Keys) != 0):
			t.Errorf("%s: %+v, %v", name, got, err)
		case tc.want == "" && (err != nil || len(got.Keys) != tc.keys || got.Password != strings.TrimSpace(tc.files[p2vPassword])):
			t.Errorf("%s: %+v, %v", name, got, err)
		case err != nil && strings.Contains(err.Error(), "horse"):
			t.Errorf("%s: a secret is told: %v", name, err)
		}
	}
	if _, err := admission("/nonexistent"); err == nil {
		t.Error("no folder")
	}
}

// This host is known by one key: virt-p2v that runs refuses it when it has another.
func TestHostKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), p2vHostKey)
	first, err := hostKey(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := hostKey(path)
	if err != nil || string(first.PublicKey().Marshal()) != string(second.PublicKey().Marshal()) {
		t.Errorf("%v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := hostKey(path); err == nil {
		t.Error("a file that is no key")
	}
}
