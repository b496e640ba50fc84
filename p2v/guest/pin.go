package guest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
)

const (
	inProcess = "it is of a process or a container that somebody started: start it with the new value"
	unsure    = "what it is in the VM is not certain: rewrite it by hand"
)

// pins rewrites where the GPUs of the server are named to their numbers in the VM, line by
// line, as far as those are certain.
func (m *maker) pins() {
	type place struct{ file, line string }
	now := map[place]string{}
	items := map[place][]string{}
	var order []place
	seen := map[report.Pin]bool{}
	for _, p := range m.Pins {
		item := fmt.Sprintf("%s: %s=%s (%s)", p.Where, p.Key, p.Value, p.Kind)
		i := strings.LastIndex(p.Where, ":")
		switch {
		case p.Kind == "all":
			continue
		case !strings.HasPrefix(p.Where, "/") || i < 0:
			m.leave(ByPerson, inProcess, item)
			continue
		case m.gpus == 0:
			m.leave(ByPerson, "the VM has no GPU", item)
			continue
		case p.Key == "BusID" && m.done[lineKey(p.Where[:i], p.Line)]:
			m.leave(ByNobody, "an edit for another change does it", item)
			continue
		}
		at := place{p.Where[:i], p.Line}
		old, began := now[at]
		if !began {
			old = p.Line
		}
		line, why := m.rewrite(p, old)
		same := p
		same.Where = at.file
		switch {
		case seen[same]: // the line is there twice, and both become what the first did
		case why != "":
			m.leave(ByPerson, why, item)
			continue
		case line == old:
			m.leave(ByNobody, "it is right in the VM too", item)
			continue
		default:
			now[at], seen[same] = line, true
		}
		if !began {
			order = append(order, at)
		}
		items[at] = append(items[at], item)
	}
	for _, at := range order {
		m.line(at.file, at.line, now[at], items[at]...)
	}
}

// rewrite returns a line with the new value of one pin, or why it is not known.
func (m *maker) rewrite(p report.Pin, line string) (to, why string) {
	switch {
	case p.Line == "":
		return "", "the inspection does not have its line as it stands"
	case !utf8.ValidString(p.Value):
		return "", unsure
	}
	var head string
	tail, list := `(?:$|["'\s#;\\])`, p.Value
	switch p.Key {
	case "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES":
		head = `\b` + p.Key + `["']?\s*[=:]\s*["']?`
	case "--gpus":
		ids, device := strings.CutPrefix(p.Value, "device=")
		if !device { // how many, and not which
			n, err := strconv.Atoi(p.Value)
			if err != nil || n > m.gpus {
				return "", unsure
			}
			return line, ""
		}
		head, list = `--gpus(?:=|\s+)["']*device=`, ids
	case "nvidia-smi -i":
		head = `\bnvidia-smi\b.*?\s(?:-i|--id=?)\s*`
	case "cdi":
		id, nvidia := strings.CutPrefix(p.Value, "nvidia.com/gpu=")
		if !nvidia {
			return "", unsure
		}
		head, list = `\bnvidia\.com/gpu=`, id
	case "device_ids":
		if !strings.Contains(line, "device_ids") { // an item of its list, which has a line of its own
			head, tail = `^\s*-\s*["']?`, `["']?\s*(?:#.*)?$`
			break
		}
		return m.rewriteList(p, line)
	case "device":
		return m.rewriteDevice(p, line)
	default:
		return "", unsure
	}
	numbers, ok := m.numbers(strings.Split(list, ","))
	if !ok {
		return "", unsure
	}
	found := regexp.MustCompile(`(`+head+`)`+regexp.QuoteMeta(list)+tail).FindAllStringSubmatchIndex(line, -1)
	if len(found) != 1 {
		return "", unsure
	}
	end := found[0][3]
	return line[:end] + strings.Join(numbers, ",") + line[end+len(list):], ""
}

var (
	idList = regexp.MustCompile(`\bdevice_ids["']?\s*:\s*\[([^\]]*)\]`)
	idItem = regexp.MustCompile(`[\w.:/-]+`)
)

