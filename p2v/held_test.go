package p2v_test

import (
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/guest"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/verify"
)

const sourceGPU = "0000:17:00.0"

// equip has the inspection say that there is a GPU with a data-centre driver, and gives this host one
// of the same model, with a profile of which one is left.
func (y *yard) equip(p gpu.Profile) {
	y.t.Helper()
	const model = "NVIDIA H100 80GB HBM3"
	r := y.machine.report()
	r.GPUs = []report.GPU{{
		PCI: sourceGPU, PCIID: "10de:2330", Vendor: "nvidia", Model: model, UUID: "GPU-7f2b9e1c-53a4-4d0e-9c68-1b0a4f6d2e35",
		MemoryBytes: 80 << 30, Driver: "nvidia", Multiprocessors: 132, Capability: "9.0",
	}}
	r.Driver = &report.Driver{Version: "580.95.05", Flavour: "open", Origin: "deb", Packages: []string{"nvidia-driver=580.95.05-1"}, Modules: []string{"nvidia"}}
	r.Configs = []report.Config{{Path: "/etc/modules-load.d/nvidia.conf", Kind: "modules-load", Lines: []string{"nvidia"}, Exact: []string{"nvidia"}}}
	r.Clean()
	rec := report.AssessmentRecord{Name: "gpu7", Source: ssh(), State: report.StateDone, Report: r}
	if err := y.store.Apply(operation.Put(report.RecordAssessment, "gpu7", rec)); err != nil {
		y.t.Fatal(err)
	}
	y.holders.set(func(h *holders) {
		g := gpu.GPU{ID: card, Vendor: "NVIDIA", Model: model, MemoryBytes: 80 << 30, Managed: true, PCIAddress: string(card)}
		g.Driver.Version = "580.95.02"
		h.gpus, h.profiles = []gpu.GPU{g}, []gpu.Profile{p}
	})
}

// What a guest needs for its GPU is planned and done for the partition that is reserved for it, also
// where that was the last one: the migration's own assignment is nothing that is taken from it.
func TestReservedIsPlannedFor(t *testing.T) {
	for name, c := range map[string]struct {
		profile          gpu.Profile
		changes, without []string // of the plan
		edits            []string
	}{
		"card": {
			gpu.Profile{Name: "card-10de:2330", Kind: gpu.KindCard, Available: 1}, []string{"driver-keep"}, []string{"driver-modules", "driver-remove"}, nil,
		},
		"vGPU": {
			gpu.Profile{Name: "H100XM-2-20C", Kind: gpu.KindVGPU, Available: 1, MemoryBytes: 20 << 30, Attributes: map[string]string{"series": "C"}},
			[]string{"driver-remove", "driver-vgpu", "licence"},
			[]string{"driver-keep"},
			[]string{"driver-remove", "driver-vgpu", "licence"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			y.equip(c.profile)
			y.guest = guest.Options{Driver: guest.Driver{Packages: []string{"/guests/nvidia-linux-grid-580.deb"}, Token: []byte("token")}}
			w := move.Wish{Name: "gpu7", Assessment: "gpu7", Plan: assess.Wish{
				GuestDriver: "580.95.05", LicenceToken: true, Partitions: []assess.WishPartition{{Source: sourceGPU, Profile: c.profile.Name}},
				Waivers: slices.Concat(waived("no-partition"), waived("drivers-unknown"), waived("drivers-do-not-match")),
			}}
			fits := func(what string, p assess.Plan, err error) {
				t.Helper()
				if err != nil || p.Verdict.State == assess.Blocked || p.Fittings[0].Choice == nil || p.Fittings[0].Choice.Profile != c.profile.Name {
					t.Errorf("%s: %+v, %v, %+v", what, p.Verdict, err, p.Fittings)
				}
				var ids []string
				for _, change := range p.Changes {
					ids = append(ids, change.ID)
				}
				for _, id := range c.changes {
					if !slices.Contains(ids, id) {
						t.Errorf("%s: %s is missing: %q", what, id, ids)
					}
				}
				for _, id := range c.without {
					if slices.Contains(ids, id) {
						t.Errorf("%s: %s is planned: %q", what, id, ids)
					}
				}
			}
			p, err := y.Plan(t.Context(), w)
			fits("before", p, err)
			if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
				t.Fatal(err)
			}
			v := y.until("ready", phase(move.PhaseReady))
			if s := v.VM.Slices; len(s) != 1 || s[0].Source != sourceGPU || s[0].Model == "" {
				t.Errorf("%+v", s)
			}
			memory := v.VM.Slices[0].MemoryBytes
			if c.profile.Kind == gpu.KindCard { // it has left NVIDIA's driver, and only its ids are seen
				y.holders.set(func(h *holders) { h.gpus[0].Model, h.gpus[0].MemoryBytes = "10de:ffff", 0 })
			}
			p, err = y.PlanOf(t.Context(), "gpu7")
			fits("reserved", p, err)
			if f := p.Fittings[0].Choice; f == nil || f.Model != "NVIDIA H100 80GB HBM3" || f.MemoryBytes == 0 || f.MemoryBytes != memory {
				t.Errorf("reserved: %+v, and before %d bytes", f, memory)
			}
			for _, d := range p.Drivers {
				if c.profile.Kind == gpu.KindCard && d.State != assess.Compatible {
					t.Errorf("reserved: %+v", d)
				}
			}
			a := y.rehearse(move.CutWish{})
			for _, id := range c.edits {
				if !slices.ContainsFunc(y.makers.edited(), func(e string) bool { return strings.HasPrefix(e, id) }) {
					t.Errorf("%s was not done: %q", id, y.makers.edited())
				}
			}
			if slices.ContainsFunc(y.makers.edited(), func(e string) bool {
				return slices.ContainsFunc(c.without, func(id string) bool { return strings.HasPrefix(e, id) })
			}) {
				t.Errorf("done: %q", y.makers.edited())
			}
			if a.Driver != "nvidia" {
				t.Errorf("the driver is %q", a.Driver)
			}
			// The driver is looked for in the VM, whose agent here knows of no PCI device.
			i := slices.IndexFunc(a.Report.Results, func(r verify.Result) bool { return r.ID == "driver" })
			if i < 0 || a.Report.Results[i].State == verify.StateSkipped || a.State != move.Failed {
				t.Errorf("%s: %+v", a.State, a.Report.Results)
			}

			// What this host does not tell of any more is what it was, as long as that was written down.
			was := y.makers.edited()
			y.holders.set(func(h *holders) { h.profiles = nil })
			if a := y.rehearse(move.CutWish{}); !slices.Equal(y.makers.edited(), was) || a.Driver != "nvidia" {
				t.Errorf("done: %q, and before %q", y.makers.edited(), was)
			}
			y.stop()
			rec, err := y.store.MigrationRecord("gpu7")
			if err != nil {
				t.Fatal(err)
			}
			rec.VM.Slices[0].Sharing = "" // of a version before
			if err := y.store.Apply(operation.Put(move.RecordMigration, "gpu7", rec)); err != nil {
				t.Fatal(err)
			}
			y.start()
			y.until("ready again", func(v move.Migration) bool { return v.Phase == move.PhaseReady && v.Heard.After(rec.Heard) })
			if a := y.rehearse(move.CutWish{}); a.State != move.Failed || !strings.Contains(a.Problem, "of the VM's 1 partition this host knows 0 now") {
				t.Errorf("%+v", a)
			}
		})
	}
}
