//go:build lab

package lab

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
)

// foreign is an mdev that somebody else made: every scenario must leave it alone.
const foreign = "f0e1d2c3-b4a5-4697-8877-665544332211"

// begin makes the lab fresh, makes a foreign mdev with mdevctl and puts the gpus that a scenario uses under
// management. The foreign mdev must be the same one at the end.
func begin(t *testing.T, limit time.Duration, gpus ...string) context.Context {
	return beginWith(t, limit, 256, gpus...)
}

// beginWith also says how many MB all mbochs devices share: the driver's
// parameter for it is called count.
func beginWith(t *testing.T, limit time.Duration, mbytes int, gpus ...string) context.Context {
	t.Helper()
	ctx := Scenario(t, hypervisor, limit)
	fresh(ctx, t)
	run(ctx, t, fmt.Sprintf("[ $(cat /sys/module/mbochs/parameters/count) = %[1]d ] || { modprobe -r mbochs && modprobe mbochs count=%[1]d; }", mbytes))
	run(ctx, t, "mdevctl start -u "+foreign+" -p mbochs -t mbochs-small")
	before := foreignFacts(ctx, t)
	manage(ctx, t, gpus...)
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if after := foreignFacts(ctx, t); after != before {
			t.Errorf("the foreign mdev was touched:\nbefore: %s\nafter: %s", before, after)
		}
	})
	return ctx
}

// fresh deploys the daemon if that was not done yet, and resets the lab.
func fresh(ctx context.Context, t *testing.T) {
	t.Helper()
	if !hypervisor.deployed {
		must(t, hypervisor.Deploy(ctx))
	}
	must(t, hypervisor.Reset(ctx))
}

// foreignFacts tells the inode of the foreign mdev too: one that was removed and
// made again has another.
func foreignFacts(ctx context.Context, t *testing.T) string {
	t.Helper()
	return run(ctx, t, "stat -Lc '%i' /sys/bus/mdev/devices/"+foreign+"; readlink /sys/bus/mdev/devices/"+foreign+"/mdev_type")
}

// mdevs are the UUIDs of all mdevs in the kernel, sorted, without the foreign one.
func mdevs(ctx context.Context, t *testing.T) []string {
	t.Helper()
	all := strings.Fields(run(ctx, t, "ls /sys/bus/mdev/devices 2>/dev/null || true"))
	return slices.DeleteFunc(all, func(u string) bool { return u == foreign })
}

func available(ctx context.Context, t *testing.T, kind string) string {
	t.Helper()
	return run(ctx, t, "cat /sys/class/mdev_bus/*/mdev_supported_types/"+kind+"/available_instances")
}

func TestGPUsAreUnmanagedAtFirst(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	gpus := list[api.GPU](ctx, t, "/v1/gpus")
	var ids []string
	for _, g := range gpus {
		ids = append(ids, g.ID)
		if g.Managed {
			t.Errorf("gpu %s is managed, nobody asked for it", g.ID)
		}
	}
	if want := []string{WholeCard, "mbochs", "mdpy", "mtty"}; !slices.Equal(ids, want) {
		t.Fatalf("gpus %q, want %q", ids, want)
	}
	for gpu, profile := range map[string]string{"mbochs": "mbochs-large", "mdpy": "mdpy-xga", "mtty": "mtty-2"} {
		req := api.PartitionRequest{GPU: gpu, Profile: profile}
		before := available(ctx, t, profile)
		p := call(ctx, t, http.MethodPost, "/v1/partitions", req).problem(t, http.StatusConflict, "gpu-unmanaged")
		if len(p.Blockers) != 1 || p.Blockers[0].ID != gpu {
			t.Errorf("blockers %+v, want gpu %s", p.Blockers, gpu)
		}
		if got := mdevs(ctx, t); len(got) != 0 {
			t.Fatalf("a refused create left %q", got)
		}
		manage(ctx, t, gpu)
		done(ctx, t, call(ctx, t, http.MethodPost, "/v1/partitions", req))
		made := mdevs(ctx, t)
		if len(made) != 1 {
			t.Fatalf("mdevs %q, want one", made)
		}
		if got := run(ctx, t, "basename $(readlink /sys/bus/mdev/devices/"+made[0]+"/mdev_type)"); got != profile {
			t.Errorf("its type is %q, want %q", got, profile)
		}
		part := get[api.Partition](ctx, t, "/v1/partitions/"+made[0])
		if part.Origin != "managed" || part.GPU != gpu || part.State != "made" || part.Handle.MdevUUID != made[0] {
			t.Errorf("partition %+v", part)
		}
		done(ctx, t, call(ctx, t, http.MethodDelete, "/v1/partitions/"+made[0], nil))
		if got := mdevs(ctx, t); len(got) != 0 {
			t.Fatalf("a delete left %q", got)
		}
		if after := available(ctx, t, profile); after != before {
			t.Errorf("available %s, was %s", after, before)
		}
	}
	call(ctx, t, http.MethodDelete, "/v1/partitions/"+foreign, nil).problem(t, http.StatusConflict, "foreign-device")
}

