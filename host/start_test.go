package host_test

import (
	"strings"
	"syscall"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
)

// What speaks against the start of a VM is known without libvirt, which is what waits for the
// answer (T45): a partition that is gone (T09), one that its definition lacks, and one that is
// another VM's.
func TestCheckStart_T09(t *testing.T) {
	l := newLab(t, sim.Mbochs())
	l.manage("mbochs")
	web := l.attach("web", gpu.Wish{VM: "web1", Profile: "mbochs-small"})
	db := l.attach("db", gpu.Wish{VM: "db1", Profile: "mbochs-small"})
	if err := l.sim.Libvirt.SetDown(true); err != nil {
		t.Fatal(err)
	}
	mine, theirs := gpu.Handle{MdevUUID: web.Partition}, gpu.Handle{MdevUUID: db.Partition}
	strange := []gpu.Handle{{MdevUUID: "0d4a0f0e-6f0c-4a55-8d6e-3f1c9a5e7b21"}, {PCIAddress: "0000:99:00.0"}}
	check := func(what, vm string, devices []gpu.Handle, want ...string) {
		t.Helper()
		found, err := l.CheckStart(t.Context(), vm, devices)
		if err != nil || len(found) != len(want) {
			t.Errorf("%s: %+v, %v; want %q", what, found, err, want)
			return
		}
		for i, w := range want {
			code, text, _ := strings.Cut(w, " ")
			if string(found[i].Code) != code || !strings.Contains(found[i].Message, text) {
				t.Errorf("%s: %+v, want %q", what, found[i], w)
			}
		}
	}
	check("as it should be", sim.Web1, append(strange, mine))
	check("without its device", sim.Web1, strange, "drift which its definition does not have")
	check("with another's", sim.Web1, []gpu.Handle{mine, theirs}, "conflict is assigned to vm db1 as db")
	check("nobody we know", sim.Web2, strange)
	check("nobody we know, with ours", sim.Web2, []gpu.Handle{mine}, "conflict is assigned to vm web1 as web")

	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	check("gone", sim.Web1, []gpu.Handle{mine}, "drift the kernel does not have it")
	if err := l.sim.Inject(sim.Fault{Op: "list", Path: "bus/mdev/devices", Errno: syscall.EIO}); err != nil {
		t.Fatal(err)
	}
	check("not to be seen", sim.Web1, []gpu.Handle{mine}, "unavailable ")
}
