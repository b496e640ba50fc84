package proc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
)

// capabilities returns the device files by which programs have a MIG instance and its
// compute instances. NVIDIA's driver says which these are in /proc; one that gives no
// file for something lets everybody have it, and then this does not tell.
func (t *Table) capabilities(p gpu.Partition) ([]string, error) {
	minor, err := t.number(path.Join("driver/nvidia/gpus", string(p.GPU), "information"), "Device Minor")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no driver: nobody has anything of it
	}
	if err != nil {
		return nil, err
	}
	dir := fmt.Sprintf("driver/nvidia/capabilities/gpu%d/mig/gi%s", minor, p.Instance)
	names, err := t.list(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	of := []string{path.Join(dir, "access")}
	for _, name := range names {
		if strings.HasPrefix(name, "ci") {
			of = append(of, path.Join(dir, name, "access"))
		}
	}
	var files []string
	for _, name := range of {
		n, err := t.number(name, "DeviceFileMinor")
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed while we looked
		}
		if err != nil {
			return nil, err
		}
		files = append(files, "/dev/nvidia-caps/nvidia-cap"+strconv.Itoa(n))
	}
	return files, nil
}

// GPUHolders returns the processes that have a PCI GPU itself open, by pid: by the file
// of NVIDIA's driver, by those of the kernel's graphics (DRM), or by VFIO. Programs that
// only watch it are among them (T32). It fails where Holders does.
func (t *Table) GPUHolders(ctx context.Context, id gpu.ID) ([]gpu.Holder, error) {
	files, err := t.gpuFiles(id)
	if err != nil {
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot tell who holds gpu %q: %w", id, err)
	}
	out, err := t.scan(ctx, files)
	if err != nil {
		return nil, blind(err, "cannot tell who holds gpu %q", id)
	}
	return out, nil
}

func (t *Table) gpuFiles(id gpu.ID) ([]string, error) {
	var out []string
	minor, err := t.number(path.Join("driver/nvidia/gpus", string(id), "information"), "Device Minor")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		out = append(out, "/dev/nvidia"+strconv.Itoa(minor))
	}
	device := path.Join("bus/pci/devices", string(id))
	group := ""
	link, err := t.fs.Readlink(path.Join(device, "iommu_group"))
	if err == nil {
		group = path.Base(link)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	vfio, err := t.vfioFiles(device, group)
	if err != nil {
		return nil, err
	}
	drm, err := t.named(path.Join(device, "drm"), "/dev/dri/")
	return slices.Concat(out, vfio, drm), err
}

// number reads "<key>: <number>" from a file with a line for each key.
func (t *Table) number(name, key string) (int, error) {
	text, err := t.read(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(line, ":")
		if strings.TrimSpace(k) == key {
			return strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return 0, fmt.Errorf("%q has no line %q", name, key)
}
