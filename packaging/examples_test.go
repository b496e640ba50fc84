package packaging

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each example is in the package, is told of, and is used by a test as it stands: one that
// nobody uses rots.
func TestExamples(t *testing.T) {
	text := func(path string) string {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	about := text("examples/README.md")
	uses := text("../test/blackbox/testdata/examples.txtar") + strings.ReplaceAll(text("../ansible/tests/run"), "$examples/", "ansible/") + text("examples_test.go")
	nfpm := text("nfpm.yaml")
	err := filepath.WalkDir("examples", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path == "examples/README.md" {
			return err
		}
		name := strings.TrimPrefix(path, "examples/")
		if !strings.Contains(about, "`"+name+"`") {
			t.Errorf("README.md does not tell of %s", name)
		}
		if !strings.Contains(uses, name) {
			t.Errorf("no test uses %s", name)
		}
		if !strings.Contains(nfpm, "src: packaging/examples/"+name+", dst: /usr/share/doc/gpuvirt/examples/"+name+",") {
			t.Errorf("the package does not have %s", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// gpuvirtd.service.d/no-mig.conf takes away what only MIG needs, and nothing else.
func TestExampleWithoutMIG(t *testing.T) {
	var want []string
	for _, c := range words(read(t, "gpuvirtd.service"), "CapabilityBoundingSet") {
		if c != "CAP_SYS_ADMIN" {
			want = append(want, c)
		}
	}
	text := read(t, "../examples/gpuvirtd.service.d/no-mig.conf")
	if !strings.HasSuffix(strings.TrimSpace(text), "[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet="+strings.Join(want, " ")) {
		t.Errorf("want %q in\n%s", want, text)
	}
}
