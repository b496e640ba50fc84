package assess

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gpuvirt/p2v/report"
)

const (
	inProcess = "it is of a process or a container that somebody started: start it with the new value"
	unsure    = "what it is in the VM is not certain: rewrite it by hand"
)

// A Rewrite is a line of a file where GPUs of the server are named, and what it is in the VM.
type Rewrite struct {
	File, Old, New string
	Items          []string // what is named there
}

// A Pinned is a place where GPUs are named that no line is rewritten for.
type Pinned struct {
	Where  string // as report.Pin has it
	Item   string
	Why    string
	Person bool // somebody has to see to it; else nobody has
}

// Repin says what becomes of the places that name GPUs of a server, in a VM with what was chosen:
// lines are rewritten to the numbers that the GPUs have there, as far as those are certain. Done
// tells whether a line of a file is seen to for another reason.
func Repin(r report.Report, fits []Fitting, done func(file, line string) bool) ([]Rewrite, []Pinned) {
	k := &repinner{source: r, fits: fits, number: map[string]int{}, done: done, at: map[place]int{}, seen: map[report.Pin]bool{}}
	for _, f := range Chosen(fits) {
		if _, twice := k.number[f.Need.Source.PCI]; !twice && f.Need.Source.PCI != "" {
			k.number[f.Need.Source.PCI] = k.gpus
		}
		k.gpus++
	}
	for _, p := range r.Pins {
		if p.Kind == "all" {
			continue
		}
		item := fmt.Sprintf("%s: %s=%s (%s)", p.Where, p.Key, p.Value, p.Kind)
		if why, person := k.pin(p, item); why != "" {
			k.left = append(k.left, Pinned{p.Where, item, why, person})
		}
	}
	return k.lines, k.left
}

// A repinner works out what becomes of pins.
type repinner struct {
	source report.Report
	fits   []Fitting
	number map[string]int // that a GPU of the server has in the VM, by its address
	gpus   int            // of the VM
	done   func(file, line string) bool

	lines []Rewrite
	at    map[place]int // of lines
	seen  map[report.Pin]bool
	left  []Pinned
}

// A place is a line as it stands in a file.
type place struct{ file, line string }

// pin rewrites one, or says why not.
func (k *repinner) pin(p report.Pin, item string) (why string, person bool) {
	i := strings.LastIndex(p.Where, ":")
	switch {
	case !strings.HasPrefix(p.Where, "/") || i < 0:
		return inProcess, true
	case k.gpus == 0:
		return "the VM has no GPU", true
	case p.Key == "BusID" && k.done(p.Where[:i], p.Line):
		return "an edit for another change does it", false
	}
	where, old := place{p.Where[:i], p.Line}, p.Line
	n, began := k.at[where]
	if began {
		old = k.lines[n].New
	}
	line, why := k.rewrite(p, old)
	same := p
	same.Where = where.file
	switch {
	case k.seen[same]: // the line is there twice, and both become what the first did
		k.lines[n].Items = append(k.lines[n].Items, item)
		return "", false
	case why != "":
		return why, true
	case line == old:
		return "it is right in the VM too", false
	case !began:
		n = len(k.lines)
		k.at[where], k.lines = n, append(k.lines, Rewrite{File: where.file, Old: p.Line})
	}
	k.seen[same] = true
	k.lines[n].New, k.lines[n].Items = line, append(k.lines[n].Items, item)
	return "", false
}

// rewrite returns a line with the new value of one pin, or why it is not known.
func (k *repinner) rewrite(p report.Pin, line string) (to, why string) {
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
			if err != nil || n > k.gpus {
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
		return k.rewriteList(p, line)
	case "device":
		return k.rewriteDevice(p, line)
	default:
		return "", unsure
	}
	numbers, ok := k.numbers(strings.Split(list, ","))
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
func (k *repinner) rewriteList(p report.Pin, line string) (to, why string) {
	found := idList.FindAllStringSubmatchIndex(line, -1)
	if len(found) != 1 {
		return "", unsure
	}
	inside := line[found[0][2]:found[0][3]]
	old := idItem.FindAllString(inside, -1)
	numbers, ok := k.numbers(old)
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
func (k *repinner) rewriteDevice(p report.Pin, line string) (to, why string) {
	if k.gpus != 1 || len(k.known()) != 1 || deviceFile.FindString(p.Value) != p.Value {
		return "", unsure
	}
	return regexp.MustCompile(regexp.QuoteMeta(p.Value)+`\b`).ReplaceAllString(line, "/dev/nvidia0"), ""
}

// known are the GPUs that the server's driver counts.
func (k *repinner) known() []report.GPU {
	return slices.DeleteFunc(slices.Clone(k.source.GPUs), func(g report.GPU) bool { return g.Index < 0 })
}

// numbers are those of GPUs in the VM, each once, in place of what they are called on the
// server. They are certain where there is one, or where all are alike: programs count those
// that are not alike in more than one order.
func (k *repinner) numbers(names []string) ([]string, bool) {
	out := []string{}
	for _, name := range names {
		g, ok := k.find(name)
		if !ok {
			return nil, false
		}
		n, ok := k.number[g.PCI]
		if !ok || slices.Contains(out, strconv.Itoa(n)) || k.gpus > 1 && !k.alike() {
			return nil, false
		}
		out = append(out, strconv.Itoa(n))
	}
	return out, true
}

// alike tells whether all partitions are of one profile.
func (k *repinner) alike() bool {
	profiles := map[string]bool{}
	for _, f := range k.fits {
		if f.Choice != nil {
			profiles[f.Choice.Profile] = true
		}
	}
	return len(profiles) == 1
}

// find returns the GPU of the server that a name names.
func (k *repinner) find(name string) (report.GPU, bool) {
	known := k.known()
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
