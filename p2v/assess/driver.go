package assess

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

//go:embed drivers.json
var driversFile []byte

// A Branch is a branch of NVIDIA's driver; see the readme of drivers.json.
type Branch struct {
	Branch           int    `json:"branch"`
	VGPU             string `json:"vgpu,omitempty"`
	LongTerm         bool   `json:"long_term,omitempty"`
	SameBranch       bool   `json:"same_branch,omitempty"`
	Previous         int    `json:"previous,omitempty"`
	PreviousLongTerm int    `json:"previous_long_term,omitempty"`
	CUDA             string `json:"cuda,omitempty"`
	Certain          string `json:"certain,omitempty"` // documented, inferred
	LongTermCertain  string `json:"long_term_certain,omitempty"`
}

// An Architecture says which branches serve GPUs of a compute capability.
type Architecture struct {
	Capability string `json:"compute_capability"`
	Since      int    `json:"since"`
	Until      int    `json:"until,omitempty"`
	Modules    string `json:"modules,omitempty"` // open, proprietary: the only flavour that serves it
}

// Drivers is the table of which drivers go together.
type Drivers struct {
	Branches      []Branch       `json:"branches"`
	Architectures []Architecture `json:"architectures"`
}

// BuiltInDrivers returns the table that comes with this version.
func BuiltInDrivers() Drivers {
	d := builtIn()
	return Drivers{slices.Clone(d.Branches), slices.Clone(d.Architectures)}
}

var builtIn = sync.OnceValue(func() Drivers {
	d, err := readDrivers(driversFile)
	if err != nil {
		panic("assess: drivers.json: " + err.Error()) // it is built in, and tested
	}
	return d
})

func readDrivers(data []byte) (Drivers, error) {
	var d struct {
		Drivers
		Readme     []string `json:"readme"`
		ArchReadme []string `json:"architectures_readme"`
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return Drivers{}, fmt.Errorf("cannot read the table of drivers: %w", err)
	}
	for _, b := range d.Branches {
		if err := b.check(); err != nil {
			return Drivers{}, fmt.Errorf("cannot read the table of drivers: branch %d: %w", b.Branch, err)
		}
	}
	for _, a := range d.Architectures {
		if err := a.check(); err != nil {
			return Drivers{}, fmt.Errorf("cannot read the table of drivers: architecture %q: %w", a.Capability, err)
		}
	}
	return d.Drivers, nil
}

func (d Drivers) branch(n int) (Branch, bool) {
	i := slices.IndexFunc(d.Branches, func(b Branch) bool { return b.Branch == n })
	if i < 0 {
		return Branch{}, false
	}
	return d.Branches[i], true
}

// branchOf is the number before the first point of a version; 0: it is no version.
func branchOf(version string) int {
	head, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(head)
	if err != nil || n < 100 || n > 9999 {
		return 0
	}
	return n
}

// Agreement says whether two drivers go together.
type Agreement string

// The agreements. What is not in the table is unknown, and never fine.
const (
	Compatible   Agreement = "compatible"
	Incompatible Agreement = "incompatible"
	Unknown      Agreement = "unknown"
)

// Compatibility says whether a guest's driver goes with this host's.
type Compatibility struct {
	State Agreement `json:"state"`
	Host  string    `json:"host_driver,omitempty"` // empty: not known, or a whole card's, which plays no part
	Guest string    `json:"guest_driver,omitempty"`
	// Certain is documented or inferred, where State is not unknown.
	Certain string `json:"certain,omitempty"`
	Why     string `json:"why"`
	// Allowed lists the branches of guest drivers that go with the host's, newest first.
	Allowed []int `json:"allowed_branches"`
}

