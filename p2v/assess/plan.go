package assess

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/p2v/report"
)

// A Plan is how a server would be moved to this host, and whether it can be.
type Plan struct {
	Assessment Assessment `json:"assessment"`
	Wish       Wish       `json:"wish"`
	Fittings   []Fitting  `json:"fittings"`
	// Drivers are the comparisons of drivers that the choices ask for: of a vGPU's guest with
	// this host's, of the source's driver with a whole card.
	Drivers   []DriverCheck `json:"drivers"`
	Changes   []GuestChange `json:"changes"`
	Estimates Estimates     `json:"estimates"`
	Verdict   Verdict       `json:"verdict"`
}

// A DriverCheck is a comparison of drivers for one GPU of this host.
type DriverCheck struct {
	GPU gpu.ID `json:"gpu"`
	Compatibility
}

// State is how ready a plan is.
type State string

// The states.
const (
	Ready             State = "ready"
	ReadyWithWarnings State = "ready-with-warnings"
	Blocked           State = "blocked"
)

// A Verdict says whether a plan can be carried out, and what is in the way.
type Verdict struct {
	State    State     `json:"state"`
	Text     string    `json:"text"`
	Blockers []Concern `json:"blockers"` // that are not waived, each with its remedy
	Warnings []Concern `json:"warnings"`
	Waived   []Waived  `json:"waived"`
}

// Waived is a blocker that somebody has said does not count.
type Waived struct {
	Concern Concern `json:"concern"`
	Waiver  Waiver  `json:"waiver"`
}

// NewPlan plans the move of an inspected server to this host. It reserves nothing: what is
// free may not be so a moment later.
func NewPlan(r report.Report, w Wish, host HostState, p Policy, d Drivers) Plan {
	l := newLook(r, p)
	host = host.known(w.Reserved)
	a := l.assessment()
	out := Plan{Assessment: a, Wish: w.Listed(), Fittings: Fit(a.Needs, host, w, p)}
	out.Drivers = l.driverChecks(out.Fittings, host, w, d)
	out.Changes = l.guestChanges(out.Fittings, w, d)
	out.Estimates = l.estimates(w)
	c := &checker{look: l, plan: &out, host: host, wish: w, drivers: d}
	out.Verdict = decide(slices.Concat(a.Concerns, c.concerns()), w)
	return out
}

// ofConversion are the concerns that are about what changes the guest alone: what is taken as it is has no need of it.
var ofConversion = []string{
	"os-not-convertible", "no-initramfs-tool", "no-room-to-convert",
	"no-converter", "guest-files", "no-licence-file", "no-guest-driver",
}

// driverChecks compares the drivers that the choices ask for.
func (l *look) driverChecks(fits []Fitting, host HostState, w Wish, d Drivers) []DriverCheck {
	out := []DriverCheck{}
	for _, f := range Chosen(fits) {
		i := slices.IndexFunc(host.GPUs, func(g HostGPU) bool { return g.GPU.ID == f.Choice.GPU })
		if i < 0 || slices.ContainsFunc(out, func(c DriverCheck) bool { return c.GPU == f.Choice.GPU }) {
			continue
		}
		g := host.GPUs[i]
		switch {
		case f.Choice.nvidiaVGPU():
			guest := w.GuestDriver
			if guest == "" && l.Driver != nil && l.Driver.Guest {
				guest = l.Driver.Version
			}
			out = append(out, DriverCheck{g.GPU.ID, d.VGPU(g.GPU.Driver.Version, guest)})
		case kind(f.Choice.Sharing) == whole && f.Need.Source.Vendor == nvidia && l.Driver != nil:
			out = append(out, DriverCheck{g.GPU.ID, d.Card(l.Driver.Version, l.Driver.Flavour, g.capability())})
		}
	}
	return out
}

// decide weighs concerns.
func decide(list []Concern, w Wish) Verdict {
	v := Verdict{State: Ready, Blockers: []Concern{}, Warnings: []Concern{}, Waived: []Waived{}}
	for _, c := range list {
		waiver, waived := w.waiver(c.ID)
		switch {
		case w.Unconverted && slices.Contains(ofConversion, c.ID):
		case c.Severity == Blocker && waived:
			v.Waived = append(v.Waived, Waived{c, waiver})
		case c.Severity == Blocker:
			v.Blockers = append(v.Blockers, c)
		case c.Severity == Warning:
			v.Warnings = append(v.Warnings, c)
		}
	}
	switch {
	case len(v.Blockers) > 0:
		titles := make([]string, 0, len(v.Blockers))
		for _, c := range v.Blockers {
			titles = append(titles, strings.ToLower(c.Title[:1])+c.Title[1:])
		}
		v.State, v.Text = Blocked, "Blocked: "+strings.Join(titles, "; ")+"."
	case len(v.Warnings) > 0 || len(v.Waived) > 0:
		v.State, v.Text = ReadyWithWarnings, fmt.Sprintf("Ready, with %s to read", Count(len(v.Warnings), "warning", "warnings"))
		if len(v.Waived) > 0 {
			v.Text += fmt.Sprintf(" and %s waived", Count(len(v.Waived), "blocker", "blockers"))
		}
		v.Text += "."
	default:
		v.Text = "Ready."
	}
	return v
}

// A checker finds what stands in the way of a plan.
type checker struct {
	*look
	plan    *Plan
	host    HostState
	wish    Wish
	drivers Drivers
}

// noPartition is the id of the blocker that nothing fits.
const noPartition = "no-partition"

func (c *checker) concerns() []Concern {
	out := []Concern{}
	for _, r := range planChecks() {
		if hits := r.find(c); len(hits) > 0 {
			out = append(out, r.concern(hits))
		}
	}
	return byWeight(out)
}

// memoryBytes is the VM's memory.
func (c *checker) memoryBytes() uint64 { return cmp.Or(c.wish.MemoryBytes, c.Memory.TotalBytes) }
