package mdev

import (
	"cmp"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
	"gpuvirt/internal/sysfs"
)

// A parent is a device that devices can be made on, or a GPU that has such devices:
// NVIDIA's cards with SR-IOV carry their types on virtual functions, one device on each.
type parent struct {
	id        gpu.ID // of the GPU, for a virtual function too
	dir       string // real path
	pci       bool
	functions []parent // the virtual functions that carry the types, by index; none: it does itself
}

// name is the parent's name in sysfs.
func (p parent) name() string { return path.Base(p.dir) }

// places are the devices that carry the types of a GPU.
func (p parent) places() []parent {
	if len(p.functions) > 0 {
		return p.functions
	}
	return []parent{p}
}

// place finds the device of a GPU that holds a directory.
func (p parent) place(dir string) (parent, bool) {
	all := p.places()
	i := slices.IndexFunc(all, func(at parent) bool { return at.dir == dir })
	if i < 0 {
		return parent{}, false
	}
	return all[i], true
}

// ids lists the GPUs on the bus, sorted. One that cannot be looked at is listed.
func (b *Backend) ids() ([]gpu.ID, error) {
	names, err := b.fs.List(busDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no driver has registered yet: the usual state of a host
	}
	if err != nil {
		return nil, err
	}
	var out []gpu.ID
	for _, name := range names {
		_, owner, err := b.look(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			owner = gpu.ID(name)
		}
		if owner != "" { // else it went away while we looked
			out = append(out, owner)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// look reads one entry of the bus, and tells which GPU it is of. A virtual function is
// not a GPU, whatever it carries: it belongs to the physical function that its physfn
// link names.
func (b *Backend) look(name string) (p parent, owner gpu.ID, err error) {
	dir, err := b.real(path.Join(busDir, name))
	if err != nil {
		return parent{}, "", err
	}
	p = parent{id: gpu.ID(name), dir: dir}
	bus, err := sysfs.Base(b.fs, path.Join(dir, "subsystem"))
	if err != nil {
		return parent{}, "", err
	}
	if bus != "pci" {
		return p, p.id, nil
	}
	p.pci = true
	physical, err := sysfs.Base(b.fs, path.Join(dir, "physfn"))
	if err != nil {
		return parent{}, "", err
	}
	p.id = cmp.Or(gpu.ID(physical), p.id)
	return p, p.id, nil
}

// parent finds a GPU by its ID: its name on the bus, or, where its virtual functions
// are there and it is not, its address.
func (b *Backend) parent(id gpu.ID) (parent, error) {
	none := gpu.Errorf(gpu.CodeNotFound, "there is no such gpu on the mdev bus")
	if id == "" || id == "." || id == ".." || strings.ContainsRune(string(id), '/') {
		return parent{}, none
	}
	p, owner, err := b.look(string(id))
	if errors.Is(err, fs.ErrNotExist) {
		p, err = b.physical(id)
		owner = p.id
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && owner != id {
		return parent{}, none
	}
	return p, err
}

// physical finds a GPU by its virtual functions on the bus; one that has none there is
// not found.
func (b *Backend) physical(id gpu.ID) (parent, error) {
	dir, err := b.real(path.Join(pci.Devices, string(id)))
	if err != nil {
		return parent{}, err
	}
	all, err := b.kernel.functions(dir)
	if err != nil {
		return parent{}, err
	}
	p := parent{id: id, dir: dir, pci: true}
	for _, f := range all {
		if ok, err := b.fs.Exists(path.Join(busDir, f.address())); err != nil {
			return parent{}, err
		} else if ok {
			p.functions = append(p.functions, parent{id: id, dir: f.dir, pci: true})
		}
	}
	if len(p.functions) == 0 {
		return parent{}, fs.ErrNotExist
	}
	return p, nil
}

// present reports whether a parent is still there, of a GPU with virtual functions one
// of them. What cannot be told counts as present: only a certain absence turns an error
// into "gone".
func (b *Backend) present(p parent) bool {
	return slices.ContainsFunc(p.places(), func(at parent) bool {
		ok, err := b.fs.Exists(path.Join(busDir, at.name()))
		return ok || err != nil
	})
}

// gone turns "no such file" into CodeNotFound where the parent itself has gone.
func (b *Backend) gone(p parent, err error) error {
	if errors.Is(err, fs.ErrNotExist) && !b.present(p) {
		return gpu.Errorf(gpu.CodeNotFound, "it has gone from the mdev bus")
	}
	return err
}

// describe fills in what sysfs says of a GPU.
func (b *Backend) describe(p parent, g *gpu.GPU, types []mdevType) (err error) {
	if len(types) == 0 {
		g.Conditions = append(g.Conditions, gpu.Condition{
			Type: gpu.Degraded, Status: true, Reason: "NoTypes",
			Message: "the driver has registered the gpu but offers no types yet",
		})
	}
	if p.pci {
		err = pci.Describe(b.fs, p.dir, g)
		g.Model = cmp.Or(modelOf(types), g.Model)
	} else {
		g.Model = p.name()
		if len(types) > 0 {
			g.Vendor, _, _ = strings.Cut(types[0].native, "-")
		}
		g.Driver.Name = g.Vendor
		g.Identity.Model = g.Model
		g.IOMMUGroup, err = sysfs.Base(b.fs, path.Join(p.dir, "iommu_group"))
	}
	if err != nil {
		return err
	}
	leak, err := b.leaked(p, types)
	g.Conditions = append(g.Conditions, leak...)
	return err
}

// file reads one file.
func (b *Backend) file(name string) sysfs.File {
	text, err := b.fs.Read(name)
	return sysfs.File{Text: text, Err: err}
}
