package inspect

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/p2v/report"
)

func (s *scene) system() report.System {
	const dmi = "sys/class/dmi/id/"
	out := report.System{Vendor: s.tree.text(dmi + "sys_vendor"), Product: s.tree.text(dmi + "product_name")}
	for name, to := range map[string]*string{"product_serial": &out.Serial, "product_uuid": &out.UUID} {
		text, err := s.tree.read(dmi+name, small)
		*to = strings.TrimSpace(text)
		if err != nil && s.tree.exists(dmi+name) {
			s.miss("system."+strings.TrimPrefix(name, "product_"), "%s", cause(err))
		}
	}
	out.Virtual = s.virtual(out)
	return out
}

// virtual names the hypervisor that the server runs on, if it does.
func (s *scene) virtual(sys report.System) string {
	info, _ := s.tree.read("proc/cpuinfo", large)
	flagged := false
	for line := range strings.Lines(info) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "flags" {
			flagged = slices.Contains(strings.Fields(value), "hypervisor")
			break
		}
	}
	text := sys.Vendor + " " + sys.Product + " " + s.tree.text("sys/class/dmi/id/bios_vendor")
	for _, known := range []struct{ sign, name string }{
		{"VMware", "vmware"},
		{"QEMU", "kvm"},
		{"KVM", "kvm"},
		{"OpenStack", "kvm"},
		{"RHEV", "kvm"},
		{"VirtualBox", "virtualbox"},
		{"Xen", "xen"},
		{"Nutanix", "nutanix"},
		{"Parallels", "parallels"},
	} {
		if strings.Contains(text, known.sign) && (flagged || known.sign == "QEMU") {
			return known.name
		}
	}
	switch {
	case !flagged:
		return ""
	case strings.Contains(text, "Microsoft"):
		return "hyper-v"
	case strings.Contains(text, "Amazon"):
		return "amazon"
	case strings.Contains(text, "Google"):
		return "google"
	}
	return "unknown"
}

// bootID is where Linux says in which boot it is.
const bootID = "proc/sys/kernel/random/boot_id"

func (s *scene) operatingSystem() report.OS {
	var out report.OS
	release := s.tree.text("etc/os-release")
	if release == "" {
		release = s.tree.text("usr/lib/os-release")
	}
	vars := assignments(release)
	out.ID, out.VersionID, out.PrettyName = vars["ID"], vars["VERSION_ID"], vars["PRETTY_NAME"]
	out.Kernel = s.tree.text("proc/sys/kernel/osrelease")
	if out.Arch = s.tree.text("proc/sys/kernel/arch"); out.Arch == "" {
		var u unix.Utsname
		if unix.Uname(&u) == nil {
			out.Arch = unix.ByteSliceToString(u.Machine[:])
		}
	}
	for _, name := range s.tree.names("lib/modules") {
		if s.tree.exists(path.Join("lib/modules", name, "modules.dep")) || s.tree.exists(path.Join("lib/modules", name, "kernel")) {
			out.Kernels = append(out.Kernels, name)
		}
	}
	out.Cmdline = maskLine(s.tree.text("proc/cmdline"))
	out.Headers = out.Kernel != "" && s.tree.exists(path.Join("lib/modules", out.Kernel, "build"))
	agent := s.any("usr/sbin/qemu-ga", "usr/bin/qemu-ga", "usr/local/bin/qemu-ga", "usr/local/sbin/qemu-ga")
	out.GuestAgent = &agent
	if agent {
		out.GuestAgentRuns = s.agentRuns()
	}
	out.BootID = s.tree.text(bootID)
	out.MachineID = s.tree.text("etc/machine-id")
	for line := range strings.Lines(s.textOf("proc/stat", large)) {
		if n, found := strings.CutPrefix(line, "btime "); found {
			out.Started = time.Unix(int64(number(n)), 0).UTC() //nolint:gosec // bounded by number
		}
	}
	switch enforce := s.tree.text("sys/fs/selinux/enforce"); {
	case enforce == "1":
		out.SELinux = "enforcing"
	case enforce == "0":
		out.SELinux = "permissive"
	case s.tree.exists("etc/selinux/config"):
		out.SELinux = "disabled"
	}
	return out
}

