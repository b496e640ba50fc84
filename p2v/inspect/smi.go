package inspect

import (
	"encoding/xml"
	"fmt"
	"path"
	"strconv"
	"strings"

	"gpuvirt/p2v/report"
)

// A smiLog is what of "nvidia-smi -q -x" is used. Drivers differ in where they put some of
// it; what is not there stays empty.
type smiLog struct {
	Driver string   `xml:"driver_version"`
	CUDA   string   `xml:"cuda_version"`
	GPUs   []smiGPU `xml:"gpu"`
}

type smiGPU struct {
	ID          string `xml:"id,attr"`
	Name        string `xml:"product_name"`
	UUID        string `xml:"uuid"`
	Serial      string `xml:"serial"`
	VBIOS       string `xml:"vbios_version"`
	Minor       string `xml:"minor_number"`
	Display     string `xml:"display_active"`
	Persistence string `xml:"persistence_mode"`
	ComputeMode string `xml:"compute_mode"`
	MIG         string `xml:"mig_mode>current_mig"`
	Virtual     string `xml:"gpu_virtualization_mode>virtualization_mode"`
	ECC         string `xml:"ecc_mode>current_ecc"`
	Memory      string `xml:"fb_memory_usage>total"`
	BAR1        string `xml:"bar1_memory_usage>total"`
	Power       string `xml:"gpu_power_readings>current_power_limit"` // since the 535s
	PowerOld    string `xml:"power_readings>enforced_power_limit"`
	Fabric      string `xml:"fabric>state"`
	Encoder     string `xml:"encoder_stats>session_count"`

	Instances []smiMIG     `xml:"mig_devices>mig_device"`
	Processes []smiProcess `xml:"processes>process_info"`
}

type smiMIG struct {
	Index    string `xml:"index"`
	Instance string `xml:"gpu_instance_id"`
}

type smiProcess struct {
	PID    string `xml:"pid"`
	Type   string `xml:"type"`
	Name   string `xml:"process_name"`
	Memory string `xml:"used_memory"`
}

// nvidiaSMI asks nvidia-smi, but only where the driver runs and its device files are there:
// else the program itself would load the driver and make them.
func (s *scene) nvidiaSMI(gpus []report.GPU, d *report.Driver) *smiLog {
	if d == nil {
		return nil
	}
	if why := s.notAsked(gpus); why != "" {
		s.miss("gpus", "nvidia-smi was not asked: %s", why)
		return nil
	}
	text, err := s.tools.out(s.ctx, "nvidia-smi", "-q", "-x")
	if err != nil {
		s.miss("gpus", "%s", err)
		return nil
	}
	out, err := parseSMI(text)
	if err != nil {
		s.miss("gpus", "nvidia-smi: %s", err)
		return nil
	}
	s.capabilities(out, gpus)
	return out
}

// notAsked says why nvidia-smi is better not run, empty where nothing speaks against it.
func (s *scene) notAsked(gpus []report.GPU) string {
	if !s.tree.exists("proc/driver/nvidia/version") {
		return "the driver is not loaded"
	}
	want := []string{"dev/nvidiactl"}
	for _, g := range gpus {
		if g.Driver != "nvidia" {
			continue
		}
		if minor := s.nvidiaInformation(g.PCI)["Device Minor"]; minor != "" {
			want = append(want, "dev/nvidia"+minor)
		}
	}
	for _, file := range want {
		if !s.tree.exists(file) {
			return fmt.Sprintf("there is no /%s, and it would make one", file)
		}
	}
	return ""
}

func parseSMI(text string) (*smiLog, error) {
	var out smiLog
	start := strings.Index(text, "<nvidia_smi_log")
	if start < 0 {
		return nil, fmt.Errorf("it wrote no document: %q", firstLine(text))
	}
	dec := xml.NewDecoder(strings.NewReader(text[start:]))
	if err := dec.Decode(&out); err != nil {
		return nil, fmt.Errorf("cannot read its document: %w", err)
	}
	return &out, nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line[:min(len(line), 200)]
}

// smiAddress is a PCI address as the kernel writes it.
func smiAddress(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	domain, rest, found := strings.Cut(s, ":")
	if n, err := strconv.ParseUint(domain, 16, 32); found && err == nil {
		return fmt.Sprintf("%04x:%s", n, rest)
	}
	return s
}

// said is a value, empty where nvidia-smi says that there is none.
func said(v string) string {
	v = strings.TrimSpace(v)
	switch strings.Trim(strings.ToLower(v), "[]") {
	case "n/a", "none", "unknown error", "not supported", "not available", "requested functionality has been deprecated", "insufficient permissions", "-":
		return ""
	}
	return v
}

// mebibytes reads "40960 MiB".
func mebibytes(v string) uint64 {
	n, unit, _ := strings.Cut(said(v), " ")
	if unit != "" && unit != "MiB" {
		return 0
	}
	return min(number(n), 1<<40) << 20
}