// rewriteList is for a list in one line: device_ids: ['0', "1"].
func (m *maker) rewriteList(p report.Pin, line string) (to, why string) {
	found := idList.FindAllStringSubmatchIndex(line, -1)
	if len(found) != 1 {
		return "", unsure
	}
	inside := line[found[0][2]:found[0][3]]
	old := idItem.FindAllString(inside, -1)
	numbers, ok := m.numbers(old)
	if !ok || strings.Join(old, ",") != p.Value {
		return "", unsure
	}
	i := -1
	inside = idItem.ReplaceAllStringFunc(inside, func(string) string { i++; return numbers[i] })
	return line[:found[0][2]] + inside + line[found[0][3]:], ""
}

var deviceFile = regexp.MustCompile(`/dev/nvidia[0-9]+\b`)

// rewriteDevice is for a device file, whose number is not that of the GPU where there are
// several.
func (m *maker) rewriteDevice(p report.Pin, line string) (to, why string) {
	if m.gpus != 1 || len(m.known()) != 1 || deviceFile.FindString(p.Value) != p.Value {
		return "", unsure
	}
	return regexp.MustCompile(regexp.QuoteMeta(p.Value)+`\b`).ReplaceAllString(line, "/dev/nvidia0"), ""
}

// known are the GPUs that the server's driver counts.
func (m *maker) known() []report.GPU {
	return slices.DeleteFunc(slices.Clone(m.GPUs), func(g report.GPU) bool { return g.Index < 0 })
}

// numbers are those of GPUs in the VM, each once, in place of what they are called on the
// server. They are certain where there is one, or where all are alike: programs count those
// that are not alike in more than one order.
func (m *maker) numbers(names []string) ([]string, bool) {
	out := []string{}
	for _, name := range names {
		g, ok := m.find(name)
		if !ok {
			return nil, false
		}
		n, ok := m.number[g.PCI]
		if !ok || slices.Contains(out, strconv.Itoa(n)) || m.gpus > 1 && !m.alike() {
			return nil, false
		}
		out = append(out, strconv.Itoa(n))
	}
	return out, true
}

// alike tells whether all partitions are of one profile.
func (m *maker) alike() bool {
	profiles := map[string]bool{}
	for _, f := range m.plan.Fittings {
		if f.Choice != nil {
			profiles[f.Choice.Profile] = true
		}
	}
	return len(profiles) == 1
}

// find returns the GPU of the server that a name names.
func (m *maker) find(name string) (report.GPU, bool) {
	known := m.known()
	is := func(report.GPU) bool { return false }
	switch index, err := strconv.Atoi(name); {
	case err == nil && strconv.Itoa(index) == name:
		// A number counts what the driver or CUDA has put in order: by the bus, or the fastest first.
		if slices.ContainsFunc(known, func(g report.GPU) bool { return g.Model == "" || g.Model != known[0].Model }) {
			return report.GPU{}, false
		}
		is = func(g report.GPU) bool { return g.Index == index }
	case strings.HasPrefix(name, "MIG-"):
		card, _, _ := strings.Cut(strings.TrimPrefix(name, "MIG-"), "/") // of older drivers: MIG-GPU-…/7/0
		is = func(g report.GPU) bool {
			return g.UUID == card || slices.ContainsFunc(g.Instances, func(i report.MIGInstance) bool { return slices.Contains(i.UUIDs, name) })
		}
	case strings.HasPrefix(name, "GPU-"):
		is = func(g report.GPU) bool { return g.UUID == name }
	case strings.Count(name, ":") == 2:
		pci := strings.ToLower(name)
		is = func(g report.GPU) bool { return g.PCI == pci || "0000"+g.PCI == pci } // NVIDIA's have eight digits
	}
	i := slices.IndexFunc(known, is)
	if i < 0 || slices.ContainsFunc(known[i+1:], is) {
		return report.GPU{}, false
	}
	return known[i], true
}

func lineKey(file, line string) string {
	return editKey(convert.Edit{Kind: convert.EditLine, Path: file, Old: line})
}
