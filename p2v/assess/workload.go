package assess

import (
	"cmp"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// A Workload is something that uses GPUs of the source: a service, a container, or a
// program that belongs to neither. What only watches GPUs is none.
type Workload struct {
	Kind       string   `json:"kind"` // service, container, program
	Name       string   `json:"name"` // the unit, the container's name or id, the program
	State      string   `json:"state,omitempty"`
	Image      string   `json:"image,omitempty"` // of a container
	Programs   []string `json:"programs"`
	Frameworks []string `json:"frameworks"`
	// GPUs are the addresses of those that it has open; what it asks for, Asks, may be more.
	GPUs []string `json:"gpus"`
	Asks []string `json:"asks"` // a container's own words: "all", "device=0"
	// MemoryBytes is what it has on the GPUs at the moment of the inspection, and PeakBytes
	// the most over the window, of each GPU by itself and added; 0: not known.
	MemoryBytes uint64 `json:"memory_bytes"`
	PeakBytes   uint64 `json:"peak_bytes"`
}

// workloads groups what uses GPUs, by container, else by unit, else by program.
func (l *look) workloads() []Workload {
	found := map[[2]string]*Workload{}
	get := func(kind, id string) *Workload {
		w := found[[2]string{kind, id}]
		if w == nil {
			w = &Workload{Kind: kind, Name: shorten(id), Programs: []string{}, Frameworks: []string{}, GPUs: []string{}, Asks: []string{}}
			found[[2]string{kind, id}] = w
		}
		return w
	}
	for _, p := range l.users {
		w := get(owner(p.Container, p.Unit, p.Exe))
		w.Programs = append(w.Programs, shorten(p.Exe))
		if p.Framework != "" {
			w.Frameworks = append(w.Frameworks, shorten(p.Framework))
		}
		for _, g := range p.GPUs {
			w.GPUs = append(w.GPUs, shorten(g))
		}
		w.MemoryBytes = sum(w.MemoryBytes, p.MemoryBytes)
	}
	if l.Usage != nil {
		for _, u := range l.Usage.Processes {
			if key := owned(u); found[key] != nil {
				found[key].PeakBytes = sum(found[key].PeakBytes, bytesOf(u.Memory.Max))
			}
		}
	}
	for _, c := range l.Containers {
		if len(c.GPUs) == 0 && found[[2]string{"container", c.ID}] == nil {
			continue
		}
		w := get("container", c.ID)
		w.Name, w.Image, w.State = shorten(cmp.Or(c.Name, c.ID)), shorten(c.Image), shorten(c.State)
		for _, g := range c.GPUs {
			w.Asks = append(w.Asks, shorten(g))
		}
	}
	for _, s := range l.Services {
		if s.Role == "workload" || found[[2]string{"service", s.Unit}] != nil {
			get("service", s.Unit).State = shorten(s.State)
		}
	}
	out := make([]Workload, 0, len(found))
	for _, w := range found {
		for _, list := range []*[]string{&w.Programs, &w.Frameworks, &w.GPUs, &w.Asks} {
			slices.Sort(*list)
			*list = slices.Compact(*list)
		}
		out = append(out, *w)
	}
	slices.SortFunc(out, func(a, b Workload) int {
		return cmp.Or(cmp.Compare(b.PeakBytes, a.PeakBytes), cmp.Compare(b.MemoryBytes, a.MemoryBytes),
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Image, b.Image), cmp.Compare(a.State, b.State),
			slices.Compare(a.GPUs, b.GPUs), slices.Compare(a.Asks, b.Asks), slices.Compare(a.Programs, b.Programs))
	})
	return out
}

// owner is who a program belongs to.
func owner(container, unit, exe string) (kind, id string) {
	switch {
	case container != "":
		return "container", container
	case unit != "" && !strings.HasSuffix(unit, ".scope"):
		return "service", unit
	default:
		return "program", exe
	}
}

func owned(u report.ProcessUsage) [2]string {
	kind, id := owner(u.Container, u.Unit, u.Exe)
	return [2]string{kind, id}
}
