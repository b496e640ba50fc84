//go:build lab

package lab

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
	"gpuvirt/gpu"
	"gpuvirt/mig"
	"gpuvirt/mig/cards"
	"gpuvirt/test/lab/nvml"
)

// Where the look-alike is in the hypervisor: the library where the driver's would be,
// and its state where nothing outlives a boot, as of real cards that lose their mode.
const (
	nvmlLibrary  = "/usr/lib/x86_64-linux-gnu/" + mig.DefaultPath
	nvmlTemplate = "/etc/gpuvirt-lab-nvml"
	nvmlState    = "/run/gpuvirt-lab-nvml/state"
)

const nvmlUnit = `[Unit]
Description=State of the look-alike of NVIDIA's library
DefaultDependencies=no
After=local-fs.target
Before=gpuvirt-restore.service gpuvirtd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'mkdir -p /run/gpuvirt-lab-nvml && cp ` + nvmlTemplate + ` ` + nvmlState + `'
[Install]
WantedBy=multi-user.target gpuvirt-restore.service
`

const nvmlDropIn = `[Service]
Environment=` + nvml.Env + `=` + nvmlState + `
ReadWritePaths=-/run/gpuvirt-lab-nvml
`

// cutCard is changed, otherCard never.
var (
	cutCard   = gpu.Address{Bus: 0x41}
	otherCard = gpu.Address{Bus: 0x42}
)

func migPath(a gpu.Address) string { return "/v1/gpus/" + a.String() + "/mig" }

func model(name string) *cards.Model {
	i := slices.IndexFunc(cards.Models, func(m cards.Model) bool { return m.Name == name })
	return &cards.Models[i]
}

// twoCards are the card that is changed, and the other.
func twoCards() []nvml.GPU {
	return []nvml.GPU{
		{Address: cutCard, Model: model("A100-PCIE-40GB"), Resets: true},
		{Address: otherCard, Model: model("H100 80GB HBM3")},
	}
}

