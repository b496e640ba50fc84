package mdev

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
)

// An mdevType is one directory under mdev_supported_types.
type mdevType struct {
	native string // name of the directory
	name   string // of the profile
	label  string // the attribute "name", empty if there is none
	facts
	description string
	api         string
	available   int
	broken      error // why available could not be read
}

func (t mdevType) nvidia() bool { return isNVIDIA(t.native) }

// isNVIDIA reports whether a type directory is NVIDIA's: the part before the first
// dash is the driver's name.
func isNVIDIA(native string) bool { return strings.HasPrefix(native, "nvidia-") }

// names returns the profile name of each type directory of a GPU.
//
// NVIDIA numbers its directories, and differently with each driver; the name is
// what lasts: the last word of "NVIDIA A2-4Q" or "GRID M60-0B", letter by letter.
// Other drivers name their directories themselves. Two types of one GPU with the
// same short name both go by their directory, so that a name means one thing.
func (b *Backend) names(p parent) (profiles, labels map[string]string, err error) {
	dirs, err := b.fs.List(path.Join(p.dir, typesDir))
	if errors.Is(err, fs.ErrNotExist) && b.present(p) {
		return nil, nil, nil // registered, but not ready
	}
	if err != nil {
		return nil, nil, err
	}
	profiles, labels = map[string]string{}, map[string]string{}
	users := map[string]int{}
	for _, native := range dirs {
		label, err := b.attribute(p, native, "name")
		if err != nil {
			return nil, nil, err
		}
		labels[native], profiles[native] = label, native
		if words := strings.Fields(label); isNVIDIA(native) && len(words) > 0 {
			profiles[native] = words[len(words)-1]
		}
		users[profiles[native]]++
	}
	for native, name := range profiles {
		if users[name] > 1 {
			profiles[native] = native
		}
	}
	return profiles, labels, nil
}

// types reads all types of a GPU, sorted by directory.
func (b *Backend) types(p parent) ([]mdevType, error) {
	profiles, labels, err := b.names(p)
	if err != nil {
		return nil, err
	}
	out := make([]mdevType, 0, len(profiles))
	for _, native := range slices.Sorted(maps.Keys(profiles)) {
		t := mdevType{native: native, name: profiles[native], label: labels[native]}
		if t.description, err = b.attribute(p, native, "description"); err != nil {
			return nil, err
		}
		if t.api, err = b.attribute(p, native, "device_api"); err != nil {
			return nil, err
		}
		t.facts = parseDescription(t.description)
		t.available, t.broken = b.available(p, native)
		if errors.Is(t.broken, fs.ErrNotExist) {
			if ok, err := b.fs.Exists(path.Join(p.dir, typesDir, native)); err == nil && !ok {
				continue // the type went away while we looked
			}
		}
		out = append(out, t)
	}
	return out, nil
}

// attribute reads a file that a type may lack: older kernels left the choice of
// files to the driver.
func (b *Backend) attribute(p parent, native, name string) (string, error) {
	s, err := b.fs.Read(path.Join(p.dir, typesDir, native, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return s, err
}

// available reads how many more devices of a type fit now. It is right for this
// moment only: making any device changes it for the card's other types as well.
func (b *Backend) available(p parent, native string) (int, error) {
	file := path.Join(p.dir, typesDir, native, "available_instances")
	s, err := b.fs.Read(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("cannot read %q: %q is not a number", file, s)
	}
	return int(n), nil
}

// profile is the type as a client sees it.
func (t mdevType) profile(p parent) gpu.Profile {
	attrs := map[string]string{}
	maps.Copy(attrs, t.attrs)
	if t.label != "" {
		attrs["name"] = t.label
	}
	if t.description != "" {
		attrs["description"] = t.description
	}
	out := gpu.Profile{
		Name: t.name, Kind: gpu.KindMdev, GPU: p.id, MemoryBytes: t.memory, MaxInstances: t.max,
		Available: t.available, NativeID: t.native, DeviceAPI: t.api, Attributes: attrs,
	}
	if t.broken != nil {
		out.NotCreatable = fmt.Sprintf("the driver does not say how many fit: %s", t.broken)
	}
	return out
}

// typeFor finds the type that a wish names: by the profile's name, because the
// directory's number changes with the driver; by the directory if that is all the
// wish has.
func typeFor(types []mdevType, want gpu.Partition) (mdevType, error) {
	var have []string
	for _, t := range types {
		if want.Profile == t.name || want.Profile == "" && want.Native == t.native {
			return t, nil
		}
		have = append(have, t.name)
	}
	slices.Sort(have)
	name := want.Profile
	if name == "" {
		name = want.Native
	}
	err := gpu.Errorf(gpu.CodeProfileUnknown, "it has no profile %q", name)
	if len(have) == 0 {
		return mdevType{}, err.WithHint("its driver offers no types at all: look at the kernel log and at the vendor's services")
	}
	return mdevType{}, err.WithHint("it has %s", strings.Join(have, ", "))
}

// modelOf returns what the names of NVIDIA's types have in common: "T4" of T4-1Q
// and T4-16C. Empty for other drivers.
func modelOf(types []mdevType) string {
	var common string
	for i, t := range types {
		if !t.nvidia() || t.name == t.native {
			return ""
		}
		if i == 0 {
			common = t.name
		}
		for !strings.HasPrefix(t.name, common) {
			common = common[:len(common)-1]
		}
	}
	if i := strings.LastIndexByte(common, '-'); i > 0 {
		return common[:i]
	}
	return ""
}
