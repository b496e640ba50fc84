//go:build lab

package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
	"gpuvirt/test/machine"
)

// Two guests with eight assignments come through a reboot and a power cut: every
// mdev is back under its UUID before libvirt starts the guests (T08, T09, T10).
func TestRebootKeepsAssignments(t *testing.T) {
	ctx := Scenario(t, hypervisor, 8*time.Minute)
	fresh(ctx, t)
	manage(ctx, t, "mbochs", "mdpy")
	_, err := hypervisor.DefineGuest(ctx, "stopped", GuestOptions{Autostart: true})
	must(t, err)
	_, err = hypervisor.DefineGuest(ctx, "running", GuestOptions{Autostart: true, Start: true})
	must(t, err)

	// Where every mdev is: "<uuid> <parent> <type>".
	where := func() string {
		return run(ctx, t, "for d in /sys/bus/mdev/devices/*; do echo $(basename $d) $(basename $(dirname $(readlink -f $d))) $(basename $(readlink $d/mdev_type)); done")
	}
	for i := range 4 {
		attach(ctx, t, fmt.Sprintf("s%d", i), "stopped", "mbochs-small")
	}
	a := get[api.Assignment](ctx, t, "/v1/assignments/s0")
	if a.Attached.Live || !a.Attached.Config || a.RestartRequired {
		t.Fatalf("a stopped guest's assignment: %+v", a)
	}
	for i := range 3 {
		attach(ctx, t, fmt.Sprintf("r%d", i), "running", "mbochs-medium")
	}
	attach(ctx, t, "r3", "running", "mdpy-vga")
	must(t, hypervisor.WaitGuestPCI(ctx, "running", MBochs, 3))
	must(t, hypervisor.StartGuest(ctx, "stopped")) // it has its devices at start
	must(t, hypervisor.WaitGuestPCI(ctx, "stopped", MBochs, 4))
	want := where()
	if n := len(strings.Split(want, "\n")); n != 8 {
		t.Fatalf("%d mdevs, want 8:\n%s", n, want)
	}

	for _, restart := range []struct {
		name string
		do   func(context.Context) error
	}{{"reboot", hypervisor.Reboot}, {"power cut", hypervisor.PowerCut}} {
		must(t, restart.do(ctx))
		must(t, hypervisor.WaitReady(ctx))
		if got := where(); got != want {
			t.Fatalf("after the %s:\n%s\nwant:\n%s", restart.name, got, want)
		}
		must(t, hypervisor.WaitGuestPCI(ctx, "running", MBochs, 3))
		must(t, hypervisor.WaitGuestPCI(ctx, "running", MDPY, 1))
		must(t, hypervisor.WaitGuestPCI(ctx, "stopped", MBochs, 4))
		for _, a := range list[api.Assignment](ctx, t, "/v1/assignments") {
			if a.State != "attached" || !a.Attached.Live || !a.Attached.Config || len(a.Conditions) != 0 {
				t.Errorf("after the %s: %+v", restart.name, a)
			}
		}
		bootIsOver(ctx, t, restart.name)
		// The restore was over before libvirt began.
		restored := run(ctx, t, "systemctl show -P InactiveExitTimestampMonotonic gpuvirt-restore.service; systemctl show -P ActiveEnterTimestampMonotonic gpuvirt-restore.service; systemctl show -P InactiveExitTimestampMonotonic libvirtd.service")
		var began, ended, libvirt int64
		if _, err := fmt.Sscan(restored, &began, &ended, &libvirt); err != nil || began == 0 || ended == 0 || ended > libvirt {
			t.Errorf("after the %s: restore began, restore ended, libvirt began: %s (%v)", restart.name, restored, err)
		}
	}
	for _, a := range list[api.Assignment](ctx, t, "/v1/assignments") {
		detach(ctx, t, a.Name)
	}
	if got := mdevs(ctx, t); len(got) != 0 {
		t.Errorf("mdevs %q after all is detached", got)
	}
}