// installNVML gives the hypervisor cards that MIG can cut.
func installNVML(ctx context.Context, t *testing.T, gpus ...nvml.GPU) {
	t.Helper()
	dir := t.TempDir()
	library, err := nvml.Build(dir)
	must(t, err)
	template := nvml.File(filepath.Join(dir, "template"))
	must(t, template.Write(gpus...))
	must(t, template.Strict())
	must(t, hypervisor.Put(ctx, library, nvmlLibrary, 0o755))
	must(t, hypervisor.Put(ctx, string(template), nvmlTemplate, 0o644))
	must(t, hypervisor.Write(ctx, "/etc/systemd/system/gpuvirt-lab-nvml.service", []byte(nvmlUnit), 0o644))
	for _, unit := range []string{"gpuvirtd", "gpuvirt-restore"} {
		run(ctx, t, "mkdir -p /etc/systemd/system/"+unit+".service.d")
		must(t, hypervisor.Write(ctx, "/etc/systemd/system/"+unit+".service.d/nvml.conf", []byte(nvmlDropIn), 0o644))
	}
	run(ctx, t, "systemctl daemon-reload && systemctl -q enable gpuvirt-lab-nvml && systemctl restart gpuvirt-lab-nvml")
	t.Cleanup(func() {
		if hypervisor.Died() != "" {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		run(ctx, t, "systemctl -q disable gpuvirt-lab-nvml; rm -rf "+nvmlLibrary+" "+nvmlTemplate+
			" /run/gpuvirt-lab-nvml /etc/systemd/system/gpuvirt-lab-nvml.service /etc/systemd/system/gpuvirt*.service.d/nvml.conf; systemctl daemon-reload; systemctl restart gpuvirtd")
	})
	must(t, hypervisor.StartDaemon(ctx))
}

// edit changes the state of the look-alike as something else on the host would.
func editNVML(ctx context.Context, t *testing.T, change func(nvml.File) error) {
	t.Helper()
	f := nvml.File(filepath.Join(t.TempDir(), "state"))
	must(t, os.WriteFile(string(f), []byte(run(ctx, t, "cat "+nvmlState)+"\n"), 0o600))
	must(t, change(f))
	must(t, hypervisor.Put(ctx, string(f), nvmlState+".edited", 0o600))
	run(ctx, t, "mv "+nvmlState+".edited "+nvmlState)
}

// changes are the calls of the library since boot that change something.
func changes(ctx context.Context, t *testing.T) (out []string) {
	t.Helper()
	for line := range strings.Lines(run(ctx, t, "cat "+nvmlState+".calls 2>/dev/null || true")) {
		if line = strings.TrimSpace(line); line != "" && line != "Init" && line != "Shutdown" {
			out = append(out, line)
		}
	}
	return out
}

// open is how many sessions with the library have not ended.
func open(ctx context.Context, t *testing.T) string {
	t.Helper()
	return run(ctx, t, "echo $(($(grep -c ^Init "+nvmlState+".calls) - $(grep -c ^Shutdown "+nvmlState+".calls)))")
}

func cut(instances ...string) api.Layout {
	l := api.Layout{Enabled: true, Instances: []api.LayoutInstance{}}
	for _, p := range instances {
		l.Instances = append(l.Instances, api.LayoutInstance{Profile: p})
	}
	return l
}

// layOut puts a layout and returns what is there then: "1g.5gb@0 3g.20gb@4".
func layOut(ctx context.Context, t *testing.T, instances ...string) string {
	t.Helper()
	done(ctx, t, call(ctx, t, http.MethodPut, migPath(cutCard), cut(instances...)))
	return layout(ctx, t, cutCard)
}

func layout(ctx context.Context, t *testing.T, a gpu.Address) string {
	t.Helper()
	m := get[api.MIG](ctx, t, migPath(a))
	if !m.Equal {
		t.Errorf("%s is not as asked for: %+v", a, m)
	}
	var out []string
	for _, in := range m.Actual.Instances {
		out = append(out, fmt.Sprintf("%s@%d", in.Profile, *in.Placement))
	}
	return strings.Join(out, " ")
}

// instanceAt is the partition that begins at a memory slice.
func instanceAt(ctx context.Context, t *testing.T, slot string) api.Partition {
	t.Helper()
	for _, p := range list[api.Partition](ctx, t, "/v1/partitions?kind=mig&gpu="+cutCard.String()) {
		if p.Slot == slot {
			return p
		}
	}
	t.Fatalf("nothing begins at %s", slot)
	return api.Partition{}
}

// The real daemon with the real binding cuts one of two cards: one instance changes
// while its neighbours stay, no other card is touched, and a reboot brings the layout
// back (T10, T29, T30, T32, T33, T34, T36).
func TestMIG(t *testing.T) {
	ctx := Scenario(t, hypervisor, 8*time.Minute)
	fresh(ctx, t)
	installNVML(ctx, t, twoCards()...)
	manage(ctx, t, cutCard.String(), otherCard.String(), "mbochs")
	for _, a := range []gpu.Address{cutCard, otherCard} {
		if m := get[api.MIG](ctx, t, migPath(a)); m.Wanted != nil || m.Mode != (api.MIGMode{Capable: true}) {
			t.Fatalf("%s: %+v", a, m)
		}
	}
	if got := changes(ctx, t); len(got) != 0 {
		t.Errorf("looking changed something: %q", got)
	}

	// Somebody uses the card: its mode stays, and nothing waits for a reset.
	editNVML(ctx, t, func(f nvml.File) error { return f.Use(cutCard, 4711, -1) })
	busy := call(ctx, t, http.MethodPut, migPath(cutCard), cut("1g.5gb")).problem(t, http.StatusConflict, "gpu-busy")
	if len(busy.Blockers) != 1 || busy.Blockers[0].ID != "4711" {
		t.Errorf("%+v", busy)
	}
	if n := len(changes(ctx, t)); n != 0 {
		t.Errorf("%d changes were tried", n)
	}
	if m := get[api.MIG](ctx, t, migPath(cutCard)); m.Wanted != nil || m.Mode != (api.MIGMode{Capable: true}) {
		t.Errorf("%+v", m)
	}
	editNVML(ctx, t, func(f nvml.File) error { return f.Idle(cutCard) })

	// A mode that waits for a reset: the operation waits for a person, and goes on.
	editNVML(ctx, t, func(f nvml.File) error { return f.Fail(nvml.Activation, mig.ErrResetRequired, 1) })
	waits := ended(ctx, t, call(ctx, t, http.MethodPut, migPath(cutCard), cut("7g.40gb")))
	if waits.Status != "waiting" || !strings.Contains(waits.Reason, "reset") {
		t.Errorf("%+v", waits)
	}
	editNVML(ctx, t, func(f nvml.File) error { return f.Reset(cutCard) })
	if op := ended(ctx, t, call(ctx, t, http.MethodPost, "/v1/operations/"+waits.ID+"/retry", nil)); op.Status != "done" {
		t.Errorf("%+v", op)
	}

	if got := layOut(ctx, t, "3g.20gb", "2g.10gb", "1g.5gb", "1g.5gb"); got != "1g.5gb@0 1g.5gb@1 2g.10gb@2 3g.20gb@4" {
		t.Fatal(got)
	}
	stays := []api.Partition{instanceAt(ctx, t, "0"), instanceAt(ctx, t, "1"), instanceAt(ctx, t, "4")}
	goes := instanceAt(ctx, t, "2")

	// One is in use, another changes.
	editNVML(ctx, t, func(f nvml.File) error { return f.Use(cutCard, 4711, atoi(t, stays[2].Instance)) })
	stays[2] = instanceAt(ctx, t, "4")
	if len(stays[2].Holders) != 1 || stays[2].Holders[0].ID != "4711" {
		t.Errorf("%+v", stays[2])
	}
	before := changes(ctx, t)
	if got := layOut(ctx, t, "3g.20gb", "1g.5gb", "1g.5gb", "1g.5gb", "1g.5gb"); got != "1g.5gb@0 1g.5gb@1 1g.5gb@2 1g.5gb@3 3g.20gb@4" {
		t.Error(got)
	}
	for _, p := range stays {
		if diff := cmp.Diff(p, instanceAt(ctx, t, p.Slot)); diff != "" {
			t.Errorf("a neighbour changed:\n%s", diff)
		}
	}
	bus := "00000000:41:00.0"
	var allowed []string
	for _, call := range changes(ctx, t)[len(before):] {
		ours := strings.HasPrefix(call, "Create") && strings.Contains(call, " "+bus+" ") ||
			strings.HasPrefix(call, "DestroyComputeInstance "+bus+" "+goes.Instance+" ") || strings.HasPrefix(call, "DestroyGpuInstance "+bus+" "+goes.Instance+" ")
		if !ours || !strings.HasSuffix(call, "-> 0") {
			t.Errorf("touched: %s", call)
		}
		allowed = append(allowed, call)
	}
	if len(allowed) != 6 {
		t.Errorf("calls: %q", allowed)
	}

	// What is in use is in the way, and named.
	p := call(ctx, t, http.MethodPut, migPath(cutCard), cut("7g.40gb")).problem(t, http.StatusConflict, "gpu-busy")
	if len(p.Blockers) != 1 || p.Blockers[0].ID != stays[2].ID || !strings.Contains(p.Blockers[0].Note, "4711") {
		t.Errorf("%+v", p)
	}
	call(ctx, t, http.MethodDelete, "/v1/partitions/"+strings.ReplaceAll(stays[2].ID, "/", "%2F"), nil).problem(t, http.StatusConflict, "gpu-busy")

	// A kill in the middle: afterwards it is as asked for, before or after.
	editNVML(ctx, t, func(f nvml.File) error { return f.Idle(cutCard) })
	r := call(ctx, t, http.MethodPut, migPath(cutCard), cut("4g.20gb", "2g.10gb", "1g.5gb"))
	run(ctx, t, "systemctl kill -s KILL gpuvirtd")
	must(t, hypervisor.WaitReady(ctx))
	op := ended(ctx, t, r)
	if is, want := layout(ctx, t, cutCard), map[string]string{
		"done": "4g.20gb@0 2g.10gb@4 1g.5gb@6", "undone": "1g.5gb@0 1g.5gb@1 1g.5gb@2 1g.5gb@3 3g.20gb@4",
	}[op.Status]; is != want || want == "" {
		t.Errorf("%s after a kill, want %s: %+v", is, want, op)
	}
	if got := layOut(ctx, t, "4g.20gb", "2g.10gb", "1g.5gb+me"); got == "" {
		t.Error("nothing is there")
	}
	want := layout(ctx, t, cutCard)
	was := instanceAt(ctx, t, "0")
	if calls := changes(ctx, t); slices.ContainsFunc(calls, func(c string) bool { return strings.Contains(c, "00000000:42:00.0") }) {
		t.Errorf("the other card was touched: %q", calls)
	}

	// Everything is gone with the boot, and comes back to the same places.
	must(t, hypervisor.Reboot(ctx))
	must(t, hypervisor.WaitReady(ctx))
	if got := layout(ctx, t, cutCard); got != want {
		t.Errorf("after the reboot %s, before it %s", got, want)
	}
	if is := instanceAt(ctx, t, "0"); is.ID != was.ID || is.Profile != was.Profile || is.State != "made" || is.Compute[0].UUID == "" {
		t.Errorf("%+v came back as %+v", was, is)
	}
	restored := changes(ctx, t)
	if len(restored) != 7 || !strings.HasPrefix(restored[0], "SetMigMode "+bus+" 1") {
		t.Errorf("the restore called %q", restored)
	}
	asAtBoot(ctx, t)
	run(ctx, t, "systemctl restart gpuvirt-restore gpuvirtd")
	must(t, hypervisor.WaitReady(ctx))
	if got := run(ctx, t, "systemctl show -P ConditionResult gpuvirt-restore"); got != "yes" {
		t.Errorf("the second restore did not run: %s", got)
	}
	if again := changes(ctx, t); len(again) != len(restored) {
		t.Errorf("a second restore called %q", again[len(restored):])
	}
	if n := open(ctx, t); n != "0" {
		t.Errorf("%s sessions are open", n)
	}
}

func atoi(t *testing.T, s string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Without NVIDIA's driver the daemon says so once and serves everything else; with one
// that does not fit its library, too.
func TestMIGWithoutDriver(t *testing.T) {
	ctx := Scenario(t, hypervisor, 3*time.Minute)
	fresh(ctx, t)
	manage(ctx, t, "mbochs")
	told := func() string {
		return run(ctx, t, "journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID gpuvirtd.service) | grep -c driver-missing || true")
	}
	for range 3 {
		if gpus := list[api.GPU](ctx, t, "/v1/gpus"); !slices.ContainsFunc(gpus, func(g api.GPU) bool { return g.ID == "mbochs" }) {
			t.Fatalf("%+v", gpus)
		}
	}
	if n := told(); n != "1" {
		t.Errorf("told %s times that there is no driver", n)
	}
	installNVML(ctx, t, twoCards()...)
	manage(ctx, t, cutCard.String())
	layOut(ctx, t, "3g.20gb")
	editNVML(ctx, t, func(f nvml.File) error { return f.Fail("nvmlInit_v2", mig.ErrVersionMismatch, -1) })
	if p := instanceAt(ctx, t, "4"); p.State != "made" || len(p.Conditions) != 1 || p.Conditions[0].Type != "Unknown" {
		t.Errorf("what cannot be looked at: %+v", p)
	}
	if info := get[api.Info](ctx, t, "/v1"); info.State != "degraded" {
		t.Errorf("%+v", info)
	}
	_, err := hypervisor.DefineGuest(ctx, "web1", GuestOptions{})
	must(t, err)
	attach(ctx, t, "a", "web1", "mbochs-small")
	detach(ctx, t, "a")
}
