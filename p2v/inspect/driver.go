package inspect

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// Packages that belong to NVIDIA's driver and what is built on it.
var nvidiaPackage = regexp.MustCompile(`^(?:lib)?nvidia|^cuda-(?:drivers|compat)|^kmod-nvidia|^akmod-nvidia|^dkms-nvidia|^xserver-xorg-video-nvidia|^datacenter-gpu-manager|` +
	`^libcuda|^libnvcuvid|^libnvidia|^libcudnn|^libnccl|^linux-modules-nvidia|^linux-(?:objects|signatures)-nvidia|^fabricmanager|^nvlsm`)

// Modules of the kernel that tell what is used of a GPU.
var gpuModules = []string{
	"nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm", "nvidia_peermem", "nv_peer_mem", "nvidia_fs", "nvidia_vgpu_vfio", "gdrdrv", "nouveau", "nova_core",
	"amdgpu", "radeon", "i915", "xe", "vfio_pci", "mlx5_core", "mlx5_ib", "ib_core", "vgpu_vfio",
}

// driver returns NVIDIA's driver where it is loaded, or installed and not loaded: then
// without a version that runs.
func (s *scene) driver(os report.OS) *report.Driver {
	loaded := s.any("sys/module/nvidia", "proc/driver/nvidia/version")
	d := &report.Driver{Flavour: "unknown", Origin: "unknown", Version: s.tree.text("sys/module/nvidia/version")}
	if !loaded {
		if packages, _ := s.packages(); len(packages) > 0 {
			s.miss("driver", "NVIDIA's driver is not loaded; these packages are installed: %s", strings.Join(packages[:min(len(packages), 8)], " "))
		}
		return nil
	}
	for _, m := range gpuModules {
		if s.tree.exists(path.Join("sys/module", m)) {
			d.Modules = append(d.Modules, m)
		}
	}
	line, _, _ := strings.Cut(s.tree.text("proc/driver/nvidia/version"), "\n")
	switch {
	case strings.Contains(line, "Open Kernel Module"):
		d.Flavour = "open"
	case strings.Contains(line, "Kernel Module"):
		d.Flavour = "proprietary"
	}
	if d.Version == "" {
		d.Version = driverVersion.FindString(line)
	}
	var origin string
	if d.Packages, origin = s.packages(); len(d.Packages) > 0 {
		d.Origin = origin
	}
	// The installer leaves its log, and its own way to remove what it laid.
	isDriver := func(p string) bool { return driverPackage.MatchString(p) }
	if s.any("var/log/nvidia-installer.log", "usr/bin/nvidia-uninstall") && !slices.ContainsFunc(d.Packages, isDriver) {
		d.Origin = "runfile"
	}
	d.DKMS = s.any("var/lib/dkms/nvidia", "var/lib/dkms/nvidia-open", "var/lib/dkms/nvidia-current") || s.dkms()
	d.Guest = s.any("sys/module/nvidia_vgpu_vfio", "etc/nvidia/vgpu/vgpuConfig.xml", "usr/bin/nvidia-gridd")
	return d
}

var (
	driverVersion = regexp.MustCompile(`\b\d{3}\.\d{2,3}(?:\.\d{2})?\b`)
	driverPackage = regexp.MustCompile(`^(?:nvidia-(?:driver|kernel|dkms|headless|open)|kmod-nvidia|akmod-nvidia|cuda-drivers|xorg-x11-drv-nvidia|linux-modules-nvidia)`)
)

func (s *scene) dkms() bool {
	return slices.ContainsFunc(s.tree.names("var/lib/dkms"), func(n string) bool { return strings.HasPrefix(n, "nvidia") })
}

// packages returns what is installed of NVIDIA's, and by which kind of package.
func (s *scene) packages() (list []string, origin string) {
	if text, err := s.tree.read("var/lib/dpkg/status", 64<<20); err == nil {
		return dpkg(text), "deb"
	}
	if !s.any("var/lib/rpm", "usr/lib/sysimage/rpm") {
		return nil, ""
	}
	// As root, rpm makes lock files beside its database.
	text, err := s.tools.outPlain(s.ctx, "rpm", "-qa", "--qf", `%{NAME}=%{VERSION}-%{RELEASE}\n`)
	if err != nil {
		s.miss("driver.packages", "%s", err)
		return nil, ""
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); nvidiaPackage.MatchString(line) {
			list = append(list, line)
		}
	}
	slices.Sort(list)
	return list, "rpm"
}

func dpkg(status string) []string {
	var out []string
	name, installed := "", false
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), ": ")
		switch key {
		case "":
			name, installed = "", false
		case "Package":
			name = value
		case "Status":
			installed = strings.HasSuffix(value, " installed")
		case "Version":
			if installed && nvidiaPackage.MatchString(name) {
				out = append(out, name+"="+value)
			}
		}
	}
	slices.Sort(out)
	return out
}
