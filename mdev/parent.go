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

// A parent is a device that devices can be made on.
type parent struct {
	id  gpu.ID
	dir string // real path
	pci bool
}

// name is the parent's name in sysfs.
func (p parent) name() string { return path.Base(p.dir) }

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
		_, isGPU, err := b.look(name)
		if isGPU || err != nil && !errors.Is(err, fs.ErrNotExist) { // else it went away while we looked
			out = append(out, gpu.ID(name))
		}
	}
	slices.Sort(out)
	return out, nil
}

// look reads one entry of the bus. A virtual function is not a GPU, whatever it
// carries: it belongs to the physical function that its physfn link names.
func (b *Backend) look(name string) (p parent, isGPU bool, err error) {
	dir, err := b.real(path.Join(busDir, name))
	if err != nil {
		return parent{}, false, err
	}
	p = parent{id: gpu.ID(name), dir: dir}
	bus, err := sysfs.Base(b.fs, path.Join(dir, "subsystem"))
	if err != nil || bus != "pci" {
		return p, err == nil, err
	}
	if vf, err := b.fs.Exists(path.Join(dir, "physfn")); vf || err != nil {
		return parent{}, false, err
	}
	p.pci = true
	return p, true, nil
}

// real returns the directory of a device that an entry of a bus or class stands
// for. The kernel links those straight to it: there are no links further down.
func (b *Backend) real(entry string) (string, error) {
	target, err := b.fs.Readlink(entry)
	if err != nil {
		return "", err
	}
	return path.Join(path.Dir(entry), target), nil
}

// parent finds a GPU by its ID, which is its name on the bus.
func (b *Backend) parent(id gpu.ID) (parent, error) {
	none := gpu.Errorf(gpu.CodeNotFound, "there is no such gpu on the mdev bus")
	if id == "" || id == "." || id == ".." || strings.ContainsRune(string(id), '/') {
		return parent{}, none
	}
	p, isGPU, err := b.look(string(id))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !isGPU {
		return parent{}, none
	}
	return p, err
}

// present reports whether a parent is still there. What cannot be told counts as
// present: only a certain absence turns an error into "gone".
func (b *Backend) present(p parent) bool {
	ok, err := b.fs.Exists(path.Join(busDir, p.name()))
	return ok || err != nil
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
