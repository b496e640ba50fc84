package lint

import (
	"go/ast"
	"go/token"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"
)

// Every package says in its doc comment what it owns, once, in the usual form.
func TestPackagesHaveADoc(t *testing.T) {
	docs := map[string]int{}
	for _, s := range tree(t) {
		if s.isTest() {
			continue
		}
		docs[s.dir()] += 0
		if s.file.Doc == nil {
			continue
		}
		docs[s.dir()]++
		text := s.file.Doc.Text()
		if s.pkg() == "main" {
			name := path.Base(s.dir())
			if !strings.HasPrefix(text, "Command "+name+" ") && !strings.HasPrefix(strings.ToLower(text), name+" ") {
				t.Errorf("%s: the doc comment of a command begins with its name, %q", s.path, name)
			}
		} else if !strings.HasPrefix(text, "Package "+s.pkg()+" ") {
			t.Errorf("%s: the doc comment does not begin with %q", s.path, "Package "+s.pkg())
		}
	}
	for dir, n := range docs {
		if n != 1 {
			t.Errorf("%s: has %d package doc comments, want 1", dir, n)
		}
	}
}

// A package is named after what it holds.
func TestPackageNamesSaySomething(t *testing.T) {
	for _, s := range tree(t) {
		switch s.pkg() {
		case "util", "utils", "common", "helpers", "types", "misc", "base":
			t.Errorf("%s: package %s: the name says nothing; name it after what it holds", s.path, s.pkg())
		}
	}
}

// Only internal/sysfs knows where sysfs is, so that a test can put another tree
// in its place. The daemon's main names the root itself, once: that is wiring.
// What runs inside the lab's machines has a /sys of its own and no choice, and
// p2v/verify asks programs of other machines for theirs.
func TestSysfsPathsStayInSysfs(t *testing.T) {
	for _, s := range tree(t) {
		if s.isTest() || s.dir() == "internal/sysfs" || s.dir() == "p2v/verify" || strings.HasPrefix(s.path, "test/lab/") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			value := lit.Value[1 : len(lit.Value)-1]
			root := value == "/sys" && s.dir() == "cmd/gpuvirtd"
			if (value == "/sys" || strings.HasPrefix(value, "/sys/")) && !root {
				t.Errorf("%s:%d: %s: go through internal/sysfs", s.path, s.line(lit.Pos()), lit.Value)
			}
			return true
		})
	}
}

// Nothing happens because a package was imported.
func TestNoInit(t *testing.T) {
	for _, s := range tree(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s:%d: func init: let main build it and pass it in", s.path, s.line(f.Pos()))
			}
		}
	}
}

// Who follows the events finds in the description of the API what each says.
func TestEventsAreDescribed(t *testing.T) {
	text, err := os.ReadFile("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	described := func(s source, typ ast.Expr) {
		lit, is := typ.(*ast.BasicLit)
		if !is || lit.Kind != token.STRING {
			return
		}
		found++
		if name, err := strconv.Unquote(lit.Value); err != nil || !strings.Contains(string(text), "* `"+name+"`") {
			t.Errorf("%s: events %s are not in the description of /v1/events", s.path, lit.Value)
		}
	}
	for _, s := range tree(t) {
		if s.isTest() || s.dir() != "host" && s.dir() != "p2v" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if f, is := n.Fun.(*ast.SelectorExpr); is && (f.Sel.Name == "emit" || f.Sel.Name == "Tell") && len(n.Args) == 3 {
					described(s, n.Args[0])
				}
			case *ast.ValueSpec:
				if strings.HasPrefix(n.Names[0].Name, "event") && len(n.Values) == 1 {
					described(s, n.Values[0])
				}
			}
			return true
		})
	}
	if found < 10 {
		t.Errorf("%d events were found: this test looks in the wrong place", found)
	}
}
