package sim

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

const moved = "11111111-2222-4333-8444-555555555501"

// made is the definition of a VM as a migration makes it, with its disk in a file.
func made(id, name, mark, disk string) string {
	return fmt.Sprintf(`<domain type="kvm"><name>%s</name><uuid>%s</uuid>
<metadata><gpuvirt:made xmlns:gpuvirt="https://gpuvirt.dev/domain/1" by="%s"/></metadata>
<os firmware="efi"><type>hvm</type></os><devices>
<disk type="file" device="disk"><source file="%s"/><target dev="vda"/></disk><disk type="file" device="cdrom"><target dev="sda"/></disk>
<interface type="network"><source network="default"/></interface>
<channel type="unix"><target type="virtio" name="org.qemu.guest_agent.0"/></channel></devices></domain>`, name, id, mark, disk)
}

func touch(t *testing.T, path string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t, os.WriteFile(path, nil, 0o600))
}

// What a VM names of the host has to be there, and is told before it is started.
func TestFits(t *testing.T) {
	l, ctx := withMdev(t).Libvirt, t.Context()
	doc := made(moved, "moved", "M1", filepath.Join(t.TempDir(), "0.qcow2"))
	must(t, l.Fits(ctx, doc))
	model := func(name string) string {
		return strings.Replace(doc, "<devices>", "<cpu mode='custom'><model>"+name+"</model></cpu><devices>", 1)
	}
	must(t, l.Fits(ctx, model("EPYC-Rome")))
	wantCode(t, l.Fits(ctx, model("bogus")), gpu.CodeConflict)
	wantCode(t, l.Fits(ctx, "<domain"), gpu.CodeInvalid)
	nonet := strings.Replace(doc, `network="default"`, `network="nonet"`, 1)
	wantCode(t, l.Fits(ctx, nonet), gpu.CodeConflict)
	must(t, l.Define(ctx, nonet))
	wantCode(t, l.Startable(ctx, moved), gpu.CodeConflict)
	must(t, l.CreateNetwork(ctx, "<network><name>nonet</name><uuid>"+moved+"</uuid></network>"))
	must(t, l.Startable(ctx, moved))
	wantCode(t, l.Startable(ctx, "nosuch"), gpu.CodeVMNotFound)
}

