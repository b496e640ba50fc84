// Package nvml is a look-alike of NVIDIA's library: nvml.c is the library, and this
// builds it and writes the file in which it keeps its host.
package nvml

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/mig"
	"gpuvirt/mig/cards"
)

// Env names the file with the library's state.
const Env = "GPUVIRT_NVML_STATE"

// Build compiles the library into a folder, against the nvml.h that comes with the
// binding, and returns its path. Functions that are named are left out of it, as out
// of an older one.
func Build(dir string, without ...string) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	source := filepath.Dir(here)
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml")
	list.Dir = source
	module, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("cannot find the binding: %w", err)
	}
	out := filepath.Join(dir, mig.DefaultPath)
	args := []string{
		"-std=gnu17", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", "-O1", "-fPIC", "-shared",
		"-DNVML_NO_UNVERSIONED_FUNC_DEFS=1", "-I", filepath.Join(strings.TrimSpace(string(module)), "pkg/nvml"),
		"-Wl,-soname," + mig.DefaultPath, "-o", out, filepath.Join(source, "nvml.c"), filepath.Join(source, "vgpu.c"),
	}
	for _, name := range without {
		args = append(args, "-D"+name+"=absent_"+name)
	}
	if text, err := exec.Command("cc", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build the library: %w\n%s", err, text)
	}
	return out, nil
}

// A GPU is one of a host's.
type GPU struct {
	Address gpu.Address
	Model   *cards.Model // nil: MIG cannot cut it
	Resets  bool         // for a change of its mode
}

// A File is a state file.
type File string

// Write sets the host up anew: no MIG, no processes.
func (f File) Write(gpus ...GPU) error {
	var b strings.Builder
	b.WriteString("driver 580.95.05\nmade 0\n")
	for i, g := range gpus {
		name, capable, resets, mib := "NVIDIA T4", 0, 0, 15360
		if g.Model != nil {
			name, capable, mib = "NVIDIA "+g.Model.Name, 1, 0
			for _, m := range g.Model.MemoryMiB {
				mib = max(mib, m)
			}
		}
		if g.Resets {
			resets = 1
		}
		a := g.Address
		fmt.Fprintf(&b, "gpu %08X:%02X:%02X.%d %d GPU-00000000-0000-4000-8000-%012d - %d %d %d 0 0 0 %s\n",
			a.Domain, a.Bus, a.Slot, a.Function, i, i, mib, capable, resets, name)
		if g.Model == nil {
			continue
		}
		e := g.Model.Engines
		fmt.Fprintf(&b, "total %d %d %d %d %d %d\n", g.Model.Slices, e.Compute, e.Decoders, e.Encoders, e.JPEG, e.OFA)
		for _, p := range g.Model.Profiles {
			e := p.Engines
			starts := strings.ReplaceAll(strings.Trim(fmt.Sprint(p.Starts), "[]"), " ", ",")
			fmt.Fprintf(&b, "profile %s %d %d %d %d %d %d %d %d %d %d %s\n", p.Name, cards.Index(p), p.ID, p.Size, p.Max,
				e.Compute, e.Decoders, e.Encoders, e.JPEG, e.OFA, g.Model.MemoryMiB[p.Name], starts)
		}
	}
	return f.replace(b.String())
}

func (f File) replace(text string) error {
	return os.WriteFile(string(f), []byte(text), 0o600)
}

// Edit changes the lines of the file that belong to one GPU, or for the empty address
// those of the host: nothing may use the library meanwhile.
func (f File) Edit(address string, change func(lines []string) []string) error {
	text, err := os.ReadFile(string(f))
	if err != nil {
		return err
	}
	var before, of, after []string
	on := &before
	if address == "" {
		on = &of
	}
	for line := range strings.Lines(string(text)) {
		switch word := strings.Fields(line); {
		case word[0] == "gpu" && strings.EqualFold(word[1], address):
			on = &of
		case word[0] == "gpu" && on == &of:
			on = &after
		}
		*on = append(*on, strings.TrimSuffix(line, "\n"))
	}
	if len(of) == 0 {
		return fmt.Errorf("cannot edit gpu %q: it is not in the file", address)
	}
	return f.replace(strings.Join(append(append(before, change(of)...), after...), "\n") + "\n")
}

// Strict makes changes take the capability that the driver asks for, CAP_SYS_ADMIN.
func (f File) Strict() error {
	return f.Edit("", func(lines []string) []string { return append(lines, "admin 1") })
}

// Activation is what Fail takes for a mode that is stored and not put in force.
const Activation = "activation"

// Reset resets a GPU: a mode that waits comes into force, instances and processes go.
func (f File) Reset(a gpu.Address) error {
	return f.Edit(busID(a), func(lines []string) (kept []string) {
		for _, l := range lines {
			word := strings.Fields(l)
			switch word[0] {
			case "gi", "ci", "client":
				continue
			case "gpu": // bus minor uuid serial mib capable resets current pending generation name
				generation, _ := strconv.Atoi(word[10])
				word[8], word[10] = word[9], strconv.Itoa(generation+1)
				l = strings.Join(word, " ")
			}
			kept = append(kept, l)
		}
		return kept
	})
}

// Fail makes a function answer with an error, so many times.
func (f File) Fail(function string, ret mig.Return, times int) error {
	return f.Edit("", func(lines []string) []string {
		return append(lines, fmt.Sprintf("fail %s %d %d", function, ret, times))
	})
}

// Use makes a process use a GPU instance, or with -1 the GPU beside its instances.
func (f File) Use(a gpu.Address, pid, instance int) error {
	return f.Edit(busID(a), func(lines []string) []string { return append(lines, fmt.Sprintf("client %d %d", pid, instance)) })
}

// Idle ends all processes on a GPU.
func (f File) Idle(a gpu.Address) error {
	return f.Edit(busID(a), func(lines []string) (kept []string) {
		for _, l := range lines {
			if !strings.HasPrefix(l, "client ") {
				kept = append(kept, l)
			}
		}
		return kept
	})
}

func busID(a gpu.Address) string {
	return fmt.Sprintf("%08x:%02x:%02x.%d", a.Domain, a.Bus, a.Slot, a.Function)
}

// Calls returns the calls that changed something, or tried to, and the beginnings and
// ends of sessions.
func (f File) Calls() ([]string, error) {
	text, err := os.ReadFile(string(f) + ".calls")
	if os.IsNotExist(err) {
		return nil, nil
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n"), err
}
