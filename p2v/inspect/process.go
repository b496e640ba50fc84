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

// Limits of what is told of one process.
const (
	maxProcesses = 1024
	maxArgs      = 128
	maxArg       = 512
	maxArgBytes  = 4096
	maxLibraries = 48
)

// A process is one that has a GPU open, with what else is needed of it here.
type process struct {
	report.Process
	env  map[string]string // of what is asked for by name
	args []string          // not masked: never to be reported
	cwd  string
}

var (
	gpuFile     = regexp.MustCompile(`^/dev/nvidia(\d+)$`)
	containerID = regexp.MustCompile(`[0-9a-f]{64}`)
	gpuLibrary  = regexp.MustCompile(`^lib(?:cuda|cudart|cublas(?:Lt)?|cudnn\w*|nccl|nvinfer\w*|nvidia-(?:encode|ml|glcore|opticalflow|ptxjitcompiler|fbc)|nvcuvid|nvrtc|cufile|` +
		`cupti|cuinj64|nvoptix|torch_cuda|torch_hip|tensorflow\w*|tritonserver|GLX_nvidia|EGL_nvidia|hsa-runtime64|amdhip64|rccl|nvjpeg|nvshmem\w*|ucs|ibverbs)(?:[-.]|$)|` +
		`^(?:xla_extension|xla_cuda_plugin|xla_cuda|pjrt_plugin|onnxruntime_providers_cuda|libonnxruntime_providers_cuda|libggml-cuda|libllama)\S*$`)
)

// What of a process's environment is looked at. The rest is never kept.
var lookedAt = []string{
	"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "CUDA_MPS_PIPE_DIRECTORY",
	"CUDA_INJECTION64_PATH", "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_NET_GDR_LEVEL", "NCCL_IB_DISABLE", "TF_FORCE_GPU_ALLOW_GROWTH", "TF_FORCE_UNIFIED_MEMORY",
	"XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR", "GGML_CUDA_ENABLE_UNIFIED_MEMORY", "CUDA_MANAGED_FORCE_DEVICE_ALLOC",
	"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "OLLAMA_MODELS", "VLLM_GPU_MEMORY_UTILIZATION", "MODEL_ID",
}

// processes finds those that have a file of a GPU open, and those that the driver names.
func (s *scene) processes(gpus []report.GPU, l *smiLog) []process {
	files := s.gpuFiles(gpus)
	named := l.processes()
	users := s.users()
	pids, err := s.tree.list("proc")
	if err != nil {
		s.miss("processes", "%s", cause(err))
	}
	var out []process
	closed, more := 0, 0
	for _, name := range pids {
		pid, err := strconv.Atoi(name)
		if err != nil || s.ctx.Err() != nil {
			continue
		}
		links, err := s.tree.links(path.Join("proc", name, "fd"))
		if err != nil && s.tree.exists(path.Join("proc", name, "stat")) {
			closed++
		}
		smi := named[pid]
		opened, open := openGPUs(links, files)
		if !open && smi == nil {
			continue
		}
		if len(out) == maxProcesses {
			more++
			continue
		}
		p, there := s.process(pid, users)
		if !there {
			continue
		}
		p.GPUs = opened
		if smi != nil {
			p.Type, p.MemoryBytes = smi.kind(), smi.bytes
			p.GPUs = append(p.GPUs, smi.gpus...)
		}
		slices.Sort(p.GPUs)
		p.GPUs = slices.Compact(p.GPUs)
		s.recognise(&p)
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b process) int { return cmp.Compare(a.PID, b.PID) })
	if closed > 0 {
		s.miss("processes", "the open files of %d processes may not be read", closed)
	}
	if more > 0 {
		s.miss("processes", "%d more have a GPU open", more)
	}
	return out
}

// gpuFiles says of which GPU each device file is. Empty stands for a file of the driver
// that is no certain GPU's.
func (s *scene) gpuFiles(gpus []report.GPU) map[string]string {
	out := map[string]string{"/dev/nvidiactl": "", "/dev/nvidia-uvm": "", "/dev/kfd": ""}
	minors := s.minors(gpus)
	for minor, pci := range minors {
		out["/dev/nvidia"+minor] = pci
	}
	for file, minor := range s.capFiles() {
		out[file] = minors[minor]
	}
	for _, g := range gpus {
		if _, known := vendors[g.PCIID[:min(4, len(g.PCIID))]]; !known {
			continue
		}
		for _, name := range s.tree.names(path.Join("sys/bus/pci/devices", g.PCI, "drm")) {
			if strings.HasPrefix(name, "card") || strings.HasPrefix(name, "renderD") {
				out["/dev/dri/"+name] = g.PCI
			}
		}
	}
	return out
}

