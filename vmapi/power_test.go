package vmapi

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

func madeTrial() Trial {
	return Trial{Disks: map[string]string{"/srv/0.qcow2": "/srv/trial/0.qcow2"}, Network: "gpuvirt-trial"}
}

func TestStartAndStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := madeVM(t)
		lv := &fakeLibvirt{vms: []*fakeVM{vm}}
		c := start(t, lv, Config{})
		ctx := t.Context()
		wantCode(t, c.Start(ctx, uuidB), gpu.CodeVMNotFound, "cannot start it")
		wantCode(t, c.Start(ctx, "moved"), gpu.CodeInvalid, "not a UUID")
		wantCode(t, c.Stop(ctx, "moved"), gpu.CodeInvalid, "not a UUID")
		for range 2 {
			wantCode(t, c.Stop(ctx, uuidA), "", "")
			wantCode(t, c.Stop(ctx, uuidB), "", "")
		}
		for range 2 {
			wantCode(t, c.Start(ctx, strings.ToUpper(uuidA)), "", "")
		}
		for range 2 {
			wantCode(t, c.Stop(ctx, uuidA), "", "")
		}
		if diff := cmp.Diff([]string{"start " + uuidA, "destroy " + uuidA}, lv.changes()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}

		lv.set(func() {
			lv.fail = map[string]error{"start " + uuidA: virError(libvirt.ERR_INTERNAL_ERROR, "no /dev/kvm")}
		})
		wantCode(t, c.Start(ctx, uuidA), gpu.CodeConflict, `cannot start VM "moved": no /dev/kvm`)
		lv.set(func() { lv.fail, vm.hangs = nil, true })
		wantCode(t, c.Start(ctx, uuidA), "", "")
		wantCode(t, c.Stop(ctx, uuidA), gpu.CodeStuck, "SIGTERM")
		if v, err := c.VM(ctx, uuidA); err != nil || v.State != gpu.VMRunning {
			t.Errorf("%+v, %v", v, err)
		}
	})
}

// Whoever else was quicker has done what was asked for.
func TestStartAndStopMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := madeVM(t)
		lv := &fakeLibvirt{vms: []*fakeVM{vm}, hang: map[string]chan struct{}{}}
		c := start(t, lv, Config{})
		meanwhile := func(call string, do func() error, change func()) {
			t.Helper()
			hang := make(chan struct{})
			lv.set(func() { lv.hang[call] = hang })
			done := make(chan error, 1)
			go func() { done <- do() }()
			synctest.Wait()
			lv.set(change)
			close(hang)
			wantCode(t, <-done, "", "")
		}
		meanwhile("start "+uuidA, func() error { return c.Start(t.Context(), uuidA) }, func() { vm.running = true })
		meanwhile("destroy "+uuidA, func() error { return c.Stop(t.Context(), uuidA) }, func() { vm.running = false })
		lv.set(func() { vm.running = true })
		meanwhile("destroy "+uuidA, func() error { return c.Stop(t.Context(), uuidA) }, func() { lv.vms = nil })
	})
}

func TestStartTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := madeVM(t)
		vm.config = []libvirtxml.DomainHostdev{hostdev(gpu.Alias(mdev1), gpu.Handle{MdevUUID: mdev1})}
		lv := &fakeLibvirt{vms: []*fakeVM{vm}}
		c := start(t, lv, Config{})
		ctx, before := t.Context(), vm.definition(both)
		for range 2 { // the second finds the first
			wantCode(t, c.StartTrial(ctx, uuidA, "M1", madeTrial()), "", "")
		}
		got, err := c.VM(ctx, uuidA)
		if err != nil || got.State != gpu.VMRunning || !got.Trial || got.Mark != "M1" || !got.Persistent {
			t.Errorf("%+v, %v", got, err)
		}
		if on := has(got, gpu.Alias(mdev1)); on != both {
			t.Errorf("the device is in %+v", on)
		}
		if !strings.Contains(vm.trial, "/srv/trial/0.qcow2") || strings.Contains(vm.trial, "/srv/0.qcow2") {
			t.Errorf("it runs with %s", vm.trial)
		}
		if after := vm.definition(gpu.Scope{Config: true}); after != (definition{config: before.config, persistent: true}) {
			t.Errorf("the definition has become %s", after.config)
		}
		another := madeTrial()
		another.Disks["/srv/0.qcow2"] = "/srv/another/0.qcow2"
		wantCode(t, c.StartTrial(ctx, uuidA, "M1", another), gpu.CodeConflict, "another trial")
		wantCode(t, c.Start(ctx, uuidA), gpu.CodeConflict, "a trial of it runs")
		wantCode(t, c.Undefine(ctx, uuidA, "M1"), gpu.CodeConflict, "it runs")
		wantCode(t, c.Stop(ctx, uuidA), "", "")
		if got, err := c.VM(ctx, uuidA); err != nil || got.Trial || got.State != gpu.VMShutoff {
			t.Errorf("%+v, %v", got, err)
		}
		wantCode(t, c.Start(ctx, uuidA), "", "")
		wantCode(t, c.StartTrial(ctx, uuidA, "M1", madeTrial()), gpu.CodeConflict, "it runs")
		want := []string{"create", "destroy " + uuidA, "start " + uuidA}
		if diff := cmp.Diff(want, lv.changes()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestStartTrialRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{vms: []*fakeVM{madeVM(t), {uuid: uuidB, name: "web1"}}}
		c := start(t, lv, Config{})
		for _, tc := range []struct {
			uuid, mark string
			trial      Trial
			code       gpu.Code
			part       string
		}{
			{"moved", "M1", madeTrial(), gpu.CodeInvalid, "not a UUID"},
			{mdev1, "M1", madeTrial(), gpu.CodeVMNotFound, ""},
			{uuidA, "M2", madeTrial(), gpu.CodeConflict, `one of migration "M1"`},
			{uuidB, "M1", madeTrial(), gpu.CodeConflict, "none that gpuvirt made"},
			{uuidA, "M1", Trial{Network: "gpuvirt-trial"}, gpu.CodeInvalid, `the disk "/srv/0.qcow2"`},
		} {
			wantCode(t, c.StartTrial(t.Context(), tc.uuid, tc.mark, tc.trial), tc.code, tc.part)
		}
		if got := lv.changes(); got != nil {
			t.Errorf("%s", got)
		}
		lv.set(func() { lv.fail = map[string]error{"create": virError(libvirt.ERR_NO_NETWORK, "Network not found")} })
		wantCode(t, c.StartTrial(t.Context(), uuidA, "M1", madeTrial()), gpu.CodeNotFound, "Network not found")
	})
}

// What is defined, started and removed is told to who follows the VMs.
func TestMakingTellsOfItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{}
		c := start(t, lv, Config{})
		if e := <-c.Events(); e.Kind != kindConnected {
			t.Errorf("%+v", e)
		}
		for _, f := range []func() error{
			func() error { return c.Define(t.Context(), madeDoc(t, uuidA, "moved", "M1")) },
			func() error { return c.StartTrial(t.Context(), uuidA, "M1", madeTrial()) },
			func() error { return c.Stop(t.Context(), uuidA) },
			func() error { return c.Undefine(t.Context(), uuidA, "M1") },
		} {
			wantCode(t, f(), "", "")
			if diff := cmp.Diff(gpu.VMEvent{UUID: uuidA, Kind: kindLifecycle}, <-c.Events()); diff != "" {
				t.Error(diff)
			}
		}
	})
}

func TestAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vm := madeVM(t)
		lv := &fakeLibvirt{vms: []*fakeVM{vm}}
		c := start(t, lv, Config{})
		const ping = `{"execute":"guest-ping"}`
		ask := func(code gpu.Code, part string) {
			t.Helper()
			answer, err := c.Agent(t.Context(), uuidA, ping)
			wantCode(t, err, code, part)
			if (code == "") != (answer == `{"return":{}}`) {
				t.Errorf("answer %q", answer)
			}
		}
		ask(gpu.CodeConflict, "domain is not running")
		lv.set(func() { vm.running = true })
		ask(gpu.CodeUnavailable, "not connected")
		answers := func(answer string, err error) {
			lv.set(func() { vm.agent = func(string) (string, error) { return answer, err } })
		}
		answers(`{"return":{}}`, nil)
		ask("", "")
		for _, tc := range []struct {
			code libvirt.ErrorNumber
			msg  string
			want gpu.Code
			hint bool
		}{
			{libvirt.ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: Guest agent not available for now", gpu.CodeUnavailable, false},
			{libvirt.ERR_AGENT_COMMAND_TIMEOUT, "guest agent command timed out", gpu.CodeUnavailable, false},
			{libvirt.ERR_AGENT_UNSYNCED, "guest agent replied with wrong id", gpu.CodeUnavailable, false},
			{libvirt.ERR_ARGUMENT_UNSUPPORTED, "argument unsupported: QEMU guest agent is not configured", gpu.CodeInvalid, false},
			{libvirt.ERR_INTERNAL_ERROR, "internal error: unable to execute QEMU agent command 'guest-x': Permission denied", gpu.CodeInvalid, false},
			{libvirt.ERR_AGENT_COMMAND_FAILED, "guest agent command failed: unable to execute QEMU agent command 'guest-x': not found", gpu.CodeInvalid, false},
			{libvirt.ERR_NO_SUPPORT, "this function is not supported by the connection driver: virDomainQemuAgentCommand", gpu.CodeInvalid, true},
			{libvirt.ERR_INTERNAL_ERROR, "libvirt-qemu.so.0: cannot open shared object file: No such file or directory", gpu.CodeUnavailable, true},
			{libvirt.ERR_INTERNAL_ERROR, "Failed to open libvirt-qemu.so.0", gpu.CodeUnavailable, true},
		} {
			answers("", libvirt.Error{Code: tc.code, Message: tc.msg})
			_, err := c.Agent(t.Context(), uuidA, ping)
			wantCode(t, err, tc.want, tc.msg)
			if e := fault(err, ""); (e.Hint != "") != tc.hint {
				t.Errorf("%s: hint %q", tc.msg, e.Hint)
			}
		}
		_, err := c.Agent(t.Context(), uuidA, "guest-ping")
		wantCode(t, err, gpu.CodeInvalid, "not JSON")
		_, err = c.Agent(t.Context(), "moved", ping)
		wantCode(t, err, gpu.CodeInvalid, "not a UUID")
	})
}

func TestNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{networks: []fakeNetwork{{"default", network{uuid: uuidB, active: true, persistent: true}}}}
		c := start(t, lv, Config{})
		ctx := t.Context()
		doc := func(name, uuid string) string {
			return "<network><name>" + name + "</name><uuid>" + uuid + "</uuid><bridge stp='on'/></network>"
		}
		for range 2 {
			wantCode(t, c.CreateNetwork(ctx, doc("trial", uuidA)), "", "")
		}
		wantCode(t, c.CreateNetwork(ctx, doc("trial", uuidB)), gpu.CodeConflict, "another of that name, "+uuidA)
		wantCode(t, c.CreateNetwork(ctx, doc("default", uuidA)), gpu.CodeConflict, "another of that name")
		wantCode(t, c.CreateNetwork(ctx, doc("trial", "")), gpu.CodeInvalid, "not a UUID")
		wantCode(t, c.CreateNetwork(ctx, doc("", uuidA)), gpu.CodeInvalid, "no name")
		wantCode(t, c.CreateNetwork(ctx, "<network"), gpu.CodeInvalid, "cannot parse")
		wantCode(t, c.DestroyNetwork(ctx, "default"), gpu.CodeConflict, "permanent")
		for range 2 {
			wantCode(t, c.DestroyNetwork(ctx, "trial"), "", "")
		}
		if diff := cmp.Diff([]string{"create-network", "destroy-network"}, lv.changes()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if !slices.ContainsFunc(lv.networks, func(n fakeNetwork) bool { return n.name == "default" }) {
			t.Error("another network is gone")
		}
		lv.die()
		synctest.Wait()
		wantCode(t, c.CreateNetwork(ctx, doc("trial", uuidA)), gpu.CodeUnavailable, "")
		wantCode(t, c.DestroyNetwork(ctx, "trial"), gpu.CodeUnavailable, "")
	})
}
