//go:build lab

package lab

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
)

const wishes = "/root/wishes.yaml"

// One file of wishes on a host whose driver changes from mediated devices on virtual
// functions to functions that take a type, at a reboot, and back (T14). The store is
// carried along; a dry run says what is rewritten; the guest runs with its device on
// either. On the way: what mdevs on functions share (T40).
func TestGenerationSwitch_T14(t *testing.T) {
	if hypervisor.Suite() == "bookworm" {
		t.Skip("its libvirt takes no function without detaching it")
	}
	ctx := Scenario(t, hypervisor, 9*time.Minute)
	fresh(ctx, t)
	must(t, hypervisor.LoadVGPU(ctx, "flavour=mdev"))
	declareCards(ctx, t)
	_, err := hypervisor.DefineGuest(ctx, "web1", GuestOptions{Ports: 4, Autostart: true, Start: true})
	must(t, err)
	_, err = hypervisor.DefineGuest(ctx, "db1", GuestOptions{Ports: 4})
	must(t, err)
	manage(ctx, t, VGPUCard)
	done(ctx, t, call(ctx, t, http.MethodPut, sriovPath(VGPUCard), numVFs(VFs)))
	mdevsShareTheCard(ctx, t)
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MdevKind, 1))

	t.Log("a reboot into the other driver")
	must(t, hypervisor.InstallVGPU(ctx, "flavour=vfio"))
	must(t, hypervisor.Reboot(ctx))
	must(t, hypervisor.WaitReady(ctx))
	converts(ctx, t, "mdev", "vgpu")
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", VGPUKind, 1))
	if a, b := vgpuType(ctx, t, 0), vgpuType(ctx, t, 1); a != "1147" || b != "1147" {
		t.Errorf("types %s and %s", a, b)
	}

	t.Log("and back, without one")
	run(ctx, t, "systemctl stop gpuvirtd gpuvirt-restore; virsh -q destroy web1")
	must(t, hypervisor.EnableVFs(ctx, VGPUCard, 0))
	must(t, hypervisor.LoadVGPU(ctx, "flavour=mdev"))
	asAtBoot(ctx, t)
	run(ctx, t, "systemctl start gpuvirt-restore || true") // what it cannot restore makes it fail
	must(t, hypervisor.StartDaemon(ctx))
	converts(ctx, t, "vgpu", "mdev")
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MdevKind, 1))
	if got := mdevs(ctx, t); len(got) != 2 {
		t.Errorf("mdevs %q", got)
	}
}

// mdevsShareTheCard carries the wishes out on mdevs: each function takes one and says of
// itself alone whether one more fits, but the card has one memory and one size at a time.
func mdevsShareTheCard(ctx context.Context, t *testing.T) {
	t.Helper()
	room := func(profile string, want int, sum string) {
		t.Helper()
		c := get[api.Capacity](ctx, t, "/v1/capacity?profile="+profile).Profiles[0]
		says := run(ctx, t, "for t in /sys/class/mdev_bus/0000:02:*/mdev_supported_types/*; do [ \"$(cat $t/name)\" != 'NVIDIA "+profile+
			"' ] || cat $t/available_instances; done | tr -d '\\n'")
		if c.Available != want || says != sum {
			t.Errorf("%d of %s fit, want %d; the functions say %s, want %s", c.Available, profile, want, says, sum)
		}
	}
	room("LAB-8Q", 2, "1111")
	room("LAB-16Q", 1, "1111")
	applies(ctx, t, "assignments: [{name: one, vm: web1, profile: LAB-8Q}]")
	room("LAB-8Q", 1, "0111")
	room("LAB-4Q", 0, "0000")
	refused := func(profile string) {
		t.Helper()
		call(ctx, t, http.MethodPost, "/v1/partitions", api.PartitionRequest{GPU: VGPUCard, Profile: profile}).problem(t, http.StatusInsufficientStorage, "no-capacity")
	}
	refused("LAB-4Q")
	applies(ctx, t, "assignments: [{name: one, vm: web1, profile: LAB-8Q}, {name: two, vm: db1, profile: LAB-8Q}]")
	room("LAB-8Q", 0, "0000")
	refused("LAB-8C")
	call(ctx, t, http.MethodPut, sriovPath(VGPUCard), numVFs(0)).problem(t, http.StatusConflict, "gpu-busy")
	for i, uuid := range mdevs(ctx, t) {
		p := get[api.Partition](ctx, t, "/v1/partitions/"+uuid)
		at := run(ctx, t, "basename $(dirname $(readlink -f /sys/bus/mdev/devices/"+uuid+"))")
		if p.GPU != VGPUCard || p.Parent != at || at != VF(VGPUCard, 0) && at != VF(VGPUCard, 1) {
			t.Errorf("mdev %d is on %s: %+v", i, at, p)
		}
	}
}

func applies(ctx context.Context, t *testing.T, text string) {
	t.Helper()
	must(t, hypervisor.Write(ctx, wishes, []byte(text+"\n"), 0o644))
	run(ctx, t, "gpuvirt apply -f "+wishes)
}

// converts applies the wishes to a host whose driver has changed since they were carried
// out, and starts the guest again.
func converts(ctx context.Context, t *testing.T, was, is string) {
	t.Helper()
	for _, name := range []string{"one", "two"} {
		eventuallyREST(ctx, t, "/v1/assignments/"+name, func(a api.Assignment) bool {
			return a.State == "drifted" && len(a.Conditions) == 1 && a.Conditions[0].Reason == "OtherKind"
		})
	}
	// Its definition names what is not there.
	if out := run(ctx, t, "virsh domstate web1; virsh -q start web1 2>&1 || echo refused"); !strings.HasPrefix(out, "shut off") || !strings.HasSuffix(out, "refused") {
		t.Errorf("the guest before it is converted: %s", out)
	}
	state := func() string {
		return run(ctx, t, "virsh dumpxml web1; virsh dumpxml db1; ls /sys/bus/mdev/devices; cat "+pciDevices+"0000:02:*/nvidia/current_vgpu_type 2>/dev/null || true")
	}
	before := state()
	plan := run(ctx, t, "gpuvirt apply -f "+wishes+" --dry-run")
	for _, says := range []string{
		"take the " + was + " out of the definition of vm web1", "take the " + was + " out of the definition of vm db1",
		"put the " + is + " into vm web1", "put the " + is + " into vm db1",
	} {
		if !strings.Contains(plan, says) {
			t.Errorf("the dry run does not say %q:\n%s", says, plan)
		}
	}
	if after := state(); after != before {
		t.Errorf("the dry run changed something:\n%s\n%s", before, after)
	}
	run(ctx, t, "gpuvirt apply -f "+wishes)
	types := map[string]string{"mdev": "type='mdev' managed='no'", "vgpu": "type='pci' managed='no'"}
	for _, vm := range []string{"web1", "db1"} {
		xml := run(ctx, t, "virsh dumpxml "+vm)
		if strings.Count(xml, "<hostdev ") != 1 || !strings.Contains(xml, types[is]) {
			t.Errorf("vm %s is not converted to a %s:\n%s", vm, is, xml)
		}
	}
	must(t, hypervisor.StartGuest(ctx, "web1"))
	for name, live := range map[string]bool{"one": true, "two": false} {
		eventuallyREST(ctx, t, "/v1/assignments/"+name, func(a api.Assignment) bool {
			return a.State == "attached" && a.Attached.Config && a.Attached.Live == live && len(a.Conditions) == 0
		})
	}
}
