package mdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
)

// Files of a virtual function whose driver is its VFIO driver.
const (
	currentFile   = "nvidia/current_vgpu_type"
	creatableFile = "nvidia/creatable_vgpu_types"
	instanceFile  = "nvidia/gpu_instance_id"
	vfioDir       = "vfio-dev"

	deviceAPI = "vfio-pci"
)

// A card is a GPU as one look has found it.
type card struct {
	id        gpu.ID
	dir       string
	functions []vf
	// labels is how the driver calls the types that it lists now or has listed, by id.
	labels map[uint32]string
	// static are the types that were asked for elsewhere, nil: they were not, or nobody
	// knows.
	static map[uint32]gpu.VGPUType
}

// A vf is a virtual function that can have a vGPU.
type vf struct {
	function
	current   uint32            // type of its vGPU, 0: none
	creatable map[uint32]string // what can be made on it now: names by id
	unlisted  error             // why creatable could not be read
	vfio      bool              // it can be given to a VM
}

func (f vf) free() bool { return f.current == 0 && f.vfio }

func (f vf) takes(typ uint32) bool {
	_, ok := f.creatable[typ]
	return ok && f.free()
}

// card reads a GPU and its virtual functions.
func (v *Vendor) card(id gpu.ID) (*card, error) {
	none := gpu.Errorf(gpu.CodeNotFound, "there is no such gpu with virtual functions that take vGPUs")
	if id == "" || id == "." || id == ".." || strings.ContainsRune(string(id), '/') {
		return nil, none
	}
	dir, err := v.real(path.Join(pci.Devices, string(id)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, none
	}
	if err != nil {
		return nil, err
	}
	all, err := v.functions(dir)
	if err != nil {
		return nil, err
	}
	c := &card{id: id, dir: dir}
	if c.functions, err = v.read(dir, all); err != nil {
		return nil, err
	}
	v.remember(c)
	if len(c.functions) == 0 {
		return nil, none.WithHint("if it is there, its virtual functions may be off, or their driver not loaded")
	}
	return c, nil
}

// read reads the vGPUs of a GPU's functions, all as one call. A function without the
// files is left out: it is bound to another driver, or has just gone.
func (v *Vendor) read(dir string, all []function) ([]vf, error) {
	names := make([]string, 0, 2*len(all))
	for _, f := range all {
		link := fmt.Sprintf("virtfn%d", f.index)
		names = append(names, path.Join(link, currentFile), path.Join(link, creatableFile))
	}
	if len(names) == 0 {
		return nil, nil
	}
	files, err := v.fs.ReadEach(dir, names...)
	if err != nil {
		return nil, err
	}
	var out []vf
	for i, f := range all {
		current, creatable := files[2*i], files[2*i+1]
		if errors.Is(current.Err, fs.ErrNotExist) {
			continue
		}
		if current.Err != nil {
			return nil, current.Err
		}
		n, err := strconv.ParseUint(current.Text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("cannot read %q: %q is not a number", path.Join(f.dir, currentFile), current.Text)
		}
		one := vf{function: f, current: uint32(n), creatable: parseCreatable(creatable.Text), unlisted: creatable.Err}
		if one.vfio, err = v.fs.Exists(path.Join(f.dir, vfioDir)); err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

var creatablePattern = regexp.MustCompile(`^\s*([0-9]+)\s*:\s*(.+?)\s*$`)

// parseCreatable reads a list of creatable types: names by id. A line that is no row of
// the table is left out, as its header is; drivers write an empty table without one. An
// id that two rows name means nothing.
func parseCreatable(text string) map[uint32]string {
	out := map[uint32]string{}
	twice := map[uint32]bool{}
	for line := range strings.Lines(text) {
		m := creatablePattern.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n, err := strconv.ParseUint(m[1], 10, 32)
		label := strings.TrimSpace(m[2])
		if err != nil || n == 0 || label == "" || !utf8.ValidString(label) {
			continue
		}
		if was, ok := out[uint32(n)]; ok && was != label {
			twice[uint32(n)] = true
		}
		out[uint32(n)] = label
	}
	maps.DeleteFunc(out, func(n uint32, _ string) bool { return twice[n] })
	return out
}

// remember adds the names that the driver lists now to those it has listed, and gives
// the card all of them. A driver that calls a type otherwise has been changed, and what
// the one before it said is worth nothing. So it is where all functions are off.
func (v *Vendor) remember(c *card) {
	v.seen.Lock()
	defer v.seen.Unlock()
	if len(c.functions) == 0 {
		delete(v.labels, c.id)
		return
	}
	known := v.labels[c.id]
	if known == nil {
		known = map[uint32]string{}
	}
	for _, f := range c.functions {
		for n, label := range f.creatable {
			if was, ok := known[n]; ok && was != label {
				known = map[uint32]string{}
			}
			known[n] = label
		}
	}
	v.labels[c.id] = known
	c.labels = maps.Clone(known)
}

// catalogue adds the types that the driver knows for a GPU, whatever fits now. Without
// an answer the card stays as it was.
func (v *Vendor) catalogue(ctx context.Context, c *card) error {
	if c.static != nil || v.opts.Types == nil {
		return nil
	}
	types, err := v.opts.Types(ctx, c.id)
	if err != nil {
		return err
	}
	c.static = map[uint32]gpu.VGPUType{}
	for _, t := range types {
		c.static[t.ID] = t
	}
	return nil
}

// typeDir is the name that a type has, or would have, on the mdev bus.
func typeDir(typ uint32) string { return "nvidia-" + nativeID(typ) }

// nativeID is a type's id as the driver reads and writes it.
func nativeID(typ uint32) string { return strconv.FormatUint(uint64(typ), 10) }

// names gives each known type its profile name: the same that the type has on the mdev
// bus, where a driver offers it there.
func (c *card) names() map[uint32]string {
	labels := map[string]string{}
	ids := map[string]uint32{}
	add := func(typ uint32, label string) { labels[typeDir(typ)], ids[typeDir(typ)] = label, typ }
	for typ, t := range c.static {
		add(typ, t.Name)
	}
	for typ, label := range c.labels {
		add(typ, label)
	}
	out := map[uint32]string{}
	for dir, profile := range profileNames(labels) {
		out[ids[dir]] = profile
	}
	return out
}

// find returns the type of a profile name.
func (c *card) find(profile string) (uint32, bool) {
	for typ, name := range c.names() {
		if name == profile {
			return typ, true
		}
	}
	return 0, false
}

// onInstance reports whether vGPUs of a type live on a GPU instance.
func (c *card) onInstance(typ uint32, profile string) bool {
	if t, ok := c.static[typ]; ok {
		return t.GPUInstanceProfile != nil
	}
	return onInstancePattern.MatchString(profile)
}

// available is how many more vGPUs of a type fit now. Without the type's maximum that is
// one, where the driver lists it on any function: MaxInstances is 0 then.
func (c *card) available(typ uint32) int {
	t := c.static[typ]
	free, used, same := 0, 0, t.GPUInstanceProfile == nil
	for _, f := range c.functions {
		if f.takes(typ) {
			free++
		}
		if f.current != 0 {
			used++
			same = same && c.static[f.current].FramebufferBytes == t.FramebufferBytes
		}
	}
	return room(free, t.MaxInstances, used, same)
}

// profile is a type as a client sees it.
func (c *card) profile(typ uint32, name, notCreatable string) gpu.Profile {
	t := c.static[typ]
	attrs := t.Attributes()
	if label := c.labels[typ]; label != "" {
		attrs["name"] = label
	}
	addSeries(attrs, name)
	if err := c.unlisted(); err != nil && notCreatable == "" {
		notCreatable = fmt.Sprintf("the driver does not say what fits: %s", err)
	}
	return gpu.Profile{
		Name: name, Kind: gpu.KindVGPU, GPU: c.id, On: t.On, MemoryBytes: t.FramebufferBytes, MaxInstances: t.MaxInstances,
		Available: c.available(typ), NativeID: nativeID(typ), DeviceAPI: deviceAPI, Attributes: attrs, NotCreatable: notCreatable,
	}
}

// unlisted is why it is not known what fits on a card: the list of every free function
// is unreadable.
func (c *card) unlisted() error {
	var err error
	for _, f := range c.functions {
		if f.free() && f.unlisted == nil {
			return nil
		}
		if f.free() {
			err = f.unlisted
		}
	}
	return err
}

// function finds a function by its index.
func (c *card) function(index int) (vf, bool) {
	i := slices.IndexFunc(c.functions, func(f vf) bool { return f.index == index })
	if i < 0 {
		return vf{}, false
	}
	return c.functions[i], true
}
