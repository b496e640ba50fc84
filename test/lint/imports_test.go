package lint

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The libraries that one folder owns, with their owners.
var owned = map[string]string{
	"github.com/NVIDIA/go-nvml/pkg/nvml":             "mig",
	"github.com/cilium/ebpf":                         "p2v/dirty",
	"github.com/gorilla/mux":                         "daemon",
	"github.com/prometheus/client_golang/prometheus": "metrics",
	"go.etcd.io/bbolt":                               "store",
	"libvirt.org/go/libvirt":                         "vmapi",
}

const (
	libvirtxml = "libvirt.org/go/libvirtxml"
	stray      = "example.com/stray" // a module nobody has agreed to
	testify    = "github.com/stretchr/testify/assert"
)

// A folder of the tree, and what of ours it may import. This is the picture of
// the house; .golangci.yml enforces it.
type folder struct {
	dir      string
	may      []string // folders
	anything bool     // it wires: all of ours and all agreed modules
	xml      bool     // it may read and write libvirt's XML
}

var folders = []folder{
	{dir: "access"},
	{dir: "access/accesstest"},
	{dir: "api", may: []string{"p2v/assess", "p2v/move", "p2v/report"}},
	{dir: "client", may: []string{"api", "p2v/report"}},
	{dir: "cmd/gpuvirt", may: []string{"api", "client", "internal/version", "p2v/assess", "p2v/block", "p2v/dirty", "p2v/freeze", "p2v/inspect", "p2v/move", "p2v/report", "p2v/track", "p2v/verify"}},
	{dir: "cmd/gpuvirtd", anything: true},
	{dir: "config", may: []string{"access", "mig", "p2v/assess", "sriov"}},
	{dir: "daemon", may: []string{"access", "api", "gpu", "internal/secret", "internal/version", "operation", "p2v/assess", "p2v/move", "p2v/report", "p2v/verify"}},
	{dir: "gpu"},
	{dir: "gpu/gputest", may: []string{"gpu"}},
	{dir: "hack/sbom"},
	{dir: "host", may: []string{"gpu", "inventory", "operation"}},
	{dir: "internal/mountinfo"},
	{dir: "internal/pci", may: []string{"gpu", "internal/sysfs"}},
	{dir: "internal/proc", may: []string{"gpu"}},
	{dir: "internal/run"},
	{dir: "internal/secret"},
	{dir: "internal/sim", may: []string{"gpu", "internal/run", "internal/sysfs", "mig", "mig/cards"}, xml: true},
	{dir: "internal/sysfs"},
	{dir: "internal/uevent", may: []string{"gpu"}},
	{dir: "internal/version"},
	{dir: "internal/writer", may: []string{"gpu", "internal/sysfs"}},
	{dir: "inventory", may: []string{"gpu"}},
	{dir: "mdev", may: []string{"gpu", "internal/pci", "internal/sysfs", "internal/writer"}},
	{dir: "metrics", may: []string{"gpu", "operation", "p2v/move"}},
	{dir: "mig", may: []string{"gpu", "internal/pci"}},
	{dir: "mig/cards", may: []string{"mig"}},
	{dir: "mig/migtest", may: []string{"gpu", "mig", "mig/cards"}},
	{dir: "operation"},
	{dir: "operation/operationtest", may: []string{"operation"}},
	{dir: "p2v", may: []string{"gpu", "internal/run", "internal/secret", "operation", "p2v/assess", "p2v/atrest", "p2v/block", "p2v/convert", "p2v/freeze", "p2v/guest", "p2v/lines", "p2v/move", "p2v/report", "p2v/track", "p2v/verify", "p2v/virtp2v"}},
	{dir: "p2v/assess", may: []string{"gpu", "p2v/report"}},
	{dir: "p2v/atrest", may: []string{"gpu", "p2v/block", "p2v/freeze", "p2v/nbd", "p2v/track"}},
	{dir: "p2v/block"},
	{dir: "p2v/dirty"},
	{dir: "p2v/convert", may: []string{"gpu", "internal/run", "internal/secret", "p2v/report"}, xml: true},
	{dir: "p2v/freeze", may: []string{"internal/mountinfo", "internal/run", "p2v/lines", "p2v/report"}},
	{dir: "p2v/guest", may: []string{"gpu", "p2v/assess", "p2v/convert", "p2v/report"}},
	{dir: "p2v/inspect", may: []string{"internal/mountinfo", "internal/run", "p2v/report"}},
	{dir: "p2v/lines"},
	{dir: "p2v/move", may: []string{"gpu", "internal/secret", "p2v/assess", "p2v/report", "p2v/verify"}},
	{dir: "p2v/nbd", may: []string{"gpu", "internal/secret", "p2v/report"}},
	{dir: "p2v/report"},
	{dir: "p2v/source", may: []string{"gpu", "internal/secret", "p2v/report"}},
	{dir: "p2v/track", may: []string{"p2v/block", "p2v/lines"}},
	{dir: "p2v/source/sourcetest", may: []string{"p2v/report"}},
	{dir: "p2v/verify", may: []string{"gpu", "internal/run", "p2v/report"}},
	{dir: "p2v/virtp2v", may: []string{"p2v/inspect", "p2v/nbd", "p2v/report"}},

	{dir: "sriov", may: []string{"gpu", "internal/pci", "internal/run", "internal/sysfs", "internal/writer"}},
	{dir: "store", may: []string{"gpu", "operation", "p2v/move", "p2v/report"}},
	{dir: "token", may: []string{"gpu", "operation"}},
	{dir: "vmapi", may: []string{"gpu"}, xml: true},
}

