package daemon

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gpuvirt/access"
)

// The guide's table of roles has every route, with the role that reading and writing it takes.
func TestGuideOfRoles(t *testing.T) {
	text, err := os.ReadFile("../docs/guides/network-access.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "\n| routes | reading takes | writing takes |\n|---|---|---|\n")
	if !found {
		t.Fatal("there is no table of routes")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := map[string][]string{} // by the begin of a path: what reading and writing takes
	for row := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(row), "|")
		if len(cells) != 5 {
			t.Fatalf("a row of %d cells: %s", len(cells), row)
		}
		for _, path := range codes(cells[1]) {
			rows[path] = cells[2:4]
		}
	}
	unused := maps.Clone(rows)
	for _, r := range routes() {
		object := objectOf(r.path)
		cells, told := rows[object]
		if !told {
			t.Errorf("it does not tell of %s %s", r.method, r.path)
			continue
		}
		delete(unused, object)
		cell := cells[1]
		if r.method == get {
			cell = cells[0]
		}
		if got := roleTold(t, cell, r.path); got != r.access {
			t.Errorf("%s %s takes %s, and the guide says %s", r.method, r.path, r.access, got)
		}
	}
	for path := range unused {
		t.Errorf("there is no route %s", path)
	}
}

// objectOf is the path of a route's collection, such as "/v1/gpus".
func objectOf(path string) string {
	parts := strings.SplitN(path, "/", 4)
	object, _, _ := strings.Cut(strings.Join(parts[:min(len(parts), 3)], "/"), ":")
	return object
}

// roleTold is the role that a cell names: its first, or the one "for" the path's last word. None
// of them is Nobody.
func roleTold(t *testing.T, cell, path string) Role {
	t.Helper()
	usual, others, _ := strings.Cut(cell, ";")
	name := slices.Concat(codes(usual), []string{""})[0]
	if m := regexp.MustCompile("`([a-z]+)` for `([a-z]+)`").FindStringSubmatch(others); m != nil && strings.HasSuffix(path, "/"+m[2]) {
		name = m[1]
	}
	if name == "" {
		return Nobody
	}
	role, err := access.ParseRole(name)
	if err != nil {
		t.Errorf("%q: %v", cell, err)
	}
	return role
}

// codes are the pieces of a text that stand in backticks.
func codes(text string) (all []string) {
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}
