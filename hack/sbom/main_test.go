package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Of two programs of the names of ours, each of which is this test, each component is told once,
// under a reference of its own, and every reference leads somewhere.
func TestReferences(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	args := []string{"1.2.3", filepath.Join(dir, "gpuvirt"), filepath.Join(dir, "gpuvirtd")}
	for _, program := range args[1:] {
		if err := os.Symlink(self, program); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if err := run(&out, args); err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	refs := []string{doc.Metadata.Component.Ref}
	for _, c := range doc.Components {
		if slices.Contains(refs, c.Ref) {
			t.Errorf("%s is told of twice", c.Ref)
		}
		refs = append(refs, c.Ref)
	}
	depends := map[string][]string{}
	for _, d := range doc.Depends {
		if depends[d.Ref] != nil {
			t.Errorf("what %s depends on is told twice", d.Ref)
		}
		depends[d.Ref] = d.On
		for _, ref := range append(d.On, d.Ref) {
			if !slices.Contains(refs, ref) {
				t.Errorf("%s is nowhere", ref)
			}
		}
	}
	if diff := cmp.Diff([]string{"program:gpuvirt", "program:gpuvirtd"}, depends["gpuvirt"]); diff != "" {
		t.Error(diff)
	}
	// A test's program records no other modules; those of ours hack/check-packages compares.
	if diff := cmp.Diff(depends["program:gpuvirt"], depends["program:gpuvirtd"]); diff != "" || len(depends["program:gpuvirt"]) != 1 {
		t.Errorf("%q: %s", depends["program:gpuvirt"], diff)
	}
}