func openGPUs(links, files map[string]string) (gpus []string, open bool) {
	for _, target := range links {
		pci, is := files[strings.TrimSuffix(target, " (deleted)")]
		if open = open || is; pci != "" {
			gpus = append(gpus, pci)
		}
	}
	return gpus, open
}

// process reads what is told of one process; one that has ended meanwhile is not there.
func (s *scene) process(pid int, users map[string]string) (process, bool) {
	dir := path.Join("proc", strconv.Itoa(pid))
	p := process{Process: report.Process{PID: pid}, env: map[string]string{}}
	status, err := s.tree.read(dir+"/status", small)
	if err != nil {
		return p, false
	}
	for line := range strings.Lines(status) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Uid:" {
			p.User = cmp.Or(users[f[1]], f[1])
		}
	}
	exe, _ := s.tree.link(dir + "/exe")
	p.Exe = strings.TrimSuffix(exe, " (deleted)")
	p.cwd, _ = s.tree.link(dir + "/cwd")
	p.args = s.arguments(pid)
	if p.Exe == "" && len(p.args) > 0 {
		p.Exe = p.args[0]
	}
	p.Args = told(p.args)
	p.Unit, p.Container = cgroup(s.tree.text(dir + "/cgroup"))
	env, err := s.tree.read(dir+"/environ", 256<<10)
	if err != nil {
		s.miss("processes.environment", "of process %d: %s", pid, cause(err))
	}
	for _, e := range strings.Split(env, "\x00") {
		if key, value, _ := strings.Cut(e, "="); slices.Contains(lookedAt, key) {
			p.env[key] = value
		}
	}
	maps, err := s.tree.read(dir+"/maps", large)
	if err != nil {
		s.miss("processes.libraries", "of process %d: %s", pid, cause(err))
	}
	p.Libraries = libraries(maps)
	return p, true
}

func (s *scene) arguments(pid int) []string {
	text := s.textOf(path.Join("proc", strconv.Itoa(pid), "cmdline"), small)
	return strings.Split(strings.TrimRight(text, "\x00"), "\x00")
}

// told is what of the arguments is reported: masked, and not more than a person reads.
func told(args []string) []string {
	out := []string{}
	bytes := 0
	for _, a := range maskArgs(args[:min(len(args), maxArgs)]) {
		a = report.CleanString(a[:min(len(a), maxArg)])
		if bytes += len(a); bytes > maxArgBytes {
			return append(out, "…")
		}
		out = append(out, a)
	}
	return out
}

func libraries(maps string) []string {
	seen := map[string]bool{}
	for line := range strings.Lines(maps) {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		if name := path.Base(f[5]); gpuLibrary.MatchString(name) {
			seen[name] = true
		}
	}
	out := []string{}
	for name := range seen {
		out = append(out, name)
	}
	slices.Sort(out)
	return out[:min(len(out), maxLibraries)]
}

// cgroup tells the unit and the container that a process is in.
func cgroup(text string) (unit, container string) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 || f[1] != "" && f[1] != "name=systemd" {
			continue
		}
		for part := range strings.SplitSeq(f[2], "/") {
			if strings.HasSuffix(part, ".service") && !strings.HasPrefix(part, "user@") {
				unit = part
			}
		}
		if container = cmp.Or(containerID.FindString(f[2]), container); container != "" && !strings.Contains(f[2], ".service/") {
			unit = ""
		}
	}
	return unit, container
}

func (s *scene) users() map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(s.textOf("etc/passwd", large)) {
		if f := strings.Split(line, ":"); len(f) > 2 {
			if _, there := out[f[2]]; !there {
				out[f[2]] = f[0]
			}
		}
	}
	return out
}

// smiSeen is what the driver tells of a process.
type smiSeen struct {
	compute, graphics bool
	gpus              []string
	bytes             uint64
}

func (p smiSeen) kind() string {
	switch {
	case p.compute && p.graphics:
		return "both"
	case p.graphics:
		return "graphics"
	case p.compute:
		return "compute"
	}
	return ""
}

// processes returns who uses the GPUs, and how much of their memory, as the driver says.
func (l *smiLog) processes() map[int]*smiSeen {
	out := map[int]*smiSeen{}
	if l == nil {
		return out
	}
	for _, g := range l.GPUs {
		for _, p := range g.Processes {
			pid, err := strconv.Atoi(strings.TrimSpace(p.PID))
			if err != nil || pid <= 0 {
				continue
			}
			if out[pid] == nil {
				out[pid] = &smiSeen{}
			}
			seen := out[pid]
			seen.gpus = append(seen.gpus, smiAddress(g.ID))
			seen.bytes += mebibytes(p.Memory)
			seen.compute = seen.compute || strings.Contains(p.Type, "C")
			seen.graphics = seen.graphics || strings.Contains(p.Type, "G")
		}
	}
	return out
}

func itoa(n int) string { return strconv.Itoa(n) }