// VGPU compares the driver of a vGPU's guest with the host's manager. Either may be empty:
// that is unknown.
func (d Drivers) VGPU(host, guest string) Compatibility {
	c := Compatibility{State: Unknown, Host: shorten(host), Guest: shorten(guest), Allowed: []int{}}
	h, g := branchOf(host), branchOf(guest)
	row, known := d.branch(h)
	switch {
	case host == "":
		c.Why = "the version of this host's driver is not known"
		return c
	case !known || row.VGPU == "":
		c.Why = fmt.Sprintf("branch %d of this host's driver is not among those of vGPU software that are known here", h)
		return c
	}
	for _, n := range []int{h, row.Previous, row.PreviousLongTerm} {
		if n > 0 && !slices.Contains(c.Allowed, n) {
			c.Allowed = append(c.Allowed, n)
		}
	}
	switch certain := row.Certain; {
	case guest == "":
		c.Why = "no driver for the guest is named"
	case g == 0:
		c.Why = "the guest's driver has no version that can be read"
	case major(host) == major(guest) && h == g:
		c.set(Compatible, certain, "both are of one release")
	case g == h && row.SameBranch:
		c.set(Compatible, certain, fmt.Sprintf("both are of branch %d, whose releases go together", h))
	case g == h:
		c.Why = fmt.Sprintf("both are of branch %d, but of different releases, which the notes of this branch do not name", h)
	case g == row.Previous:
		c.set(Compatible, certain, fmt.Sprintf("branch %d is the one before %d, which serves it", g, h))
	case g == row.PreviousLongTerm:
		if row.LongTermCertain != "" {
			certain = row.LongTermCertain
		}
		c.set(Compatible, certain, fmt.Sprintf("branch %d is the long-term one before %d, which serves it", g, h))
	case g > h:
		c.set(Incompatible, "documented", fmt.Sprintf("branch %d of the guest is newer than %d of the host", g, h))
	default:
		c.set(Incompatible, certain, fmt.Sprintf("branch %d of the guest is older than those that %d of the host serves", g, h))
	}
	return c
}

func (c *Compatibility) set(s Agreement, certain, why string) {
	c.State, c.Certain, c.Why = s, certain, why
}

// major is branch and release of a version: manager and guest of one release often differ
// in the last part (525.85.07 and 525.85.05).
func major(version string) string {
	parts := strings.Split(version, ".")
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// Card says whether a data-centre driver serves a card of this compute capability.
func (d Drivers) Card(driver, flavour, capability string) Compatibility {
	c := Compatibility{State: Unknown, Guest: shorten(driver), Allowed: []int{}}
	g := branchOf(driver)
	i := slices.IndexFunc(d.Architectures, func(a Architecture) bool { return a.Capability == capability })
	switch {
	case g == 0:
		c.Why = "the guest's driver has no version that can be read"
	case i < 0:
		c.Why = "the card's architecture is not known here"
	case g < d.Architectures[i].Since:
		c.set(Incompatible, "documented", fmt.Sprintf("GPUs of compute capability %s need branch %d or later", capability, d.Architectures[i].Since))
	case d.Architectures[i].Until > 0 && g > d.Architectures[i].Until:
		c.set(Incompatible, "documented", fmt.Sprintf("branch %d is the last for GPUs of compute capability %s", d.Architectures[i].Until, capability))
	case d.Architectures[i].Modules != "" && flavour != "" && flavour != "unknown" && flavour != d.Architectures[i].Modules:
		c.set(Incompatible, "documented", fmt.Sprintf("GPUs of compute capability %s need the %s kernel modules", capability, d.Architectures[i].Modules))
	default:
		c.set(Compatible, "inferred", fmt.Sprintf("branch %d serves compute capability %s; the card's release notes tell from which release", g, capability))
	}
	return c
}

// CUDA is the newest version that a driver serves; empty: not known.
func (d Drivers) CUDA(driver string) string {
	row, _ := d.branch(branchOf(driver))
	return row.CUDA
}

// requiredCUDA reads the version that an image asks for ("cuda>=12.4 brand=tesla,…");
// ok is false where it asks for none.
func requiredCUDA(requirement string) (version [2]int, ok bool) {
	for word := range strings.FieldsFuncSeq(requirement, func(r rune) bool { return r == ' ' || r == ',' }) {
		if text, found := strings.CutPrefix(word, "cuda>="); found {
			return cudaVersion(text)
		}
	}
	return version, false
}

func cudaVersion(text string) (version [2]int, ok bool) {
	head, tail, _ := strings.Cut(text, ".")
	tail, _, _ = strings.Cut(tail, ".")
	a, err1 := strconv.Atoi(head)
	b, err2 := strconv.Atoi(tail)
	return [2]int{a, b}, err1 == nil && (err2 == nil || tail == "")
}
