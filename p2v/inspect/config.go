package inspect

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

const (
	maxConfigs = 200
	maxLines   = 40
)

var (
	gpuWords   = regexp.MustCompile(`(?i)nvidia|nouveau|amdgpu|radeon|\bi915\b|\bvfio|\bnova`)
	migWords   = regexp.MustCompile(`nvidia-smi\b.*\s(?:-mig\b|mig\s|--multi-instance-gpu)|nvidia-mig-parted|mig-parted`)
	powerWords = regexp.MustCompile(`nvidia-smi\b.*\s(?:-pl|--power-limit|-ac|-lgc|-lmc|--lock-gpu-clocks|--applications-clocks|-c\s|--compute-mode|-e\s|--ecc-config|-pm|--persistence-mode)`)
)

// exact returns a line as it stands, without its end; empty where it cannot be told so. It
// may be the last one of a file that was not read to its end.
func exact(line string, cut bool) string {
	text, ended := strings.CutSuffix(line, "\n")
	if ended {
		text = strings.TrimSuffix(text, "\r")
	}
	if cut && !ended || len(text) > maxArg || maskLine(text) != text || report.CleanString(text) != text {
		return ""
	}
	return text
}

// configs finds the files about GPUs that somebody laid.
func (s *scene) configs(units []unitFile) []report.Config {
	var out []report.Config
	seen := map[string]bool{}
	add := func(kind, name string, tell, want func(line string) bool) {
		real := s.tree.real(name)
		if real == "" || seen[real] || len(out) >= maxConfigs {
			return
		}
		c := report.Config{Path: "/" + name, Kind: kind, Lines: []string{}}
		text := s.textOf(name, small)
		if want != nil && !slices.ContainsFunc(strings.Split(text, "\n"), want) {
			return
		}
		seen[real] = true
		for _, whole := range strings.SplitAfter(text, "\n") {
			line := strings.TrimSpace(whole)
			if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") || tell == nil || !tell(line) {
				continue
			}
			if e := exact(whole, len(text) == small); e != "" {
				c.Exact = append(c.Exact, e)
			}
			if c.Lines = append(c.Lines, maskLine(line[:min(len(line), maxArg)])); len(c.Lines) == maxLines {
				break
			}
		}
		out = append(out, c)
	}
	all, about := func(string) bool { return true }, gpuWords.MatchString
	for _, dir := range []string{"etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"} {
		for _, f := range s.configDir(dir, ".conf") {
			add("modprobe", f, about, func(l string) bool { return about(l) && !strings.HasPrefix(strings.TrimSpace(l), "#") })
		}
	}
	for _, f := range slices.Concat([]string{"etc/modules"}, s.configDir("etc/modules-load.d", ".conf"), s.configDir("usr/lib/modules-load.d", ".conf")) {
		add("modules-load", f, about, about)
	}
	for _, f := range slices.Concat(s.configDir("etc/udev/rules.d", ".rules"), s.configDir("usr/lib/udev/rules.d", ".rules"), s.configDir("lib/udev/rules.d", ".rules")) {
		if strings.HasPrefix(f, "etc/") || gpuWords.MatchString(path.Base(f)) {
			add("udev", f, about, about)
		}
	}
	for _, f := range append([]string{"etc/X11/xorg.conf"}, s.configDir("etc/X11/xorg.conf.d", ".conf")...) {
		add("xorg", f, all, about)
	}
	add("gridd", "etc/nvidia/gridd.conf", all, nil)
	for _, f := range s.configDir("etc/nvidia/ClientConfigToken", "") {
		out = append(out, report.Config{Path: "/" + f, Kind: "licence-token", Lines: []string{}}) // not opened
	}
	for _, f := range []string{"etc/nvidia-container-runtime/config.toml", "etc/docker/daemon.json", "etc/containerd/config.toml", "etc/crio/crio.conf"} {
		add("container-runtime", f, about, about)
	}
	for _, dir := range []string{"etc/cdi", "run/cdi"} {
		for _, f := range s.configDir(dir, "") {
			add("cdi", f, func(l string) bool { return strings.HasPrefix(l, "kind:") || strings.HasPrefix(l, `"kind"`) }, nil)
		}
	}
	add("mig", "etc/nvidia-mig-manager/config.yaml", all, nil)
	for _, u := range units {
		switch {
		case !strings.HasPrefix(u.path, "etc/"):
		case strings.HasPrefix(u.unit, "nvidia-persistenced") && strings.Contains(u.path, ".service.d/"):
			add("persistence", u.path, all, nil)
		case migWords.MatchString(u.text):
			add("mig", u.path, migWords.MatchString, nil)
		case powerWords.MatchString(u.text):
			add("power", u.path, powerWords.MatchString, nil)
		}
	}
	for _, f := range []string{"etc/rc.local", "etc/rc.d/rc.local", "etc/crontab"} {
		add("mig", f, migWords.MatchString, migWords.MatchString)
		add("power", f, powerWords.MatchString, powerWords.MatchString)
	}
	return out
}
