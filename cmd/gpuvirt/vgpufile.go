package main

import (
	"cmp"
	"io"
	"maps"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"
)

// A vgpuFile is a file of NVIDIA's vgpu-device-manager.
type vgpuFile struct {
	Version string                `yaml:"version"`
	Configs map[string][]vgpuSpec `yaml:"vgpu-configs"`
}

// A vgpuSpec is an entry of a config: how many vGPUs of which type some GPUs have, each.
type vgpuSpec struct {
	cards

	want map[string]int
}

func readVGPUFile(r io.Reader) (vgpuFile, error) {
	var f vgpuFile
	if err := readStrictly(r, &f); err != nil {
		return f, err
	}
	return f, checkConfigs(f.Version, f.Configs)
}

// onInstance are types of vGPU that stand on MIG instances: the others share a GPU by time.
var onInstance = regexp.MustCompile(`^[A-Z0-9]+-[1-9]-[0-9]+[ABCQ](ME|NOME|MEALL|GFX)?$`)

// UnmarshalYAML reads an entry. What vgpu-device-manager asks for in each must be there: an
// entry that is cut short would clear cards.
func (s *vgpuSpec) UnmarshalYAML(n *yaml.Node) error {
	e, err := readEntry(n, "device-filter", "devices", "vgpu-devices")
	if err != nil {
		return err
	}
	for _, name := range []string{"devices", "vgpu-devices"} {
		if !e.has(name) {
			return e.wrong("", "an entry has no %q", name)
		}
	}
	return cmp.Or(s.readDevices(e), s.readFilter(e), s.readCounts(e))
}

func (s *vgpuSpec) readCounts(e configEntry) error {
	s.want = map[string]int{}
	if err := e.read("vgpu-devices", &s.want, "not of the form type: number"); err != nil {
		return err
	}
	mounted := 0
	for _, name := range slices.Sorted(maps.Keys(s.want)) {
		if n := s.want[name]; n < 1 || n > 256 || name == "" {
			return e.wrong("vgpu-devices", "%d of %q", n, name)
		}
		if onInstance.MatchString(name) {
			mounted++
		}
	}
	if mounted > 0 && mounted < len(s.want) {
		return e.wrong("vgpu-devices", "types that stand on MIG instances are not for one GPU with others")
	}
	return nil
}