// What tests may not import, beside the owned libraries. All else they may.
var testsMayNot = map[string][]string{
	"gpu":                     {"host", "inventory", "daemon", "client"},
	"mdev":                    {"mig", "sriov", "host", "daemon"},
	"mig":                     {"mdev", "sriov", "host", "daemon"},
	"sriov":                   {"mdev", "mig", "host", "daemon"},
	"store":                   {"host", "inventory", "daemon"},
	"vmapi":                   {"host", "inventory", "daemon"},
	"internal/sim":            {"host", "inventory", "daemon"},
	"operation":               {"gpu", "host", "mdev", "internal/sim"},
	"operation/operationtest": {"gpu", "host"},
}

// What tests are known to need: refusing it would be a fault too.
var testsMay = map[string][]string{
	"client":    {"daemon", "internal/sim"},
	"daemon":    {"host", "internal/sim", "operation/operationtest"},
	"host":      {"internal/sim", "mdev", "store"},
	"inventory": {"internal/sim", "mdev"},
	"mdev":      {"gpu/gputest", "internal/sim", "store"},
	"mig":       {"gpu/gputest", "internal/sim"},
	"operation": {"operation/operationtest", "store"},
	"sriov":     {"gpu/gputest", "internal/sim"},
	"store":     {"operation/operationtest"},
	"vmapi":     {"internal/sim"},
}

func (f folder) isMain() bool { return strings.HasPrefix(f.dir, "cmd/") }

func (f folder) mayImport(imp string) bool {
	dir, ours := strings.CutPrefix(imp, "gpuvirt/")
	switch {
	case ours:
		return f.anything || slices.Contains(f.may, dir)
	case owned[imp] != "":
		return owned[imp] == f.dir
	case imp == libvirtxml:
		return f.anything || f.xml
	default:
		return f.anything
	}
}

// A folder without a row would be a folder without a rule.
func TestEveryFolderHasAnImportRule(t *testing.T) {
	for _, s := range tree(t) {
		known := slices.ContainsFunc(folders, func(f folder) bool { return f.dir == s.dir() })
		within := strings.HasPrefix(s.dir(), "test/") || strings.HasPrefix(s.dir(), "internal/sim/")
		if !known && !within && !s.isTest() {
			t.Errorf("%s: %s has no row in folders and no depguard rule in .golangci.yml", s.path, s.dir())
		}
	}
}