func TestMakeVM(t *testing.T) {
	h := withMdev(t)
	l, ctx, dir := h.Libvirt, t.Context(), t.TempDir()
	disk, copied := filepath.Join(dir, "0.qcow2"), filepath.Join(dir, "trial", "0.qcow2")
	doc := made(moved, "moved", "M1", disk)
	want := func(state gpu.VMState, trial bool, devices int) {
		t.Helper()
		v, err := l.VM(ctx, moved)
		if err != nil || v.Name != "moved" || v.State != state || v.Trial != trial || v.Mark != "M1" || !v.Persistent || len(v.Hostdevs) != devices {
			t.Errorf("%+v, %v", v, err)
		}
	}
	events := l.Events()

	must(t, l.Define(ctx, doc))
	want(gpu.VMShutoff, false, 0)
	must(t, l.Attach(ctx, moved, device(uuid), config))
	must(t, l.Define(ctx, doc))
	want(gpu.VMShutoff, false, 1) // it kept its device
	wantCode(t, l.Define(ctx, made(moved, "moved", "M2", disk)), gpu.CodeConflict)
	wantCode(t, l.Define(ctx, made(moved, "other", "M1", disk)), gpu.CodeConflict)
	wantCode(t, l.Define(ctx, made(uuid, "web1", "M1", disk)), gpu.CodeConflict)
	wantCode(t, l.Define(ctx, made(moved, "moved", "", disk)), gpu.CodeInvalid)
	wantCode(t, l.Define(ctx, "<domain"), gpu.CodeInvalid)

	// What it is started from has to be there.
	wantCode(t, l.Start(ctx, moved), gpu.CodeNotFound)
	touch(t, disk)
	trial := gpu.Trial{Disks: map[string]string{disk: copied}, Network: "gpuvirt-trial"}
	wantCode(t, l.StartTrial(ctx, moved, "M1", trial), gpu.CodeNotFound)
	touch(t, copied)
	wantCode(t, l.StartTrial(ctx, moved, "M1", trial), gpu.CodeNotFound)
	must(t, l.CreateNetwork(ctx, "<network><name>gpuvirt-trial</name><uuid>"+uuid2+"</uuid></network>"))
	wantCode(t, l.StartTrial(ctx, moved, "M2", trial), gpu.CodeConflict)
	wantCode(t, l.StartTrial(ctx, Web2, "M1", trial), gpu.CodeConflict)
	wantCode(t, l.StartTrial(ctx, moved, "M1", gpu.Trial{Network: "gpuvirt-trial"}), gpu.CodeInvalid)
	wantCode(t, l.StartTrial(ctx, moved, "M1", gpu.Trial{Disks: map[string]string{disk: disk}, Network: "gpuvirt-trial"}), gpu.CodeInvalid)
	want(gpu.VMShutoff, false, 1)

	for range 2 {
		must(t, l.StartTrial(ctx, moved, "M1", trial))
	}
	want(gpu.VMRunning, true, 1)
	if got := hostdevs(t, h, moved); !got[0].Live || !got[0].Config {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(copied + gpu.TrialNVRAM); err != nil {
		t.Error(err)
	}
	wantCode(t, l.Start(ctx, moved), gpu.CodeConflict)
	wantCode(t, l.Undefine(ctx, moved, "M1"), gpu.CodeConflict)
	for range 2 {
		must(t, l.Stop(ctx, moved))
	}
	want(gpu.VMShutoff, false, 1)

	for range 2 {
		must(t, l.Start(ctx, moved))
	}
	want(gpu.VMRunning, false, 1)
	wantCode(t, l.StartTrial(ctx, moved, "M1", trial), gpu.CodeConflict)
	must(t, l.Stop(ctx, moved))
	err := l.Undefine(ctx, moved, "M1")
	wantCode(t, err, gpu.CodeConflict)
	e, _ := errorOf(err)
	if diff := cmp.Diff([]gpu.Blocker{{Kind: "partition", ID: uuid, Name: gpu.Alias(uuid)}}, e.Blockers); diff != "" {
		t.Error(diff)
	}
	must(t, l.Detach(ctx, moved, gpu.Alias(uuid), config))
	wantCode(t, l.Undefine(ctx, moved, "M2"), gpu.CodeConflict)
	wantCode(t, l.Undefine(ctx, DB1, "M1"), gpu.CodeConflict)
	wantCode(t, l.Undefine(ctx, DB1, ""), gpu.CodeConflict)
	for range 2 {
		must(t, l.Undefine(ctx, moved, "M1"))
		must(t, l.Stop(ctx, moved))
	}
	wantCode(t, second(l.VM(ctx, moved)), gpu.CodeVMNotFound)
	if _, err := os.Stat(disk); err != nil {
		t.Error(err)
	}

	// Defined, attached to, tried, stopped, started, stopped, detached from, undefined.
	must(t, h.Close())
	n := 0
	for e := range events {
		if n++; e.UUID != moved || e.Kind != "lifecycle" {
			t.Errorf("%+v", e)
		}
	}
	if n != 8 {
		t.Errorf("%d events", n)
	}
}

// A VM of before a reboot is there after it, and its trial is not.
func TestMadeVMAfterReboot(t *testing.T) {
	h := open(t, t.TempDir())
	l, ctx, dir := h.Libvirt, t.Context(), t.TempDir()
	disk, copied := filepath.Join(dir, "0"), filepath.Join(dir, "1")
	touch(t, copied)
	must(t, l.Define(ctx, made(moved, "moved", "M1", disk)))
	must(t, l.CreateNetwork(ctx, "<network><name>trial</name><uuid>"+uuid+"</uuid></network>"))
	trial := gpu.Trial{Disks: map[string]string{disk: copied}, Network: "trial", NVRAM: filepath.Join(dir, "vars")}
	must(t, l.StartTrial(ctx, moved, "M1", trial))
	if _, err := os.Stat(trial.NVRAM); err != nil {
		t.Error(err)
	}
	must(t, h.Reboot())
	v, err := l.VM(ctx, moved)
	if err != nil || v.State != gpu.VMShutoff || v.Trial || v.Mark != "M1" {
		t.Errorf("%+v, %v", v, err)
	}
	wantCode(t, l.StartTrial(ctx, moved, "M1", trial), gpu.CodeNotFound) // the network is gone
	must(t, l.SetDown(true))
	wantCode(t, l.Define(ctx, made(moved, "moved", "M1", disk)), gpu.CodeUnavailable)
	wantCode(t, l.Stop(ctx, moved), gpu.CodeUnavailable)
}

func TestNetworksOfLibvirt(t *testing.T) {
	h := open(t, t.TempDir())
	l, ctx := h.Libvirt, t.Context()
	doc := func(name, id string) string {
		return "<network><name>" + name + "</name><uuid>" + id + "</uuid></network>"
	}
	for range 2 {
		must(t, l.CreateNetwork(ctx, doc("trial", uuid)))
	}
	wantCode(t, l.CreateNetwork(ctx, doc("trial", uuid2)), gpu.CodeConflict)
	wantCode(t, l.CreateNetwork(ctx, doc("default", uuid2)), gpu.CodeConflict)
	wantCode(t, l.CreateNetwork(ctx, doc("trial", "")), gpu.CodeInvalid)
	wantCode(t, l.CreateNetwork(ctx, "<network"), gpu.CodeInvalid)
	wantCode(t, l.DestroyNetwork(ctx, "default"), gpu.CodeConflict)
	for range 2 {
		must(t, l.DestroyNetwork(ctx, "trial"))
	}
	must(t, l.CreateNetwork(ctx, doc("trial", uuid2)))
}

func TestAgentOfVM(t *testing.T) {
	h := open(t, t.TempDir())
	l, ctx, disk := h.Libvirt, t.Context(), filepath.Join(t.TempDir(), "0")
	touch(t, disk)
	must(t, l.SetAgent("moved", Agent{
		Files:    map[string]string{"/etc/hostname": "node7\n"},
		Commands: map[string]Exit{"/usr/bin/nvidia-smi -L": {Out: "GPU 0"}, "/bin/check": {Code: 3, Err: "no"}},
		Answers:  map[string]json.RawMessage{"guest-get-fsinfo": json.RawMessage(`[]`)},
	}))
	must(t, l.Define(ctx, made(moved, "moved", "M1", disk)))
	ask := func(request, want string, code gpu.Code) {
		t.Helper()
		got, err := l.Agent(ctx, moved, request)
		if got != want || (err != nil) != (code != "") || err != nil && gpu.CodeOf(err) != code {
			t.Errorf("%s: got %s, %v; want %s %s", request, got, err, want, code)
		}
	}
	const ping = `{"execute":"guest-ping"}`
	ask(ping, "", gpu.CodeConflict)
	must(t, l.Start(ctx, moved))
	ask(ping, `{"return":{}}`, "")
	ask(`guest-ping`, "", gpu.CodeInvalid)
	ask(`{"execute":"guest-set-time"}`, "", gpu.CodeInvalid)
	ask(`{"execute":"guest-get-fsinfo"}`, `{"return":[]}`, "")

	ask(`{"execute":"guest-exec","arguments":{"path":"/bin/true"}}`, `{"return":{"pid":1}}`, "")
	ask(`{"execute":"guest-exec","arguments":{"path":"/usr/bin/nvidia-smi","arg":["-L"],"capture-output":true}}`, `{"return":{"pid":2}}`, "")
	ask(`{"execute":"guest-exec","arguments":{"path":"/bin/check"}}`, `{"return":{"pid":3}}`, "")
	ask(`{"execute":"guest-exec","arguments":{"path":"/bin/false"}}`, "", gpu.CodeInvalid)
	ask(`{"execute":"guest-exec-status","arguments":{"pid":1}}`, `{"return":{"exitcode":0,"exited":true}}`, "")
	ask(`{"execute":"guest-exec-status","arguments":{"pid":1}}`, "", gpu.CodeInvalid)
	ask(`{"execute":"guest-exec-status","arguments":{"pid":2}}`, `{"return":{"exitcode":0,"exited":true,"out-data":"R1BVIDA="}}`, "")
	ask(`{"execute":"guest-exec-status","arguments":{"pid":3}}`, `{"return":{"exitcode":3,"exited":true}}`, "")

	ask(`{"execute":"guest-file-open","arguments":{"path":"/etc/shadow"}}`, "", gpu.CodeInvalid)
	ask(`{"execute":"guest-file-open","arguments":{"path":"/etc/hostname","mode":"w"}}`, "", gpu.CodeInvalid)
	ask(`{"execute":"guest-file-open","arguments":{"path":"/etc/hostname"}}`, `{"return":4}`, "")
	ask(`{"execute":"guest-file-read","arguments":{"handle":4,"count":4}}`, `{"return":{"buf-b64":"bm9kZQ==","count":4,"eof":false}}`, "")
	ask(`{"execute":"guest-file-read","arguments":{"handle":4}}`, `{"return":{"buf-b64":"Nwo=","count":2,"eof":true}}`, "")
	ask(`{"execute":"guest-file-read","arguments":{"handle":4,"count":-1}}`, "", gpu.CodeInvalid)
	ask(`{"execute":"guest-file-close","arguments":{"handle":4}}`, `{"return":{}}`, "")
	ask(`{"execute":"guest-file-close","arguments":{"handle":4}}`, "", gpu.CodeInvalid)
	ask(`{"execute":"guest-file-read","arguments":{"handle":4}}`, "", gpu.CodeInvalid)

	must(t, l.Pause("moved"))
	ask(ping, "", gpu.CodeConflict)
	must(t, l.Resume("moved"))
	must(t, l.SetAgent("moved", Agent{Silent: true}))
	ask(ping, "", gpu.CodeUnavailable)
	wantCode(t, second(l.Agent(ctx, Web1, ping)), gpu.CodeInvalid) // it has no channel for one
	wantCode(t, second(l.Agent(ctx, DB1, ping)), gpu.CodeConflict)
	wantCode(t, second(l.Agent(ctx, "moved", ping)), gpu.CodeInvalid)
	wantCode(t, second(l.Agent(ctx, uuid, ping)), gpu.CodeVMNotFound)

	// What was open is gone when the VM has stopped.
	must(t, l.SetAgent("moved", Agent{Files: map[string]string{"/f": ""}}))
	ask(`{"execute":"guest-file-open","arguments":{"path":"/f"}}`, `{"return":5}`, "")
	must(t, l.Stop(ctx, moved))
	must(t, l.Start(ctx, moved))
	ask(`{"execute":"guest-file-close","arguments":{"handle":5}}`, "", gpu.CodeInvalid)
	ask(`{"execute":"guest-get-osinfo"}`, `{"return":{"id":"debian","kernel-release":"6.1.0-44-amd64","machine":"x86_64",`+
		`"name":"Debian GNU/Linux","pretty-name":"Debian GNU/Linux 12 (bookworm)","version-id":"12"}}`, "")
}
