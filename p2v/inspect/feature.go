package inspect

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// maxSigns is how many sentences are told of one feature.
const maxSigns = 16

// features collects the signs of what a slice of a GPU may not have. An open nvidia-uvm is
// none of unified memory, and a loaded libcupti is none of a profiler: CUDA opens the one
// for every program, and PyTorch brings the other.
func (s *scene) features(r *report.Report, l *smiLog, processes []process) report.Features {
	var f report.Features
	say := func(to *[]string, format string, args ...any) {
		if text := report.CleanString(fmt.Sprintf(format, args...)); len(*to) < maxSigns && !slices.Contains(*to, text) {
			*to = append(*to, text)
		}
	}
	for _, p := range processes {
		s.signs(&f, r, p, say)
	}
	if l != nil {
		for _, g := range l.GPUs {
			if n := said(g.Encoder); n != "" && n != "0" {
				say(&f.Encoder, "the driver counts %s encoder sessions on %s", n, smiAddress(g.ID))
			}
			if g.Fabric == "Completed" {
				say(&f.NVSwitch, "%s is registered with the NVLink fabric", smiAddress(g.ID))
			}
		}
	}
	for _, v := range r.Services {
		switch {
		case v.State != "active":
		case v.Role == "fabric-manager" && len(r.GPUs) > 0: // an image for all servers may bring it
			say(&f.NVSwitch, "%s is active", v.Unit)
		case v.Role == "mps":
			say(&f.MPS, "%s is active", v.Unit)
		case v.Role == "display-manager":
			say(&f.Graphics, "%s is active", v.Unit)
		}
	}
	for _, name := range s.tree.names("sys/bus/pci/devices") {
		dir := path.Join("sys/bus/pci/devices", name)
		if id(s.tree.text(dir+"/vendor")) == "10de" && strings.HasPrefix(s.tree.text(dir+"/class"), "0x0680") {
			say(&f.NVSwitch, "there is an NVSwitch at %s", name)
		}
	}
	for _, m := range []string{"nvidia_peermem", "nv_peer_mem"} {
		if used := s.tree.text("sys/module/" + m + "/refcnt"); s.tree.exists("sys/module/" + m) {
			say(&f.GPUDirectRDMA, "the module %s is loaded, and used by %s", m, orNone(used))
		}
	}
	if s.tree.exists("sys/module/nvidia_fs") {
		say(&f.GPUDirectIO, "the module nvidia_fs is loaded, and used by %s", orNone(s.tree.text("sys/module/nvidia_fs/refcnt")))
	}
	for _, g := range r.GPUs {
		if g.DisplayActive {
			say(&f.Graphics, "a display is active on %s", g.PCI)
		}
	}
	for _, c := range r.Configs {
		for _, l := range c.Lines {
			if strings.Contains(l, "NVreg_RestrictProfilingToAdminUsers=0") {
				say(&f.Profilers, "%s lets everybody profile", c.Path)
			}
		}
	}
	return f
}

func orNone(n string) string {
	if n == "" || n == "0" {
		return "nobody now"
	}
	return n
}

// signs are those of one process.
func (s *scene) signs(f *report.Features, r *report.Report, p process, say func(*[]string, string, ...any)) {
	who := fmt.Sprintf("process %d (%s)", p.PID, path.Base(p.Exe))
	has := func(prefix string) bool {
		return slices.ContainsFunc(p.Libraries, func(l string) bool { return strings.HasPrefix(l, prefix) })
	}
	if len(p.GPUs) > 1 && p.Framework != "monitor" {
		if kind := linked(r.Topology, p.GPUs); kind != "" {
			say(&f.NVLink, "%s has %d GPUs open that are joined by %s", who, len(p.GPUs), kind)
		}
		if has("libnccl") && p.env["NCCL_P2P_DISABLE"] != "1" {
			say(&f.P2P, "%s has %d GPUs open and uses NCCL", who, len(p.GPUs))
		}
	}
	if has("libnccl") && has("libibverbs") && p.env["NCCL_IB_DISABLE"] != "1" {
		say(&f.GPUDirectRDMA, "%s uses NCCL with InfiniBand's verbs", who)
	}
	if has("libcufile") {
		say(&f.GPUDirectIO, "%s has libcufile loaded", who)
	}
	if p.Framework == "mps" {
		say(&f.MPS, "%s runs", who)
	} else if p.env["CUDA_MPS_PIPE_DIRECTORY"] != "" {
		say(&f.MPS, "%s has CUDA_MPS_PIPE_DIRECTORY", who)
	}
	for _, key := range []string{"TF_FORCE_UNIFIED_MEMORY", "GGML_CUDA_ENABLE_UNIFIED_MEMORY", "CUDA_MANAGED_FORCE_DEVICE_ALLOC"} {
		if v := p.env[key]; v != "" && v != "0" && v != "false" {
			say(&f.UnifiedMemory, "%s has %s=%s", who, key, maskLine(v))
		}
	}
	if slices.ContainsFunc(p.args, func(a string) bool { return strings.Contains(a, "managed-memory") }) {
		say(&f.UnifiedMemory, "%s was told to use managed memory", who)
	}
	if p.Framework == "profiler" || has("libcuinj64") || p.env["CUDA_INJECTION64_PATH"] != "" {
		say(&f.Profilers, "%s profiles, or is profiled", who)
	}
	if has("libnvidia-encode") {
		say(&f.Encoder, "%s has the encoder's library loaded", who)
	}
	if has("libnvcuvid") {
		say(&f.Decoder, "%s has the decoder's library loaded", who)
	}
	if p.Type == "graphics" || p.Type == "both" || p.Framework == "display" || has("libGLX_nvidia") || has("libEGL_nvidia") || has("libnvidia-glcore") || has("libnvoptix") {
		say(&f.Graphics, "%s draws", who)
	}
}

// linked returns the kind of NVLink between two of some GPUs, empty where there is none.
func linked(links []report.Link, gpus []string) string {
	for _, l := range links {
		if strings.HasPrefix(l.Kind, "NV") && slices.Contains(gpus, l.A) && slices.Contains(gpus, l.B) {
			return "NVLink (" + l.Kind + ")"
		}
	}
	return ""
}
