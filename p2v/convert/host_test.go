package convert

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
)

// A testHost is a host with programs that behave as they are told.
type testHost struct {
	t   *testing.T
	bin string // the programs, and what they are told and have seen
	cfg Config
}

func newHost(t *testing.T) *testHost {
	t.Helper()
	dir := t.TempDir()
	h := &testHost{t: t, bin: filepath.Join(dir, "bin")}
	if err := os.CopyFS(h.bin, os.DirFS("testdata/bin")); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"scratch", "job"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.cfg = Config{Path: []string{h.bin}, Scratch: filepath.Join(dir, "scratch"), KVM: filepath.Join(h.bin, "kvm"), Boot: "first"}
	h.tell("v2v", "ok")
	h.tell("customize", "ok")
	h.tell("appliance", "tcg ok\nkvm broken\n")
	return h
}

// tell writes a file beside the programs.
func (h *testHost) tell(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.bin, name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// seen reads a file beside the programs; it is empty where there is none.
func (h *testHost) seen(name string) string {
	text, _ := os.ReadFile(filepath.Join(h.bin, name))
	return strings.TrimSpace(string(text))
}

// called returns what a program was called with, without the folder of its run.
func (h *testHost) called(kind string) []string {
	var all []string
	for line := range strings.Lines(h.seen("called") + "\n") {
		rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), kind)
		if !ok {
			continue
		}
		if _, after, found := strings.Cut(rest, h.cfg.Scratch+"/run-"); found {
			before, _, _ := strings.Cut(rest, h.cfg.Scratch)
			_, file, _ := strings.Cut(after, "/")
			rest = before + "RUN/" + file
		}
		all = append(all, strings.ReplaceAll(rest, filepath.Dir(h.bin), "DIR"))
	}
	return all
}

func (h *testHost) job(c *Converter) Job {
	h.t.Helper()
	mirror := filepath.Join(h.bin, "mirror.raw")
	if err := os.WriteFile(mirror, make([]byte, 1<<20), 0o644); err != nil {
		h.t.Fatal(err)
	}
	dir := filepath.Join(filepath.Dir(h.bin), "job")
	o, err := c.Overlay(h.t.Context(), mirror, filepath.Join(dir, "0.qcow2"))
	if err != nil {
		h.t.Fatal(err)
	}
	return Job{
		Name: "metal1", Disks: []Overlay{o}, NICs: []NIC{{MAC: "52:54:00:aa:bb:01"}},
		MemoryBytes: 2 << 30, VCPUs: 2, Dir: dir,
	}
}

// Nothing of a run is left.
func (h *testHost) clean() {
	h.t.Helper()
	if left, _ := filepath.Glob(filepath.Join(h.cfg.Scratch, "run-*")); len(left) > 0 {
		h.t.Errorf("left behind: %q", left)
	}
}

func wantCode(t *testing.T, err error, code gpu.Code) {
	t.Helper()
	if err == nil || gpu.CodeOf(err) != code {
		t.Errorf("%v (%s), want an error of kind %s", err, gpu.CodeOf(err), code)
	}
}

// quick are limits that a test waits for.
func quick(longer time.Duration) Limits {
	most := 10 * time.Second * longer
	return Limits{Wall: most, Quiet: most, Launch: most}
}