// The daemon is killed at random moments of attach and detach: after its restart
// each is none or complete, and the keys are free (T01).
func TestKillAtRandomMoments(t *testing.T) {
	ctx := begin(t, 8*time.Minute, "mbochs")
	_, err := hypervisor.DefineGuest(ctx, "victim", GuestOptions{Start: true})
	must(t, err)
	// How long an attach takes here sets the range of the moments.
	began := time.Now()
	attach(ctx, t, "warm", "victim", "mbochs-small")
	span := time.Since(began)
	detach(ctx, t, "warm")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, moments within %v", seed, span)
	random := rand.New(rand.NewPCG(seed, 1))

	attached := false
	for i := range 12 {
		moment := time.Duration(random.Int64N(int64(span) * 5 / 4))
		request := make(chan struct{})
		go func() { // its answer is lost when the daemon dies, as a client's would be
			defer close(request)
			if attached {
				try(ctx, http.MethodDelete, "/v1/assignments/k", nil)
			} else {
				try(ctx, http.MethodPut, "/v1/assignments/k", api.AssignmentRequest{VM: "victim", Profile: "mbochs-small"})
			}
		}()
		run(ctx, t, fmt.Sprintf("sleep %.3f; systemctl kill -s KILL gpuvirtd.service", moment.Seconds()))
		<-request
		must(t, hypervisor.StartDaemon(ctx))
		for _, op := range list[api.Operation](ctx, t, "/v1/operations?limit=1000") {
			if op.Status == "done" || op.Status == "undone" {
				continue
			}
			op = get[api.Operation](ctx, t, "/v1/operations/"+op.ID+"/wait?timeout=60s")
			if op.Status != "done" && op.Status != "undone" {
				t.Fatalf("round %d, killed after %v: operation ended %s: %+v", i, moment, op.Status, op)
			}
		}
		attached = consistent(ctx, t, i)
	}
	if attached {
		detach(ctx, t, "k")
	}
	attach(ctx, t, "after", "victim", "mbochs-small") // the keys are free
	detach(ctx, t, "after")
}

// consistent checks that assignment k is there in every place or in none.
func consistent(ctx context.Context, t *testing.T, round int) bool {
	t.Helper()
	// A daemon that has just begun may not have reached libvirt yet.
	eventuallyREST(ctx, t, "/v1", func(h api.Info) bool { return h.State == "ready" })
	stored := list[api.Assignment](ctx, t, "/v1/assignments")
	kernel := mdevs(ctx, t)
	live := strings.Contains(run(ctx, t, "virsh dumpxml victim"), "<hostdev")
	config := strings.Contains(run(ctx, t, "virsh dumpxml victim --inactive"), "<hostdev")
	switch {
	case len(stored) == 1 && len(kernel) == 1 && live && config:
		a := stored[0]
		if a.State != "attached" || a.Partition != kernel[0] || len(a.Conditions) != 0 {
			t.Fatalf("round %d: %+v with mdev %q", round, a, kernel)
		}
		must(t, hypervisor.WaitGuestPCI(ctx, "victim", MBochs, 1))
		return true
	case len(stored) == 0 && len(kernel) == 0 && !live && !config:
		must(t, hypervisor.WaitGuestPCI(ctx, "victim", MBochs, 0))
		return false
	}
	t.Fatalf("round %d: neither none nor complete: stored %+v, mdevs %q, live %t, config %t", round, stored, kernel, live, config)
	return false
}