func (l *smiLog) fill(r *report.Report) {
	if l == nil {
		return
	}
	if r.Driver != nil {
		r.Driver.CUDA = said(l.CUDA)
	}
	for n, from := range l.GPUs {
		i := index(r.GPUs, smiAddress(from.ID))
		if i < 0 {
			continue
		}
		g := &r.GPUs[i]
		g.Index = n
		set := func(to *string, v string) {
			if v = said(v); v != "" {
				*to = v
			}
		}
		set(&g.Model, from.Name)
		set(&g.UUID, from.UUID)
		set(&g.Serial, from.Serial)
		set(&g.VBIOS, from.VBIOS)
		set(&g.ECC, strings.ToLower(from.ECC))
		set(&g.MIG, strings.ToLower(from.MIG))
		set(&g.ComputeMode, computeMode(from.ComputeMode))
		if bytes := mebibytes(from.Memory); bytes > 0 {
			g.MemoryBytes = bytes
		}
		if bytes := mebibytes(from.BAR1); bytes > 0 {
			g.BAR1Bytes = bytes
		}
		g.Persistence, g.DisplayActive = from.Persistence == "Enabled", from.Display == "Enabled"
		watts, _, _ := strings.Cut(said(from.Power)+said(from.PowerOld), " ")
		if w, err := strconv.ParseFloat(watts, 64); err == nil && w > 0 && w < 1e6 {
			g.PowerWatts = int(w)
		}
		if strings.Contains(from.Virtual, "VGPU") && r.Driver != nil {
			r.Driver.Guest = true // "VGPU" is a guest's, "Host VGPU" its manager's
		}
		g.Multiprocessors = multiprocessors(g.Model)
	}
}

func computeMode(v string) string { return strings.ToLower(strings.ReplaceAll(said(v), "_", "-")) }

// capabilities asks for the compute capability of each GPU, which the document has not.
func (s *scene) capabilities(l *smiLog, gpus []report.GPU) {
	text, err := s.tools.out(s.ctx, "nvidia-smi", "--query-gpu=pci.bus_id,compute_cap", "--format=csv,noheader")
	if err != nil {
		s.miss("gpus.compute_capability", "%s", err) // drivers before the 510s
		return
	}
	for line := range strings.Lines(text) {
		address, value, _ := strings.Cut(line, ",")
		if i := index(gpus, smiAddress(address)); i >= 0 {
			gpus[i].Capability = said(value)
		}
	}
}

// gpuOf returns the address of the GPU with an index or minor number.
func (s *scene) minors(gpus []report.GPU) map[string]string {
	out := map[string]string{}
	for _, g := range gpus {
		if minor := s.nvidiaInformation(g.PCI)["Device Minor"]; minor != "" {
			out[minor] = g.PCI
		}
	}
	return out
}

// SMs of GPUs, from NVIDIA's data sheets: no program that only reads tells them.
var smsOf = []struct {
	model string
	n     int
}{
	{"H100 PCIe", 114},
	{"H100 NVL", 132},
	{"H100", 132},
	{"H200", 132},
	{"H800", 132},
	{"H20", 78},
	{"GH200", 132},
	{"B200", 148},
	{"B100", 148},
	{"B300", 160},
	{"A100", 108},
	{"A800", 108},
	{"A30", 56},
	{"A40", 84},
	{"A10G", 80},
	{"A10", 72},
	{"A16", 10},
	{"A2", 10},
	{"L40S", 142},
	{"L40", 142},
	{"L4", 58},
	{"RTX A6000", 84},
	{"RTX A5000", 64},
	{"RTX A4000", 48},
	{"RTX 6000 Ada", 142},
	{"V100", 80},
	{"P100", 56},
	{"P40", 30},
	{"P4", 20},
	{"T4", 40},
	{"Quadro RTX 8000", 72},
	{"Quadro RTX 6000", 72},
}

// multiprocessors returns how many SMs a model has, 0 where that is not known.
func multiprocessors(model string) int {
	words := func(s string) string {
		return " " + strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == '-' }), " ") + " "
	}
	for _, known := range smsOf {
		if strings.Contains(words(model), words(known.model)) {
			return known.n
		}
	}
	return 0
}

// capFiles returns for NVIDIA's capability files, which give a MIG instance, the minor
// number of the GPU.
func (s *scene) capFiles() map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(s.textOf(path.Join("proc/driver/nvidia-caps", "mig-minors"), large)) {
		f := strings.Fields(line) // "gpu0/gi1/ci0/access 3"
		if len(f) != 2 {
			continue
		}
		gpu, _, _ := strings.Cut(f[0], "/")
		if minor, found := strings.CutPrefix(gpu, "gpu"); found {
			out["/dev/nvidia-caps/nvidia-cap"+f[1]] = minor
		}
	}
	return out
}
