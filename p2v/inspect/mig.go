package inspect

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/p2v/report"
)

var (
	lgiRow  = regexp.MustCompile(`^\|\s*(\d+)\s+MIG (\S+)\s+\d+\s+(\d+)\s+(\d+:\d+)\s*\|`)
	listGPU = regexp.MustCompile(`^GPU (\d+): .*\(UUID: (GPU-[0-9a-fA-F-]+)\)`)
	listMIG = regexp.MustCompile(`^\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)]+)\)`)
)

// instances returns the MIG instances of each GPU: which there are is in the document, their
// profile and place in a table that only root may see, their UUIDs in a list.
func (s *scene) instances(gpus []report.GPU, l *smiLog) [][]report.MIGInstance {
	out := make([][]report.MIGInstance, len(gpus))
	if !slices.ContainsFunc(gpus, func(g report.GPU) bool { return g.MIG == "enabled" }) {
		return out
	}
	table, err := s.tools.out(s.ctx, "nvidia-smi", "mig", "-lgi")
	if err != nil {
		s.miss("gpus.instances", "%s", err)
	}
	list, err := s.tools.out(s.ctx, "nvidia-smi", "-L")
	if err != nil {
		s.miss("gpus.instances", "%s", err)
	}
	for n, from := range l.GPUs {
		if i := index(gpus, smiAddress(from.ID)); i >= 0 && gpus[i].MIG == "enabled" {
			out[i] = migInstances(n, from, table, list)
		}
	}
	return out
}

func migInstances(gpu int, from smiGPU, table, list string) []report.MIGInstance {
	byID := map[int]*report.MIGInstance{}
	at := func(id int) *report.MIGInstance {
		if byID[id] == nil {
			byID[id] = &report.MIGInstance{ID: id, UUIDs: []string{}}
		}
		return byID[id]
	}
	for line := range strings.Lines(table) {
		if g := lgiRow.FindStringSubmatch(line); g != nil && g[1] == strconv.Itoa(gpu) {
			id, _ := strconv.Atoi(g[3])
			in := at(id)
			in.Profile, in.Place = g[2], g[4]
		}
	}
	device := map[string][2]string{} // by its index: profile and UUID
	current := ""
	for line := range strings.Lines(list) {
		if g := listGPU.FindStringSubmatch(line); g != nil {
			current = g[1]
		} else if g := listMIG.FindStringSubmatch(line); g != nil && current == strconv.Itoa(gpu) {
			device[g[2]] = [2]string{g[1], g[3]}
		}
	}
	for _, m := range from.Instances {
		id, err := strconv.Atoi(strings.TrimSpace(m.Instance))
		if err != nil {
			continue
		}
		in, d := at(id), device[strings.TrimSpace(m.Index)]
		in.Profile = cmp.Or(in.Profile, d[0])
		if d[1] != "" {
			in.UUIDs = append(in.UUIDs, d[1])
		}
	}
	out := []report.MIGInstance{}
	for _, in := range byID {
		out = append(out, *in)
	}
	slices.SortFunc(out, func(a, b report.MIGInstance) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

var escapes = regexp.MustCompile(`\x1b\[[0-9;]*m`)

// topology reads nvidia-smi's matrix: how GPUs and NICs reach one another.
func (s *scene) topology(gpus []report.GPU) []report.Link {
	driven := 0
	for _, g := range gpus {
		if g.Index >= 0 {
			driven++
		}
	}
	text, err := s.tools.out(s.ctx, "nvidia-smi", "topo", "-m")
	if err != nil {
		if driven > 1 {
			s.miss("topology", "%s", err)
		}
		return nil
	}
	name := map[string]string{}
	for _, g := range gpus {
		if g.Index >= 0 {
			name["GPU"+strconv.Itoa(g.Index)] = g.PCI
		}
	}
	text = escapes.ReplaceAllString(text, "")
	for line := range strings.Lines(text) { // the legend: "NIC0: mlx5_0"
		nic, device, found := strings.Cut(strings.TrimSpace(line), ": ")
		if found && strings.HasPrefix(nic, "NIC") {
			name[nic] = s.rdmaAddress(strings.TrimSpace(device))
		}
	}
	for _, device := range s.tree.names("sys/class/infiniband") { // older ones name them at once
		name[device] = s.rdmaAddress(device)
	}
	return matrix(text, name)
}

func (s *scene) rdmaAddress(device string) string {
	if at := s.tree.base(path.Join("sys/class/infiniband", path.Base(device), "device")); pciAddress.MatchString(at) {
		return at
	}
	return ""
}

func matrix(text string, name map[string]string) []report.Link {
	var out []report.Link
	var head []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case head == nil && f[0] == "GPU0" && len(f) > 1 && !strings.Contains(line, "X "):
			for _, h := range f {
				if name[h] == "" && !strings.HasPrefix(h, "GPU") && !strings.HasPrefix(h, "NIC") && !strings.Contains(h, "_") {
					break // "CPU Affinity" and what follows
				}
				head = append(head, h)
			}
		case name[f[0]] != "":
			for n, h := range head {
				// Each pair once, from the GPU's side.
				if n+1 < len(f) && strings.HasPrefix(f[0], "GPU") && name[h] != "" && (!strings.HasPrefix(h, "GPU") || after(h, f[0])) {
					out = append(out, report.Link{A: name[f[0]], B: name[h], Kind: f[n+1]})
				}
			}
		}
	}
	return out
}

// after reports whether a name with a number comes after another.
func after(a, b string) bool { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) > 0 }