// textOf returns a file of up to limit bytes, empty where it cannot be read.
func (s *scene) textOf(name string, limit int) string {
	text, err := s.tree.read(name, limit)
	if err != nil {
		return ""
	}
	return text
}

// number reads a number that is not negative, 0 where it is none.
func number(text string) uint64 {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 63)
	if err != nil {
		return 0
	}
	return n
}

// assignments reads lines of a shell's assignments, without evaluating anything.
func assignments(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(key, "#") {
			out[strings.TrimSpace(key)] = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return out
}

func (s *scene) firmware() report.Firmware {
	out := report.Firmware{Type: "bios"}
	if s.tree.exists("sys/firmware/efi") {
		out.Type = "uefi"
		v, err := s.tree.read(efiVariable("SecureBoot"), 5)
		switch {
		case err == nil && len(v) == 5:
			on := v[4] == 1
			out.SecureBoot = &on
		case err != nil:
			s.miss("firmware.secure_boot", "%s", cause(err))
		}
		out.EFI = s.efi()
	}
	if s.tree.exists("sys/class/tpm/tpm0") {
		out.TPM = "1.2"
		if s.tree.text("sys/class/tpm/tpm0/tpm_version_major") == "2" || s.tree.exists("sys/class/tpmrm/tpmrm0") {
			out.TPM = "2.0"
		}
	}
	return out
}

// What a program may have been built for, or may ask for when it runs.
var cpuFlags = []string{
	"avx", "amx_", "sse4_2", "fma", "f16c", "vaes", "vpclmulqdq", "sha_ni", "aes", "bmi1", "bmi2", "gfni", "adx", "rdrand", "rdseed", "vmx", "svm",
	"sgx", "sve", "asimd", "bf16", "i8mm",
}

func (s *scene) cpu() report.CPU {
	var out report.CPU
	text, err := s.tree.read("proc/cpuinfo", large)
	if err != nil {
		s.miss("cpu", "%s", cause(err))
		return out
	}
	sockets, cores := map[string]bool{}, map[string]bool{}
	socket := ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "processor":
			out.Threads++
		case "model name":
			out.Model = value
		case "vendor_id", "CPU implementer":
			out.Vendor = value
		case "physical id":
			socket = value
			sockets[value] = true
		case "core id":
			cores[socket+" "+value] = true
		case "flags", "Features":
			if out.Flags == nil {
				out.Flags = relevant(strings.Fields(value))
			}
		}
	}
	// A kernel without topology, as of a VM with one thread, tells neither.
	out.Sockets, out.Cores = max(len(sockets), min(out.Threads, 1)), len(cores)
	if out.Cores == 0 {
		out.Cores = out.Threads
	}
	for _, name := range s.tree.names("sys/devices/system/node") {
		if n, found := strings.CutPrefix(name, "node"); found && strings.Trim(n, "0123456789") == "" {
			out.NUMA++
		}
	}
	return out
}

func relevant(flags []string) []string {
	out := []string{}
	for _, f := range flags {
		for _, prefix := range cpuFlags {
			if f == prefix || strings.HasPrefix(f, prefix) && (prefix == "avx" || prefix == "amx_" || prefix == "sve" || prefix == "sgx") {
				out = append(out, f)
				break
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (s *scene) memory() report.Memory {
	text, err := s.tree.read("proc/meminfo", small)
	if err != nil {
		s.miss("memory", "%s", cause(err))
	}
	v := map[string]uint64{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		n, unit, _ := strings.Cut(strings.TrimSpace(value), " ")
		v[key] = number(n)
		if strings.TrimSpace(unit) == "kB" {
			v[key] *= 1024
		}
	}
	huge, told := v["Hugetlb"] // of all sizes; older kernels only tell those of the usual one
	if !told {
		huge = v["HugePages_Total"] * v["Hugepagesize"]
	}
	return report.Memory{TotalBytes: v["MemTotal"], AvailableBytes: v["MemAvailable"], HugepagesBytes: huge, SwapBytes: v["SwapTotal"]}
}

// cause is an error without its path, which the report names already.
func cause(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		return text[i+2:]
	}
	return text
}
