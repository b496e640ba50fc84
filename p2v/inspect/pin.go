package inspect

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

const maxPins = 2000

var (
	uuidPin = regexp.MustCompile(`\b(?:GPU|MIG)-[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b|\bMIG-GPU-[0-9a-fA-F-]{36}/\d+/\d+`)
	envPin  = regexp.MustCompile(`\b(CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL)["']?\s*[=:]\s*["']?([^\s"'#;\\]*)`)
	devPin  = regexp.MustCompile(`/dev/nvidia\d+\b|/dev/nvidia-caps/nvidia-cap\d+\b|/dev/dri/(?:card|renderD)\d+\b`)
	busPin  = regexp.MustCompile(`(?i)\bBusID\b["']?[\s:=]+["']?(PCI:[0-9@:]+)`)
	gpusPin = regexp.MustCompile(`--gpus(?:=|\s+)["']*(device=[^\s"']+|all|\d+)`)
	cdiPin  = regexp.MustCompile(`\b(nvidia\.com/(?:gpu|mig-[\w.\-]+)=[\w.:\-]+|amd\.com/gpu=[\w.:\-]+)`)
	flowPin = regexp.MustCompile(`\bdevice_ids["']?\s*:\s*\[([^\]]*)\]`)
	listPin = regexp.MustCompile(`\bdevice_ids["']?\s*:\s*$`)
	itemPin = regexp.MustCompile(`^\s*-\s*["']?([\w.:\-/]+)`)
	smiPin  = regexp.MustCompile(`nvidia-smi\b.*?\s(?:-i|--id=?)\s*([\w:.,\-]+)`)
)

// kindOf tells how a value names GPUs.
func kindOf(v string) string {
	switch {
	case v == "all":
		return "all"
	case strings.Contains(v, "MIG-"):
		return "mig-uuid"
	case strings.Contains(v, "GPU-"):
		return "gpu-uuid"
	case strings.HasPrefix(v, "/dev/"):
		return "device-file"
	case pciAddress.MatchString(strings.ToLower(v)) || strings.HasPrefix(strings.ToUpper(v), "PCI:"):
		return "pci"
	case strings.HasSuffix(v, "=all"):
		return "all"
	}
	return "index"
}

// pinsIn finds what names a GPU in a text. Where is what stands before the line's number.
func pinsIn(where, text string, comment string) []report.Pin {
	var out []report.Pin
	list := false
	for n, whole := range strings.SplitAfter(text, "\n") {
		line := strings.TrimRight(whole, "\r\n")
		if trimmed := strings.TrimSpace(line); trimmed == "" || strings.HasPrefix(trimmed, comment) {
			continue
		}
		add := func(key, value string) {
			value = strings.TrimSpace(value)
			has := func(p report.Pin) bool {
				return p.Where == fmt.Sprintf("%s:%d", where, n+1) && strings.Contains(p.Value, value)
			}
			if value != "" && value != "void" && value != "none" && !strings.HasPrefix(value, "$") && !slices.ContainsFunc(out, has) {
				out = append(out, report.Pin{Where: fmt.Sprintf("%s:%d", where, n+1), Key: key, Value: maskLine(value), Kind: kindOf(value), Line: exact(whole, len(text) == small)})
			}
		}
		if list {
			g := itemPin.FindStringSubmatch(line)
			if list = g != nil; list {
				add("device_ids", g[1])
				continue
			}
		}
		for _, g := range envPin.FindAllStringSubmatch(line, -1) {
			add(g[1], g[2])
		}
		for _, g := range flowPin.FindAllStringSubmatch(line, -1) {
			add("device_ids", strings.NewReplacer(`"`, "", "'", "", " ", "").Replace(g[1]))
		}
		list = listPin.MatchString(line)
		for key, re := range map[string]*regexp.Regexp{"--gpus": gpusPin, "BusID": busPin, "cdi": cdiPin, "nvidia-smi -i": smiPin} {
			for _, g := range re.FindAllStringSubmatch(line, -1) {
				add(key, g[1])
			}
		}
		for _, v := range uuidPin.FindAllString(line, -1) {
			add("uuid", v)
		}
		for _, v := range devPin.FindAllString(line, -1) {
			add("device", v)
		}
	}
	return out
}

