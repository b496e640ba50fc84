package guest

import (
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
)

func (m *maker) nouveau() {
	m.add(convert.Edit{
		Kind: convert.EditBlacklist, Module: "nouveau", What: "Keep nouveau from being loaded.",
		Undo: "Remove /etc/modprobe.d/gpuvirt-nouveau.conf, and build the initramfs anew.",
	})
}

// driverModules makes comments of the lines that are about NVIDIA's modules: what keeps
// nouveau away stays.
func (m *maker) driverModules() {
	for _, item := range m.change.Items {
		for _, c := range m.Configs {
			if c.Path == item && (c.Kind == "modules-load" || c.Kind == "modprobe") {
				m.comment(c, aboutModules(c.Kind), "#", item)
			}
		}
	}
}

func aboutModules(kind string) func(line string) bool {
	return func(line string) bool {
		words := strings.Fields(line)
		module := ""
		switch {
		case len(words) == 0:
		case kind == "modules-load":
			module = words[0]
		case words[0] == "alias" && len(words) > 2:
			module = words[2]
		case len(words) > 1 && slices.Contains([]string{"options", "install", "remove", "softdep", "blacklist"}, words[0]):
			module = words[1]
		}
		return strings.HasPrefix(module, "nvidia")
	}
}

func (m *maker) driverRemove() {
	m.add(convert.Edit{
		Kind: convert.EditFirstboot, Command: convert.FirstbootPurgeNVIDIA,
		What: "Remove NVIDIA's data-centre driver when the VM starts for the first time.",
	})
}

// driverVGPU installs the driver after the old one was removed, and where its modules can
// be built: in the VM.
func (m *maker) driverVGPU() {
	files := m.options.Driver.Packages
	stays := func(c assess.GuestChange) bool { return c.ID == "driver-remove" && !c.Automatic }
	switch {
	case len(files) == 0:
		m.leave(ByPerson, "no packages of the guest driver were brought")
	case slices.ContainsFunc(m.plan.Changes, stays):
		m.leave(ByPerson, "a person has to remove the old driver before")
	case m.strange(files) != "":
		m.leave(ByPerson, m.strange(files))
	default:
		m.brought(convert.Edit{
			Kind: convert.EditFirstbootPackages, Files: slices.Clone(files),
			What: "Install NVIDIA's guest driver when the VM starts for the first time.",
		})
		m.loadDriver()
	}
}

// loadDriver has what was installed in a VM that runs take the vGPU, and what works with it start
// again: it may have started before, and without it. Whether it did is looked at in any case.
func (m *maker) loadDriver() {
	m.add(convert.Edit{Kind: convert.EditFirstboot, Command: convert.FirstbootLoadDrivers, What: "Have it take the vGPU then.", Undo: "There is nothing to undo."})
	for _, s := range m.Services {
		e := convert.Edit{
			ID: m.change.ID, Kind: convert.EditFirstbootRestart, Unit: s.Unit, What: "Restart " + show(s.Unit) + " then.",
			Why: "It may have started before the driver was there.", Undo: "There is nothing to undo.",
		}
		if s.Role == "workload" && s.State == "active" && e.Check() == nil {
			m.add(e)
		}
	}
}

// KernelDriver is the kernel's driver that holds the GPU of a guest after its first start, when what
// a plan changes is changed but for what is left to somebody; empty: none, or it is a person's to say
// which.
func KernelDriver(p assess.Plan, left func(id string) bool) string {
	const nvidia = "nvidia"
	has := func(id string) bool {
		return slices.ContainsFunc(p.Changes, func(c assess.GuestChange) bool { return c.ID == id })
	}
	switch {
	case has("driver-install"), has("driver-flavour"), has("driver-both"):
	case has("driver-keep"):
		return nvidia
	case has("driver-vgpu"):
		if !left("driver-vgpu") && !left("driver-remove") {
			return nvidia
		}
	case has("licence"): // a vGPU, whose driver is there already
		return nvidia
	}
	return ""
}

const (
	griddFile  = "/etc/nvidia/gridd.conf"
	tokenDir   = "/etc/nvidia/ClientConfigToken/" //nolint:gosec // a folder, and no token
	tokenFile  = tokenDir + "client_configuration_token_gpuvirt.tok"
	griddUnit  = "nvidia-gridd.service"
	griddType  = "FeatureType=1" // of vGPUs: the driver asks for the licence that the vGPU's series takes
	griddAbout = "# Of the move to a VM: the licence for its vGPU.\n"
)

var griddLine = regexp.MustCompile(`^\s*FeatureType\s*=`)

func (m *maker) licence() {
	m.gridd()
	if len(m.options.Driver.Token) == 0 {
		m.leave(ByPerson, "no licence token was brought")
		return
	}
	for _, c := range m.Configs {
		// Of several it is not known which one counts.
		if c.Kind == "licence-token" && c.Path != tokenFile && strings.HasPrefix(c.Path, tokenDir) {
			m.add(convert.Edit{
				Kind: convert.EditDelete, Path: c.Path, What: "Remove the old licence token " + c.Path + ".", Undo: "Copy it from the server.",
			}, c.Path)
		}
	}
	m.brought(convert.Edit{
		Kind: convert.EditWrite, Path: tokenFile, Content: slices.Clone(m.options.Driver.Token), Mode: 0o744,
		What: "Lay the licence token.", Undo: "Remove " + tokenFile + ".",
	})
	if slices.ContainsFunc(m.Services, func(s report.Service) bool { return s.Unit == griddUnit && s.Enabled == "disabled" }) {
		m.add(convert.Edit{Kind: convert.EditEnable, Unit: griddUnit, What: "Have " + griddUnit + " start with the system.", Undo: "systemctl disable " + griddUnit})
	}
}

// gridd says that the licence is for a vGPU.
func (m *maker) gridd() {
	write := func(text, undo string) {
		m.add(convert.Edit{
			Kind: convert.EditWrite, Path: griddFile, Content: []byte(griddAbout + text + griddType + "\n"),
			What: "Say in " + griddFile + " that the licence is for a vGPU.", Undo: undo,
		}, griddFile)
	}
	i := slices.IndexFunc(m.Configs, func(c report.Config) bool { return c.Kind == "gridd" && c.Path == griddFile })
	if i < 0 {
		write("", "Remove "+griddFile+".")
		return
	}
	c := m.Configs[i]
	about := slices.DeleteFunc(slices.Clone(c.Lines), func(l string) bool { return !griddLine.MatchString(l) })
	exact := slices.DeleteFunc(slices.Clone(c.Exact), func(l string) bool { return !griddLine.MatchString(l) })
	switch {
	case len(about) == 0 && len(c.Exact) == len(c.Lines) && len(c.Lines) < maxLines:
		text := strings.Join(append(slices.Clone(c.Exact), ""), "\n")
		write(text, "Copy "+griddFile+" from the server.")
	case len(about) != len(exact) || len(about) == 0:
		m.leave(ByPerson, "say "+griddType+" there: the inspection does not have its lines as they stand", griddFile)
	default:
		for _, line := range exact {
			if line != griddType {
				m.line(griddFile, line, griddType, griddFile)
			}
		}
	}
}