// While libvirt is down reads answer, with Unknown where it matters, writes are
// refused, and nothing is freed; all recovers by itself (T23).
func TestLibvirtDown(t *testing.T) {
	ctx := begin(t, 4*time.Minute, "mbochs")
	_, err := hypervisor.DefineGuest(ctx, "web1", GuestOptions{Start: true})
	must(t, err)
	a := attach(ctx, t, "gfx", "web1", "mbochs-small")
	units := "libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket"
	run(ctx, t, "systemctl stop "+units)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		run(ctx, t, "systemctl start libvirtd.socket libvirtd.service")
	})

	eventuallyREST(ctx, t, "/v1/assignments/gfx", func(a api.Assignment) bool { return a.State == "unknown" })
	unknown := get[api.Assignment](ctx, t, "/v1/assignments/gfx")
	if !slices.ContainsFunc(unknown.Conditions, func(c api.Condition) bool { return c.Type == "Unknown" && c.Status }) {
		t.Errorf("no Unknown condition: %+v", unknown)
	}
	for _, path := range []string{"/v1", "/v1/gpus", "/v1/gpus/mbochs", "/v1/gpus/mbochs/profiles", "/v1/partitions", "/v1/partitions/" + a.Partition, "/v1/assignments", "/v1/capacity", "/v1/operations", "/v1/health/live", "/v1/health/ready"} {
		call(ctx, t, http.MethodGet, path, nil).want(t, http.StatusOK)
	}
	if info := get[api.Info](ctx, t, "/v1"); info.State != "degraded" || len(info.Reasons) == 0 {
		t.Errorf("info %+v, want degraded with a reason", info)
	}
	part := get[api.Partition](ctx, t, "/v1/partitions/"+a.Partition)
	if !slices.ContainsFunc(part.Conditions, func(c api.Condition) bool { return c.Type == "Unknown" && c.Status }) {
		t.Errorf("who holds the partition should be unknown: %+v", part)
	}
	call(ctx, t, http.MethodGet, "/v1/vms", nil).problem(t, http.StatusServiceUnavailable, "unavailable")
	call(ctx, t, http.MethodPut, "/v1/assignments/other", api.AssignmentRequest{VM: "web1", Profile: "mbochs-small"}).problem(t, http.StatusServiceUnavailable, "unavailable")
	call(ctx, t, http.MethodDelete, "/v1/assignments/gfx", nil).problem(t, http.StatusServiceUnavailable, "unavailable")
	if got := mdevs(ctx, t); !slices.Equal(got, []string{a.Partition}) {
		t.Fatalf("mdevs %q, want the one that the guest has", got)
	}

	run(ctx, t, "systemctl start libvirtd.socket libvirtd.service")
	eventuallyREST(ctx, t, "/v1/assignments/gfx", func(a api.Assignment) bool { return a.State == "attached" && len(a.Conditions) == 0 })
	detach(ctx, t, "gfx")
}

// A guest that never lets a device go gives a clear state, not a hang, and keeps
// its device; when it is shut down the device can be had back.
func TestStubbornGuest(t *testing.T) {
	ctx := begin(t, 5*time.Minute, "mbochs")
	_, err := hypervisor.DefineGuest(ctx, "mule", GuestOptions{KeepsDevices: true})
	must(t, err)
	a := attach(ctx, t, "kept", "mule", "mbochs-small")
	must(t, hypervisor.StartGuest(ctx, "mule"))
	must(t, hypervisor.WaitGuestPCI(ctx, "mule", MBochs, 1))
	eventuallyREST(ctx, t, "/v1/assignments/kept", func(a api.Assignment) bool { return a.Attached.Live })

	op := ended(ctx, t, call(ctx, t, http.MethodDelete, "/v1/assignments/kept", nil))
	if op.Status != "undone" || op.Problem == nil || op.Problem.Code != "stuck" || op.Problem.Hint == "" || len(op.Problem.Blockers) == 0 {
		t.Fatalf("operation %+v, problem %+v", op, op.Problem)
	}
	b := get[api.Assignment](ctx, t, "/v1/assignments/kept")
	if b.State != "attached" || !b.Attached.Live || !b.Attached.Config || b.Partition != a.Partition {
		t.Fatalf("assignment %+v", b)
	}
	if got := mdevs(ctx, t); !slices.Equal(got, []string{a.Partition}) {
		t.Fatalf("mdevs %q", got)
	}
	run(ctx, t, "virsh -q destroy mule")
	detach(ctx, t, "kept")
	if got := mdevs(ctx, t); len(got) != 0 {
		t.Errorf("mdevs %q after detach", got)
	}
}

// eventuallyREST waits until an object is as wanted.
func eventuallyREST[T any](ctx context.Context, t *testing.T, path string, ok func(T) bool) {
	t.Helper()
	var last reply
	err := machine.WaitFor(ctx, 300*time.Millisecond, func() (bool, error) {
		var err error
		if last, err = try(ctx, http.MethodGet, path, nil); err != nil || last.status != http.StatusOK {
			if last.status == http.StatusNotFound {
				t.Fatalf("%s: there is no such thing: %s", path, last.body)
			}
			return false, err
		}
		return ok(decode[T](t, last)), nil
	})
	if err != nil {
		t.Fatalf("%s: %v: last answer %d %s", path, err, last.status, last.body)
	}
}
