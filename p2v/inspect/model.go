package inspect

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

const maxModels = 500

// A folder is what a walk has seen of a folder and all below it.
type folder struct {
	bytes          uint64
	files, engines int
	found          []report.Models
}

// models finds folders with models: those that processes and containers name, and those
// where they usually lie.
func (s *scene) models(processes []process, containers []container) []report.Models {
	var out []report.Models
	have := map[string]bool{}
	w := s.walker(200_000)
	look := func(dir string, deep int) {
		if kindOfName(dir) != "" {
			dir = path.Dir(dir) // a file that is named itself
		}
		real := s.tree.real(dir)
		if real == "" || have[real] || len(out) >= maxModels {
			return
		}
		have[real] = true
		delete(w.closed, real) // what a workload names is looked at also where it is mounted from elsewhere
		f := w.folder(real, deep)
		for _, m := range f.found {
			if have[m.Path+" "] {
				continue
			}
			have[m.Path+" "] = true
			m.Path, m.Complete, m.Kind = "/"+m.Path, !w.ended, strings.TrimSuffix(m.Kind, " model")
			out = append(out, m)
		}
	}
	for _, dir := range namedFolders(processes, containers) {
		look(dir, 12)
	}
	for _, dir := range s.usualFolders() {
		look(dir, 8)
	}
	if w.ended {
		s.miss("models", "folders were looked at in part only: there is too much")
	}
	slices.SortFunc(out, func(a, b report.Models) int { return cmp.Compare(a.Path, b.Path) })
	return inside(out)
}

// inside leaves out what lies in another of the same kind: it is counted there.
func inside(all []report.Models) []report.Models {
	var out []report.Models
	for _, m := range all {
		if !slices.ContainsFunc(out, func(o report.Models) bool { return strings.HasPrefix(m.Path, o.Path+"/") }) {
			out = append(out, m)
		}
	}
	return out
}

// namedFolders are those that the workload names, as the host sees them.
func namedFolders(processes []process, containers []container) []string {
	var out []string
	add := func(dir string) {
		if strings.HasPrefix(dir, "/") && dir != "/" && !ofRuntime(dir) {
			out = append(out, strings.TrimPrefix(path.Clean(dir), "/"))
		}
	}
	for _, p := range processes {
		for _, dir := range namedBy(p) {
			add(onHost(dir, p.Container, containers))
		}
	}
	for _, c := range containers {
		for _, b := range c.binds {
			if c.wants() && !strings.HasPrefix(b.to, "/etc") && !strings.HasPrefix(b.to, "/dev") && !strings.HasPrefix(b.to, "/var/run") && !strings.HasPrefix(b.to, "/run") {
				add(b.from)
			}
		}
	}
	return out
}

// namedBy returns the folders with models in a process's arguments and environment.
func namedBy(p process) []string {
	var out []string
	for _, flag := range []string{
		"--model-repository", "--model-store", "--model", "--model-path", "-m", "--download-dir", "--model-id", "--model_base_path", "--engine", "--tokenizer", "--served-model-path",
	} {
		if v, found := flagValue(p.args, flag); found {
			out = append(out, v)
		}
	}
	if n := slices.Index(p.args, "serve"); n >= 0 && n+1 < len(p.args) {
		out = append(out, p.args[n+1])
	}
	for _, key := range []string{"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "OLLAMA_MODELS", "MODEL_ID"} {
		out = append(out, p.env[key])
	}
	for n, dir := range out {
		if dir != "" && !path.IsAbs(dir) && strings.HasPrefix(dir, ".") && p.cwd != "" {
			out[n] = path.Join(p.cwd, dir)
		}
	}
	return out
}

// onHost is where a path of a container lies on the host; empty where it is the container's
// own.
func onHost(dir, id string, containers []container) string {
	if id == "" {
		return dir
	}
	for _, c := range containers {
		if c.ID != id {
			continue
		}
		best := bind{}
		for _, b := range c.binds {
			if (dir == b.to || strings.HasPrefix(dir, strings.TrimSuffix(b.to, "/")+"/")) && len(b.to) > len(best.to) {
				best = b
			}
		}
		if best.to != "" {
			return path.Join(best.from, strings.TrimPrefix(dir, best.to))
		}
	}
	return ""
}

func (s *scene) usualFolders() []string {
	out := []string{"usr/share/ollama/.ollama/models", "var/lib/ollama", "root/.ollama/models", "root/.cache/huggingface/hub"}
	for _, home := range s.tree.names("home") {
		out = append(out, path.Join("home", home, ".ollama/models"), path.Join("home", home, ".cache/huggingface/hub"))
	}
	return append(out, "models", "model_repository", "srv", "opt", "data", "mnt", "var/lib/models", "home", "root")
}

var kindByEnding = map[string]string{".engine": "tensorrt", ".plan": "tensorrt", ".gguf": "gguf", ".safetensors": "safetensors"}

func kindOfName(name string) string { return kindByEnding[strings.ToLower(path.Ext(name))] }

// folder sums a folder up, and finds in it the outermost folders with models.
func (w *walker) folder(dir string, deep int) folder {
	var out folder
	kinds := map[string]int{}
	var names []string
	triton := false
	for _, e := range w.enter(dir) {
		name := path.Base(e.path)
		switch {
		case e.file:
			out.files++
			out.bytes += e.bytes
			if kind := kindOfName(name); kind != "" {
				kinds[kind]++
				if kind == "tensorrt" {
					out.engines++
				}
			}
			triton = triton || name == "config.pbtxt"
			names = append(names, name)
		case e.dir && deep > 0 && !uninteresting(name):
			sub := w.folder(e.path, deep-1)
			out.bytes, out.files, out.engines = out.bytes+sub.bytes, out.files+sub.files, out.engines+sub.engines
			out.found = append(out.found, sub.found...)
			names = append(names, name+"/")
		}
	}
	kind := ""
	switch isModel := func(m report.Models) bool { return m.Kind == "triton model" && path.Dir(m.Path) == dir }; {
	case triton:
		kind = "triton model" // of a repository, which is the folder above
	case slices.ContainsFunc(out.found, isModel):
		kind = "triton"
	case slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "models--") && strings.HasSuffix(n, "/") }):
		kind = "huggingface"
	case slices.Contains(names, "blobs/") && slices.Contains(names, "manifests/"):
		kind = "ollama"
	case len(kinds) > 0:
		for k := range kinds {
			if kinds[k] > kinds[kind] || kinds[k] == kinds[kind] && k < kind {
				kind = k
			}
		}
	}
	if kind != "" {
		out.found = []report.Models{{Path: dir, Kind: kind, SizeBytes: out.bytes, Files: out.files, Engines: out.engines}}
	}
	return out
}