// Each folder of a made-up house imports everything there is; the linter must
// report exactly what the table refuses. Go forbids import cycles, so the first
// house imports down the table only and the second up.
func TestDepguardBites(t *testing.T) {
	t.Parallel()
	linter := linterPath(t)
	for _, upwards := range []bool{false, true} {
		house := newHouse(t)
		want := map[string]bool{}
		for i, f := range folders {
			house.write(path.Join(f.dir, "doc.go"), packageClause(f, ""))
			var imports []string
			for j, other := range folders {
				if !other.isMain() && (j < i) == upwards && i != j {
					imports = append(imports, "gpuvirt/"+other.dir)
				}
			}
			imports = append(imports, slices.Collect(maps.Keys(owned))...)
			imports = append(imports, libvirtxml, stray)
			for _, imp := range imports {
				if !f.mayImport(imp) {
					want[f.dir+"/imports.go "+imp] = true
				}
			}
			house.write(path.Join(f.dir, "imports.go"), packageClause(f, "")+importLines(imports))

			imports = append(slices.Collect(maps.Keys(owned)), testify)
			for imp, owner := range owned {
				if owner != f.dir {
					want[f.dir+"/imports_test.go "+imp] = true
				}
			}
			want[f.dir+"/imports_test.go "+testify] = true
			for _, dir := range testsMayNot[f.dir] {
				imports = append(imports, "gpuvirt/"+dir)
				want[f.dir+"/imports_test.go gpuvirt/"+dir] = true
			}
			for _, dir := range testsMay[f.dir] {
				imports = append(imports, "gpuvirt/"+dir)
			}
			house.write(path.Join(f.dir, "imports_test.go"), packageClause(f, "_test")+importLines(imports))
		}
		got := map[string]bool{}
		for _, found := range house.lint(linter, "depguard") {
			got[found.file+" "+strings.Trim(found.source, `	 _"`)] = true
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if !got[key] {
				t.Errorf("not refused: %s", key)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(got)) {
			if !want[key] {
				t.Errorf("refused, though the house allows it: %s", key)
			}
		}
	}
}

// The calls that forbidigo refuses, and the places where they are right.
func TestForbidigoBites(t *testing.T) {
	t.Parallel()
	linter := linterPath(t)
	calls := []struct {
		call   string
		pkg    string
		fineIn []string
	}{
		{`fmt.Println("x")`, "fmt", []string{"cmd/gpuvirt/x.go", "cmd/gpuvirtd/x.go", "test/lab/x.go"}},
		{`_ = os.WriteFile("x", nil, 0)`, "os", []string{"host/x_test.go", "test/lab/x.go"}},
		{`_ = exec.Command("x")`, "os/exec", []string{"host/x_test.go", "internal/run/x.go", "test/lab/x.go"}},
		{`time.Sleep(1)`, "time", nil},
		{`_ = os.Getenv("X")`, "os", []string{"cmd/gpuvirt/x.go", "cmd/gpuvirtd/x.go", "host/x_test.go", "test/lab/x.go"}},
	}
	files := []string{
		"cmd/gpuvirt/x.go", "cmd/gpuvirtd/x.go", "host/x.go", "host/x_test.go", "internal/run/x.go", "test/lab/x.go",
	}
	house := newHouse(t)
	want := map[string]bool{}
	for _, file := range files {
		f := folder{dir: path.Dir(file)}
		var imports, body []string
		for _, c := range calls {
			if !slices.Contains(imports, c.pkg) {
				imports = append(imports, c.pkg)
			}
			body = append(body, "\t"+c.call)
			if !slices.Contains(c.fineIn, file) {
				want[file+" "+c.call] = true
			}
		}
		text := packageClause(f, "")
		for _, imp := range imports {
			text += fmt.Sprintf("import %q\n", imp)
		}
		name := "X"
		if strings.HasSuffix(file, "_test.go") {
			name = "Y"
		}
		house.write(file, text+"\n// "+name+" breaks rules.\nfunc "+name+"() {\n"+strings.Join(body, "\n")+"\n}\n")
	}
	got := map[string]bool{}
	for _, found := range house.lint(linter, "forbidigo") {
		got[found.file+" "+strings.TrimSpace(found.source)] = true
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if !got[key] {
			t.Errorf("not refused: %s", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if !want[key] {
			t.Errorf("refused, though the house allows it: %s", key)
		}
	}
}

func linterPath(t *testing.T) string {
	t.Helper()
	linter := os.Getenv("GOLANGCI_LINT")
	if linter == "" {
		t.Skip("GOLANGCI_LINT is not set; `make check-rules` sets it")
	}
	return linter
}

func packageClause(f folder, suffix string) string {
	name := path.Base(f.dir)
	if f.isMain() {
		name = "main"
	}
	return "package " + name + suffix + "\n\n"
}

func importLines(imports []string) string {
	text := "import (\n"
	for _, imp := range imports {
		text += fmt.Sprintf("\t_ %q\n", imp)
	}
	return text + ")\n"
}

// A house is a throw-away module of our name, with our linter configuration and
// empty stand-ins for the modules of others.
type house struct {
	t   *testing.T
	dir string
}

func newHouse(t *testing.T) house {
	h := house{t, t.TempDir()}
	config, err := os.ReadFile(filepath.Join(top, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	h.write(".golangci.yml", string(config))
	mod := "module gpuvirt\n\ngo 1.26\n"
	for _, lib := range append(slices.Sorted(maps.Keys(owned)), libvirtxml, stray, testify) {
		stub := path.Join("stub", path.Base(lib))
		h.write(path.Join(stub, "go.mod"), "module "+lib+"\n")
		h.write(path.Join(stub, "stub.go"), "package stub\n")
		mod += fmt.Sprintf("require %s v0.0.0\nreplace %s => ./%s\n", lib, lib, stub)
	}
	h.write("go.mod", mod)
	return h
}

func (h house) write(name, text string) {
	h.t.Helper()
	name = filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// A finding is one report: where, and the line that it is about.
type finding struct{ file, source string }

func (h house) lint(linter, only string) []finding {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), linter, "run", "--enable-only", only, "--allow-parallel-runners",
		"--issues-exit-code=0", "--show-stats=false", "--output.json.path=stdout", "./...")
	cmd.Dir = h.dir
	cmd.Env = append(os.Environ(), "PWD="+h.dir, "GOPROXY=off", "GOLANGCI_LINT_CACHE="+h.t.TempDir())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		h.t.Fatalf("golangci-lint: %v\n%s\n%s", err, stderr.String(), out)
	}
	var report struct {
		Issues []struct {
			FromLinter  string
			Text        string
			SourceLines []string
			Pos         struct{ Filename string }
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		h.t.Fatalf("golangci-lint: %v\n%s", err, out)
	}
	var all []finding
	for _, issue := range report.Issues {
		if issue.FromLinter != only {
			h.t.Fatalf("%s: %s: %s", issue.Pos.Filename, issue.FromLinter, issue.Text)
		}
		if len(issue.SourceLines) != 1 {
			h.t.Fatalf("%s: %s: the report quotes %d lines, want 1", issue.Pos.Filename, issue.Text, len(issue.SourceLines))
		}
		all = append(all, finding{filepath.ToSlash(issue.Pos.Filename), issue.SourceLines[0]})
	}
	return all
}