func TestAttachToARunningGuest(t *testing.T) {
	ctx := begin(t, 4*time.Minute, "mbochs")
	uuid, err := hypervisor.DefineGuest(ctx, "web1", GuestOptions{Start: true})
	must(t, err)
	before := available(ctx, t, "mbochs-small")

	op := done(ctx, t, call(ctx, t, http.MethodPut, "/v1/assignments/gfx", api.AssignmentRequest{VM: "web1", Profile: "mbochs-small"}))
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))
	a := get[api.Assignment](ctx, t, "/v1/assignments/gfx")
	if a.VM != uuid || !a.Attached.Live || !a.Attached.Config || a.State != "attached" || a.RestartRequired || len(a.Conditions) != 0 {
		t.Fatalf("assignment %+v", a)
	}
	for _, flag := range []string{"", "--inactive"} {
		xml := run(ctx, t, "virsh dumpxml web1 "+flag)
		if !strings.Contains(xml, "<address uuid='"+a.Partition+"'/>") || !strings.Contains(xml, "<alias name='ua-gpuvirt-"+a.Partition+"'/>") {
			t.Fatalf("dumpxml web1 %s does not have the device under our alias:\n%s", flag, xml)
		}
	}

	// The same wish again answers 200 and writes nothing: not to the store, not to
	// the kernel, not to libvirt.
	stamp := "stat -c '%y %s' /var/lib/gpuvirt/*.db; stat -Lc %i /sys/bus/mdev/devices/" + a.Partition + "; virsh dumpxml web1 | sha256sum"
	was := run(ctx, t, stamp)
	again := call(ctx, t, http.MethodPut, "/v1/assignments/gfx", api.AssignmentRequest{VM: uuid, Profile: "mbochs-small"}).want(t, http.StatusOK)
	if b := decode[api.Assignment](t, again); b.Partition != a.Partition || b.Name != "gfx" {
		t.Errorf("the same wish again: %+v", b)
	}
	if now := run(ctx, t, stamp); now != was {
		t.Errorf("the same wish again wrote something:\n%s\n%s", was, now)
	}
	if ops := list[api.Operation](ctx, t, "/v1/operations"); len(ops) != 1 || ops[0].ID != op.ID {
		t.Errorf("operations %+v, want the first alone", ops)
	}

	// Another wish under this name is refused, with the difference.
	p := call(ctx, t, http.MethodPut, "/v1/assignments/gfx", api.AssignmentRequest{VM: "web1", Profile: "mbochs-large"}).problem(t, http.StatusConflict, "conflict")
	if d := p.Diff["profile"]; d.Stored != "mbochs-small" || d.Asked != "mbochs-large" {
		t.Errorf("diff %+v", p.Diff)
	}

	vmNow := get[api.VM](ctx, t, "/v1/vms/web1")
	if len(vmNow.Hostdevs) != 1 || vmNow.Hostdevs[0].GuestAddress == "" || !slices.Equal(vmNow.Assignments, []string{"gfx"}) {
		t.Errorf("vm %+v", vmNow)
	}
	// A partition that a guest uses is not removed behind its back (T17).
	call(ctx, t, http.MethodDelete, "/v1/partitions/"+a.Partition, nil).problem(t, http.StatusConflict, "conflict")
	part := get[api.Partition](ctx, t, "/v1/partitions/"+a.Partition)
	var kinds []string
	for _, h := range part.Holders {
		kinds = append(kinds, h.Kind)
	}
	if !slices.Contains(kinds, "vm") || !slices.Contains(kinds, "process") {
		t.Errorf("holders %+v, want the vm and its qemu process", part.Holders)
	}

	detach(ctx, t, "gfx")
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 0))
	if got := mdevs(ctx, t); len(got) != 0 {
		t.Errorf("mdevs %q after detach", got)
	}
	if after := available(ctx, t, "mbochs-small"); after != before {
		t.Errorf("available %s, was %s", after, before)
	}
	if xml := run(ctx, t, "virsh dumpxml web1; virsh dumpxml web1 --inactive"); strings.Contains(xml, "hostdev") {
		t.Errorf("a hostdev is left:\n%s", xml)
	}
}

func TestSizesMix(t *testing.T) {
	// 128 MB in all, of which 4 are the foreign mdev's.
	ctx := beginWith(t, 4*time.Minute, 128, "mbochs")
	_, err := hypervisor.DefineGuest(ctx, "mix", GuestOptions{})
	must(t, err)

	room := func(profile string) int {
		c := get[api.Capacity](ctx, t, "/v1/capacity?profile="+profile)
		return c.Profiles[0].Available
	}
	if room("mbochs-large") != 1 || room("mbochs-small") != 31 {
		t.Fatalf("room for %d large and %d small at first", room("mbochs-large"), room("mbochs-small"))
	}
	attach(ctx, t, "large", "mix", "mbochs-large")
	for i := range 8 {
		attach(ctx, t, fmt.Sprintf("small-%d", i), "mix", "mbochs-small")
	}
	before := mdevs(ctx, t)
	if len(before) != 9 {
		t.Fatalf("mdevs %q, want nine", before)
	}
	if n := room("mbochs-large"); n != 0 {
		t.Fatalf("capacity says %d more large fit", n)
	}
	c := get[api.Capacity](ctx, t, "/v1/capacity?profile=mbochs-large")
	if len(c.Profiles[0].GPUs) != 1 || len(c.Profiles[0].GPUs[0].Reasons) == 0 {
		t.Errorf("capacity gives no reason: %+v", c)
	}
	req := api.AssignmentRequest{VM: "mix", Profile: "mbochs-large"}
	plan := decode[api.Plan](t, call(ctx, t, http.MethodPut, "/v1/assignments/large2?dry_run=true", req).want(t, http.StatusOK))
	if plan.Problem == nil || plan.Problem.Code != "no-capacity" || plan.Changes {
		t.Errorf("dry run: %+v", plan)
	}
	p := call(ctx, t, http.MethodPut, "/v1/assignments/large2", req).problem(t, http.StatusInsufficientStorage, "no-capacity")
	if len(p.Blockers) == 0 {
		t.Errorf("no reasons: %+v", p)
	}
	if after := mdevs(ctx, t); !slices.Equal(before, after) {
		t.Errorf("a refused wish changed the mdevs: %q, were %q", after, before)
	}
	call(ctx, t, http.MethodGet, "/v1/assignments/large2", nil).problem(t, http.StatusNotFound, "not-found")
}
