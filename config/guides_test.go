package config

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"gpuvirt/p2v/assess"
	"gpuvirt/test/guides"
)

// What people are told to write into the configuration, the host's file or what Ansible's role
// makes of gpuvirt_config, can be read, and its settings go together.
func TestGuides(t *testing.T) {
	seen := 0
	for _, b := range guides.Blocks(t) {
		if b.Language != "yaml" {
			continue
		}
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(b.Text), &doc); err != nil || len(doc.Content) != 1 {
			t.Errorf("%s:%d: %v", b.Page, b.Line, err)
			continue
		}
		for _, n := range settings(doc.Content[0]) {
			seen++
			text, err := yaml.Marshal(n)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "gpuvirtd.yaml")
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			loaded, err := Load(file, false)
			if err == nil {
				err = loaded.Check()
			}
			if err != nil {
				t.Errorf("%s:%d: %v", b.Page, b.Line, err)
			}
		}
	}
	if seen < 3 {
		t.Errorf("%d pieces of configuration", seen)
	}
}

// The settings that a remedy names are there.
func TestRemedies(t *testing.T) {
	named := regexp.MustCompile(`\bp2v\.[a-z_]+(?:\.[a-z_]+)*|\bsetting ([a-z0-9_.]*[a-z0-9_])`)
	seen := 0
	for _, r := range assess.Catalogue() {
		for _, said := range named.FindAllStringSubmatch(r.Remedy, -1) {
			key := cmp.Or(said[1], said[0])
			if !slices.ContainsFunc(Settings(), func(s Setting) bool { return s.Key == key }) {
				t.Errorf("%s: there is no setting %q: %s", r.ID, key, r.Remedy)
			}
			seen++
		}
	}
	if seen < 3 {
		t.Errorf("%d settings were found", seen)
	}
}

// settings are the pieces of configuration in a document: it is one, or a play has some.
// Prometheus has its own.
func settings(n *yaml.Node) (all []*yaml.Node) {
	keys := func(n *yaml.Node) (keys []string) {
		for i := 0; i < len(n.Content); i += 2 {
			keys = append(keys, n.Content[i].Value)
		}
		return keys
	}
	if n.Kind == yaml.MappingNode && !slices.Contains(keys(n), "scrape_configs") {
		return []*yaml.Node{n}
	}
	var within func(n *yaml.Node)
	within = func(n *yaml.Node) {
		for i, child := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 1 && strings.HasSuffix(n.Content[i-1].Value, "gpuvirt_config") {
				all = append(all, child)
			}
			within(child)
		}
	}
	within(n)
	return all
}
