package inspect

import (
	"path"
	"slices"
	"strconv"
	"strings"
)

// Programs that only watch, serve or show: what they have open is no workload.
var programs = map[string]string{
	"nvtop": "monitor", "nvitop": "monitor", "dcgm-exporter": "monitor", "nv-hostengine": "monitor", "dcgmi": "monitor", "nvidia-smi": "monitor", "gpustat": "monitor",
	"nvidia-persistenced": "monitor", "nvidia_gpu_exporter": "monitor", "nvidia_gpu_prometheus_exporter": "monitor", "netdata": "monitor", "telegraf": "monitor",
	"nvidia-powerd": "monitor", "nv-fabricmanager": "monitor", "nvidia-fabricmanager": "monitor", "node_exporter": "monitor", "zabbix_agentd": "monitor",
	"systemd-logind": "monitor", "nvidia-gridd": "monitor", "btop": "monitor", "rocm-smi": "monitor", "amdgpu_top": "monitor", "nvidia-device-plugin": "monitor",
	"nvidia-cuda-mps-server": "mps", "nvidia-cuda-mps-control": "mps", "Xorg": "display", "Xwayland": "display", "gnome-shell": "display", "kwin_wayland": "display",
	"sddm-greeter": "display", "tritonserver": "triton", "ollama": "ollama", "ollama_llama_server": "ollama", "llama-server": "llama.cpp", "ffmpeg": "ffmpeg",
	"nsys": "profiler", "ncu": "profiler", "nv-nsight-cu-cli": "profiler", "trtexec": "tensorrt",
}

// Words in a command line that tell a framework which its program, python, does not.
var byWord = []struct{ word, framework string }{
	{"vllm", "vllm"},
	{"sglang", "sglang"},
	{"text-generation-launcher", "tgi"},
	{"text-generation-server", "tgi"},
	{"text_generation_server", "tgi"},
	{"tritonserver", "triton"},
	{"triton_python_backend_stub", "triton"},
	{"gpustat", "monitor"},
	{"nvitop", "monitor"},
	{"tensorflow_model_server", "tensorflow"},
}

// Libraries that tell a framework, the more telling first.
var byLibrary = []struct{ library, framework string }{
	{"libtritonserver", "triton"},
	{"libtensorflow", "tensorflow"},
	{"xla_extension", "jax"},
	{"xla_cuda", "jax"},
	{"pjrt_plugin", "jax"},
	{"libtorch_cuda", "pytorch"},
	{"libtorch_hip", "pytorch"},
	{"libggml-cuda", "llama.cpp"},
	{"libonnxruntime_providers_cuda", "onnxruntime"},
	{"libnvinfer", "tensorrt"},
	{"libnvidia-encode", "video"},
	{"libcudart", "cuda"},
	{"libcuda", "cuda"},
	{"libamdhip64", "rocm"},
}

// recognise tells what a process is known to be, and whether it takes a share of whatever
// memory it finds.
func (s *scene) recognise(p *process) {
	p.Framework = framework(p)
	args, env := p.args, p.env
	if _, parent := s.parent(p.PID); share(args) == 0 && parent != nil {
		args = append(slices.Clone(args), parent...) // workers are begun by what was told
	}
	switch p.Framework {
	case "vllm":
		p.Preallocates, p.Share = true, or(share(args), 0.9)
	case "sglang":
		p.Preallocates, p.Share = true, share(args)
	case "tgi":
		p.Preallocates, p.Share = true, or(share(args), 1)
	case "tensorflow":
		p.Preallocates = env["TF_FORCE_GPU_ALLOW_GROWTH"] != "true"
	case "jax":
		if env["XLA_PYTHON_CLIENT_PREALLOCATE"] != "false" && env["XLA_PYTHON_CLIENT_ALLOCATOR"] != "platform" {
			set, _ := strconv.ParseFloat(env["XLA_PYTHON_CLIENT_MEM_FRACTION"], 64)
			p.Preallocates, p.Share = true, or(ratio(set), 0.75)
		}
	}
}

func or(a, b float64) float64 {
	if a > 0 {
		return a
	}
	return b
}

// ratio is a share, 0 where it is none.
func ratio(v float64) float64 {
	if v > 0 && v <= 1 {
		return v
	}
	return 0
}

func framework(p *process) string {
	base := path.Base(p.Exe)
	if known := programs[base]; known != "" {
		return known
	}
	if len(p.args) > 0 {
		title, _, _ := strings.Cut(p.args[0], " ")
		if known := programs[path.Base(title)]; known != "" {
			return known
		}
	}
	for n, a := range p.args[:min(len(p.args), 8)] { // the program, its interpreter and its module
		for _, w := range byWord {
			if n > 0 && strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "-m") {
				continue
			}
			if a = strings.ToLower(a); strings.Contains(path.Base(a), w.word) || strings.Contains(a, w.word+".") || strings.Contains(a, w.word+"::") {
				return w.framework
			}
		}
	}
	for _, l := range byLibrary {
		if slices.ContainsFunc(p.Libraries, func(have string) bool { return strings.HasPrefix(have, l.library) }) {
			return l.framework
		}
	}
	return ""
}

// share reads the share of memory that a server was told to take.
func share(args []string) float64 {
	for _, flag := range []string{"--gpu-memory-utilization", "--gpu_memory_utilization", "--mem-fraction-static", "--cuda-memory-fraction"} {
		if v, found := flagValue(args, flag); found {
			n, _ := strconv.ParseFloat(v, 64)
			return ratio(n)
		}
	}
	return 0
}

// flagValue returns what follows a flag, in either form.
func flagValue(args []string, flag string) (string, bool) {
	for n, a := range args {
		if v, found := strings.CutPrefix(a, flag+"="); found {
			return v, true
		}
		if a == flag && n+1 < len(args) {
			return args[n+1], true
		}
	}
	return "", false
}

// parent returns a process's parent and its arguments, none for the first.
func (s *scene) parent(pid int) (int, []string) {
	status := s.tree.text(path.Join("proc", strconv.Itoa(pid), "status"))
	for line := range strings.Lines(status) {
		if v, found := strings.CutPrefix(line, "PPid:"); found {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil || n <= 1 {
				return 0, nil
			}
			return n, s.arguments(n)
		}
	}
	return 0, nil
}
