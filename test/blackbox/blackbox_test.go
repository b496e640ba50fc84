// Package blackbox runs the real programs on the simulated host, as a person at a
// shell would: each script in testdata is a session.
package blackbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"gpuvirt/internal/sim"
)

func TestScripts(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"gpuvirtd", "gpuvirt"} {
		build := exec.CommandContext(t.Context(), "go", "build", "-tags", "libvirt_dlopen", "-o", filepath.Join(bin, name), "gpuvirt/cmd/"+name)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("cannot build %s: %v: %s", name, err, out)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("GPUVIRT_SOCKET", filepath.Join(e.WorkDir, "sock"))
			e.Setenv("HOST", filepath.Join(e.WorkDir, "host"))
			e.Setenv("STATE", filepath.Join(e.WorkDir, "state"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// reboot: the simulated host loses its mdevs and its VMs stop.
			"reboot": onHost((*sim.Host).Reboot),
			// libvirt-down, libvirt-up: the simulated libvirt stops and resumes answering.
			"libvirt-down": onHost(func(h *sim.Host) error { return h.Libvirt.SetDown(true) }),
			"libvirt-up":   onHost(func(h *sim.Host) error { return h.Libvirt.SetDown(false) }),
		},
		RequireExplicitExec: true,
	})
}

func onHost(do func(*sim.Host) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) > 0 {
			ts.Fatalf("it takes no arguments and cannot be negated")
		}
		h, err := sim.Open(ts.Getenv("HOST"))
		ts.Check(err)
		defer h.Close()
		ts.Check(do(h))
	}
}
