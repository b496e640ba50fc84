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
	"gpuvirt/internal/sysfs"
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
	broken      error    // why available could not be read
	on          []parent // where one more fits now, the first to be taken first
}

func (t mdevType) nvidia() bool { return isNVIDIA(t.native) }

// isNVIDIA reports whether a type directory is NVIDIA's: the part before the first
// dash is the driver's name.
func isNVIDIA(native string) bool { return strings.HasPrefix(native, "nvidia-") }

// typeName is how a type directory is called, and the device API that goes with it.
type typeName struct {
	profile string
	label   string // the attribute "name", empty if there is none
	api     string
}

// read reads attributes of every type of a GPU as one call. Older kernels left the
// choice of files to the driver: one that is not there is an fs.ErrNotExist of its
// own. A GPU that is registered but not ready has no types.
func (b *Backend) read(p parent, attributes ...string) (map[string][]sysfs.File, error) {
	dir := path.Join(p.dir, typesDir)
	dirs, err := b.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) && b.present(p) {
		return nil, nil
	}
	if err != nil || len(dirs) == 0 {
		return nil, err
	}
	return b.readTypes(p, dirs, attributes)
}

// readTypes is read for some types.
func (b *Backend) readTypes(p parent, dirs, attributes []string) (map[string][]sysfs.File, error) {
	var names []string
	for _, native := range dirs {
		for _, a := range attributes {
			names = append(names, path.Join(native, a))
		}
	}
	files, err := b.fs.ReadEach(path.Join(p.dir, typesDir), names...)
	if err != nil {
		return nil, err
	}
	out := map[string][]sysfs.File{}
	for _, native := range dirs {
		out[native], files = files[:len(attributes)], files[len(attributes):]
	}
	return out, nil
}

// What is read to name types, and what else to describe them.
var (
	namingFiles = []string{"name", "device_api"}
	typeFiles   = append(slices.Clone(namingFiles), "description", availableFile)
)

// names returns how each type directory of a GPU is called.
func (b *Backend) names(p parent) (map[string]typeName, error) {
	read, err := b.read(p, namingFiles...)
	if err != nil {
		return nil, err
	}
	return naming(read)
}

// naming gives each type directory its profile name; read holds namingFiles first.
func naming(read map[string][]sysfs.File) (map[string]typeName, error) {
	out := map[string]typeName{}
	labels := map[string]string{}
	for native, files := range read {
		label, err := files[0].Optional()
		if err != nil {
			return nil, err
		}
		api, err := files[1].Optional()
		if err != nil {
			return nil, err
		}
		out[native], labels[native] = typeName{label: label, api: api}, label
	}
	for native, profile := range profileNames(labels) {
		n := out[native]
		n.profile = profile
		out[native] = n
	}
	return out, nil
}

// profileNames gives each type of a GPU its profile name, from how the driver calls
// it; both by the directory that it has on the mdev bus.
//
// NVIDIA numbers its directories, and differently with each driver; the name is
// what lasts: the last word of "NVIDIA A2-4Q" or "GRID M60-0B", letter by letter.
// Other drivers name their directories themselves. Two types of one GPU with the
// same short name both go by their directory, so that a name means one thing.
func profileNames(labels map[string]string) map[string]string {
	out := map[string]string{}
	users := map[string]int{}
	for native, label := range labels {
		profile := native
		if words := strings.Fields(label); isNVIDIA(native) && len(words) > 0 {
			profile = words[len(words)-1]
		}
		users[profile]++
		out[native] = profile
	}
	for native, profile := range out {
		if users[profile] > 1 {
			out[native] = native
		}
	}
	return out
}

// types reads all types of a GPU, sorted by directory.
func (b *Backend) types(p parent) ([]mdevType, error) {
	if len(p.functions) > 0 {
		return b.united(p)
	}
	return b.typesAt(p)
}

// typesAt reads the types that one device carries, sorted by directory.
func (b *Backend) typesAt(p parent) ([]mdevType, error) {
	read, err := b.read(p, typeFiles...)
	if err != nil {
		return nil, err
	}
	names, err := naming(read)
	if err != nil {
		return nil, err
	}
	out := make([]mdevType, 0, len(names))
	for _, native := range slices.Sorted(maps.Keys(names)) {
		t, err := typeOf(p, native, names[native], read[native])
		if err != nil {
			return nil, err
		}
		if errors.Is(t.broken, fs.ErrNotExist) {
			if ok, err := b.fs.Exists(path.Join(p.dir, typesDir, native)); err == nil && !ok {
				continue // the type went away while we looked
			}
		}
		if t.available > 0 {
			t.on = []parent{p}
		}
		out = append(out, t)
	}
	return out, nil
}

// typeOf is the type that its typeFiles describe.
func typeOf(p parent, native string, name typeName, files []sysfs.File) (t mdevType, err error) {
	t = mdevType{native: native, name: name.profile, label: name.label, api: name.api}
	if t.description, err = files[2].Optional(); err != nil {
		return t, err
	}
	t.facts = parseDescription(t.description)
	t.available, t.broken = count(path.Join(p.dir, typesDir, native, availableFile), files[3])
	return t, nil
}

// available reads how many more devices of a type fit now. It is right for this
// moment only: making any device changes it for the card's other types as well.
func (b *Backend) available(p parent, native string) (int, error) {
	file := path.Join(p.dir, typesDir, native, availableFile)
	return count(file, b.file(file))
}

// count is what an available_instances says.
func count(name string, f sysfs.File) (int, error) {
	if f.Err != nil {
		return 0, f.Err
	}
	n, err := strconv.ParseUint(f.Text, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("cannot read %q: %q is not a number", name, f.Text)
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
	if t.nvidia() {
		addSeries(attrs, t.name)
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
	names := make([]string, len(types))
	for i, t := range types {
		if !t.nvidia() || t.name == t.native {
			return ""
		}
		names[i] = t.name
	}
	return commonModel(names)
}

func commonModel(names []string) string {
	var common string
	for i, name := range names {
		if i == 0 {
			common = name
		}
		for !strings.HasPrefix(name, common) {
			common = common[:len(common)-1]
		}
	}
	if i := strings.LastIndexByte(common, '-'); i > 0 {
		return common[:i]
	}
	return ""
}