func (s *scene) pins(processes []process, containers []container, units []unitFile) []report.Pin {
	var out []report.Pin
	for _, p := range processes {
		where := fmt.Sprintf("process %d", p.PID)
		for _, key := range slices.Sorted(maps.Keys(p.env)) {
			if value := p.env[key]; strings.HasSuffix(key, "VISIBLE_DEVICES") && value != "" && value != "void" && p.Container == "" {
				out = append(out, report.Pin{Where: where, Key: key, Value: maskLine(value), Kind: kindOf(value)})
			}
		}
		for _, v := range uuidPin.FindAllString(strings.Join(p.args, " "), -1) {
			out = append(out, report.Pin{Where: where, Key: "argument", Value: v, Kind: kindOf(v)})
		}
	}
	for _, c := range containers {
		out = append(out, c.pins()...)
	}
	done := map[string]bool{}
	file := func(name string) {
		real := s.tree.real(name)
		if real == "" || done[real] || len(out) > maxPins {
			return
		}
		done[real] = true
		out = append(out, pinsIn("/"+name, s.textOf(name, small), "#")...)
	}
	for _, u := range units {
		if u.text == "" {
			continue
		}
		out = append(out, pinsIn("/"+u.path, u.text, "#")...)
		for _, name := range environmentFiles(u.text) {
			file(name)
		}
	}
	for _, name := range s.composeFiles(containers) {
		file(name)
	}
	for _, name := range s.otherFiles() {
		file(name)
	}
	return out[:min(len(out), maxPins)]
}

func (c container) pins() []report.Pin {
	var out []report.Pin
	where := "container " + c.Name
	add := func(key, value string) {
		out = append(out, report.Pin{Where: where, Key: key, Value: maskLine(value), Kind: kindOf(value)})
	}
	for _, e := range c.env {
		key, value, _ := strings.Cut(e, "=")
		if envPin.MatchString(key+"=x") && value != "" && value != "void" && c.wants() {
			add(key, value)
		}
	}
	for _, g := range c.GPUs {
		switch ids, device := strings.CutPrefix(g, "device="); {
		case device:
			add("device", ids)
		case strings.HasPrefix(g, "/dev/"):
			add("device", g)
		case cdiPin.MatchString(g):
			add("cdi", g)
		}
	}
	return out
}

var composeName = regexp.MustCompile(`^(?:docker-)?compose[\w.\-]*\.ya?ml$|^podman-compose\.ya?ml$`)

// composeFiles returns those that running containers were made from, and those that lie
// where people put them.
func (s *scene) composeFiles(containers []container) []string {
	var out []string
	for _, c := range containers {
		for name := range strings.SplitSeq(c.labels["com.docker.compose.project.config_files"], ",") {
			if strings.HasPrefix(name, "/") {
				out = append(out, strings.TrimPrefix(path.Clean(name), "/"))
			}
		}
	}
	w := s.walker(50_000)
	for _, dir := range []string{"etc", "opt", "srv", "root", "home"} {
		w.walk(dir, 4, func(e entry) {
			if e.file && composeName.MatchString(path.Base(e.path)) {
				out = append(out, e.path)
			}
		})
	}
	if w.ended {
		s.miss("pins", "compose files were looked for in part of /etc, /opt, /srv, /root and /home only: there is too much")
	}
	return out
}

// otherFiles are settings of the system that may name a GPU.
func (s *scene) otherFiles() []string {
	out := []string{"etc/environment", "etc/X11/xorg.conf", "etc/crontab", "etc/rc.local", "etc/nvidia-container-runtime/config.toml", "etc/gdm3/custom.conf"}
	for _, dir := range []string{
		"etc/default", "etc/sysconfig", "etc/profile.d", "etc/X11/xorg.conf.d", "usr/share/X11/xorg.conf.d", "etc/cron.d", "etc/udev/rules.d", "etc/containers/systemd",
		"etc/supervisor/conf.d", "etc/nvidia-mig-manager", "etc/kubernetes/manifests", "var/spool/cron/crontabs",
	} {
		out = append(out, s.configDir(dir, "")...)
	}
	return out
}
