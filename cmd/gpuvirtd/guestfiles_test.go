package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
)

func TestGuestFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{
		"debian-12/agent/b.deb", "debian-12/agent/a.deb", "debian-12/agent/notes.txt", "debian-12/driver/nvidia.deb",
		"rhel-9/agent/x.rpm", "rhel-9.4/agent/y.rpm", "evil/agent/z.deb", "keys/other",
	} {
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	find := guestFiles(dir, at("keys"))
	for name, c := range map[string]struct {
		system        report.OS
		agent, driver []string
	}{
		"a release":             {report.OS{ID: "debian", VersionID: "12"}, []string{at("debian-12/agent/a.deb"), at("debian-12/agent/b.deb")}, []string{at("debian-12/driver/nvidia.deb")}},
		"a version":             {report.OS{ID: "rhel", VersionID: "9.4"}, []string{at("rhel-9.4/agent/y.rpm")}, nil},
		"a version of a major":  {report.OS{ID: "rhel", VersionID: "9.3"}, []string{at("rhel-9/agent/x.rpm")}, nil},
		"one that is not there": {report.OS{ID: "debian", VersionID: "13"}, nil, nil},
		"none":                  {report.OS{}, nil, nil},
		"one that climbs":       {report.OS{ID: "../evil", VersionID: "."}, nil, nil},
		"one that climbs on":    {report.OS{ID: "debian", VersionID: "12/../../evil"}, nil, nil},
	} {
		got, err := find(c.system, assess.Wish{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff([][]string{c.agent, c.driver}, [][]string{got.Agent, got.Driver.Packages}); diff != "" {
			t.Errorf("%s: -want +got\n%s", name, diff)
		}
	}
	// A token that is asked for has to be there, and be a secret.
	if _, err := find(report.OS{}, assess.Wish{LicenceToken: true}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("without a token: %v", err)
	}
	if err := os.WriteFile(at("keys/licence.tok"), []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := find(report.OS{}, assess.Wish{LicenceToken: true}); err != nil || string(got.Driver.Token) != "token" {
		t.Errorf("%q %v", got.Driver.Token, err)
	}
	if err := os.Chmod(at("keys/licence.tok"), 0o644); err != nil { //nolint:gosec // that is what is refused
		t.Fatal(err)
	}
	if _, err := find(report.OS{}, assess.Wish{LicenceToken: true}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("a token that all may read: %v", err)
	}
}
