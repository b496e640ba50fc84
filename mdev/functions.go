package mdev

import (
	"errors"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"

	"gpuvirt/internal/pci"
)

// A function is a virtual function of a GPU.
type function struct {
	index int    // N of the link virtfnN
	dir   string // real path
}

// address is the function's name in sysfs.
func (f function) address() string { return path.Base(f.dir) }

// functions lists the virtual functions of the device in a directory, by index; none
// where they are not on. One that goes away meanwhile is left out.
func (k kernel) functions(dir string) ([]function, error) {
	// The first is asked for first: few devices of a host have any.
	if some, err := k.fs.Exists(path.Join(dir, "virtfn0")); err != nil || !some {
		return nil, err
	}
	names, err := k.fs.List(dir)
	if err != nil {
		return nil, err
	}
	var out []function
	for _, f := range pci.VirtualFunctions(names) {
		real, err := k.real(path.Join(dir, f.Link))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, function{index: f.Index, dir: real})
	}
	return out, nil
}

// real returns the directory that an entry of a bus or class, or a link between
// devices, stands for. The kernel links those straight to it: there are no links
// further down.
func (k kernel) real(entry string) (string, error) {
	target, err := k.fs.Readlink(entry)
	if err != nil {
		return "", err
	}
	return path.Join(path.Dir(entry), target), nil
}

// room is how many more vGPUs of a type fit on a card, given on how many of its
// functions the driver would make one now. That is not one on each: the next one that is
// made changes what fits on all others. It is the type's maximum on an otherwise empty
// card, less what is there, if that has the same size and so counts the same; else one
// more is all that is certain.
func room(free, maximum, used int, same bool) int {
	if maximum == 0 || !same {
		return min(free, 1)
	}
	return max(0, min(free, maximum-used))
}

// onInstancePattern is a type of vGPU on a GPU instance: "A100D-2-20C", "DC-1-24QGFX".
// Its maximum counts all instances that the card could be cut into, and not those that
// are there.
var onInstancePattern = regexp.MustCompile(`^[A-Z0-9]+-[1-9]-(0|[1-9][0-9]*)[ABCQ](ME|NOME|MEALL|GFX)?$`)

// united reads the types of a GPU that its virtual functions carry, one device on each.
// Every function lists all types, and available_instances says whether the card takes one
// more and this function has none: that alone is read of every one that is free.
func (b *Backend) united(p parent) ([]mdevType, error) {
	devices, err := b.devices(p)
	if err != nil {
		return nil, err
	}
	busy := map[string]bool{}
	for _, d := range devices {
		busy[d.Parent] = true
	}
	all := map[string]mdevType{}
	labels := map[string]string{}
	for _, at := range p.functions {
		types, err := b.typesLike(at, all, busy[at.name()])
		if errors.Is(err, fs.ErrNotExist) && !b.present(at) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, t := range types {
			u, ok := all[t.native]
			if !ok {
				u, u.on = t, nil
			}
			if t.broken == nil {
				u.broken = nil // one that answers is enough
			}
			if !busy[at.name()] {
				u.on = append(u.on, t.on...)
			}
			all[t.native], labels[t.native] = u, t.label
		}
	}
	names := profileNames(labels)
	out := make([]mdevType, 0, len(all))
	for _, native := range slices.Sorted(maps.Keys(all)) {
		t := all[native]
		t.name = names[native]
		same := t.memory != 0 && !onInstancePattern.MatchString(t.name)
		for _, d := range devices {
			same = same && all[d.Native].memory == t.memory
		}
		t.available = room(len(t.on), t.max, len(devices), same)
		out = append(out, t)
	}
	return out, nil
}

// typesLike is typesAt for one more function of a card, whose types are those that are
// known already: only how many fit is read, and of a function that has a device nothing. One
// that lists others is read wholly.
func (b *Backend) typesLike(at parent, known map[string]mdevType, busy bool) ([]mdevType, error) {
	dirs, err := b.fs.List(path.Join(at.dir, typesDir))
	switch {
	case errors.Is(err, fs.ErrNotExist) && b.present(at):
		return nil, nil
	case err != nil:
		return nil, err
	case slices.ContainsFunc(dirs, func(native string) bool { _, ok := known[native]; return !ok }):
		return b.typesAt(at)
	case busy, len(dirs) == 0:
		return nil, nil
	}
	read, err := b.readTypes(at, dirs, []string{availableFile})
	if err != nil {
		return nil, err
	}
	out := make([]mdevType, 0, len(dirs))
	for _, native := range slices.Sorted(slices.Values(dirs)) {
		t := known[native]
		t.on = nil
		t.available, t.broken = count(path.Join(at.dir, typesDir, native, availableFile), read[native][0])
		if t.available > 0 {
			t.on = []parent{at}
		}
		out = append(out, t)
	}
	return out, nil
}
