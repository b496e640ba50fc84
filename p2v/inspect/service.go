package inspect

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// A unitFile is a unit of systemd, or a drop-in of one, as it is written.
type unitFile struct{ unit, path, text string }

// Where units are written, what counts more first.
var unitFolders = []string{"etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"}

// roles of units that come with GPUs.
var roles = map[string]string{
	"nvidia-persistenced": "persistence", "nvidia-fabricmanager": "fabric-manager", "nvidia-dcgm": "dcgm", "dcgm": "dcgm", "nv-hostengine": "dcgm",
	"dcgm-exporter": "dcgm", "nvidia-mps": "mps", "nvidia-cuda-mps": "mps", "nvidia-cuda-mps-control": "mps", "cuda-mps": "mps", "mps": "mps", "nvidia-gridd": "gridd",
	"nvidia-mig-manager": "mig-manager", "nvidia-powerd": "powerd", "nvidia-cdi-refresh": "cdi", "nvidia-container-toolkit": "container-toolkit",
	"nvidia-imex": "fabric-manager", "gdm": "display-manager", "gdm3": "display-manager", "lightdm": "display-manager", "sddm": "display-manager",
	"display-manager": "display-manager", "xorg": "display-manager", "nvidia-topologyd": "gridd", "nvidia-suspend": "powerd", "nvidia-resume": "powerd",
	"nvidia-hibernate": "powerd",
}

// aboutGPUs is what a unit says that has to do with them.
var aboutGPUs = regexp.MustCompile(`(?i)nvidia|cuda_|\bvllm\b|tritonserver|--gpus\b|/dev/kfd|/dev/dri|hip_visible|rocr_visible|dcgm`)

const maxUnits = 20_000

func (s *scene) unitFiles() []unitFile {
	var out []unitFile
	have := map[string]bool{}
	add := func(unit, file string) {
		if real := s.tree.real(file); real == "" || have[real] || len(out) >= maxUnits {
			return // also a masked one, which leads to /dev/null, is no file
		} else if have[real] = true; true {
			out = append(out, unitFile{unit, file, s.textOf(file, small)})
		}
	}
	for _, dir := range unitFolders {
		for _, name := range s.tree.names(dir) {
			file := path.Join(dir, name)
			switch {
			case strings.HasSuffix(name, ".service"):
				add(name, file)
			case strings.HasSuffix(name, ".service.d"):
				for _, conf := range s.configDir(file, ".conf") {
					add(strings.TrimSuffix(name, ".d"), conf)
				}
			}
		}
	}
	return out
}

// about returns the units that have to do with GPUs, or that processes with a GPU are in.
func about(units []unitFile, processes []report.Process) []string {
	var out []string
	for _, u := range units {
		if roles[strings.TrimSuffix(u.unit, ".service")] != "" || aboutGPUs.MatchString(u.text) {
			out = append(out, u.unit)
		}
	}
	for _, p := range processes {
		if p.Unit != "" && p.Framework != "monitor" || roles[strings.TrimSuffix(p.Unit, ".service")] != "" {
			out = append(out, p.Unit)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), 512)]
}

func (s *scene) services(units []unitFile, processes []report.Process) []report.Service {
	names := about(units, processes)
	if len(names) == 0 {
		return nil
	}
	state := s.askSystemd(names)
	var out []report.Service
	for _, name := range names {
		v := report.Service{Unit: name, Role: "workload", State: state[name]["ActiveState"], Enabled: state[name]["UnitFileState"]}
		if role := roles[strings.TrimSuffix(name, ".service")]; role != "" {
			v.Role = role
		}
		for _, u := range units {
			if u.unit != name {
				continue
			}
			if v.File == "" {
				v.File = "/" + u.path
			}
			for line := range strings.Lines(u.text) {
				exec, found := strings.CutPrefix(strings.TrimSpace(line), "ExecStart=")
				if found && v.Exec == "" {
					v.Exec = maskLine(exec)
				}
				if v.Role == "workload" && found && (migWords.MatchString(exec) || powerWords.MatchString(exec)) {
					v.Role = "settings"
				}
			}
		}
		if at := state[name]["FragmentPath"]; at != "" {
			v.File = at
		}
		if v.Enabled == "" && s.wanted(name) {
			v.Enabled = "enabled"
		}
		// What a package brought and nobody uses says nothing of the workload.
		if v.State == "inactive" && v.Role == "workload" && v.Enabled != "enabled" && !slices.ContainsFunc(processes, func(p report.Process) bool { return p.Unit == name }) &&
			!strings.HasPrefix(v.File, "/etc/") {
			continue
		}
		out = append(out, v)
	}
	return out
}

// wanted reports whether a unit is begun with another, as a link beside that says.
func (s *scene) wanted(unit string) bool {
	for _, name := range s.tree.names("etc/systemd/system") {
		if strings.HasSuffix(name, ".wants") || strings.HasSuffix(name, ".requires") {
			if _, err := s.tree.link(path.Join("etc/systemd/system", name, unit)); err == nil {
				return true
			}
		}
	}
	return false
}

// askSystemd returns the properties of units that it knows.
func (s *scene) askSystemd(names []string) map[string]map[string]string {
	out := map[string]map[string]string{}
	args := append([]string{"show", "--no-pager", "--property=Id,ActiveState,UnitFileState,FragmentPath,LoadState", "--"}, names...)
	text, err := s.tools.out(s.ctx, "systemctl", args...)
	if err != nil {
		s.miss("services.state", "%s", err)
		return out
	}
	for block := range strings.SplitSeq(text, "\n\n") {
		v := assignments(block)
		if v["LoadState"] != "not-found" {
			out[v["Id"]] = v
		}
	}
	return out
}

// environmentFiles returns the files that a unit's lines name for its environment.
func environmentFiles(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if v, found := strings.CutPrefix(strings.TrimSpace(line), "EnvironmentFile="); found {
			v = strings.TrimPrefix(strings.Trim(v, `"'`), "-")
			if strings.HasPrefix(v, "/") && !strings.ContainsAny(v, "*?[%") {
				out = append(out, strings.TrimPrefix(path.Clean(v), "/"))
			}
		}
	}
	return out
}
