package mdev

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/internal/sysfs"
)

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// uuidOf returns the UUID that a partition goes by, in the kernel's lower case.
func uuidOf(p gpu.Partition) (string, error) {
	id := strings.ToLower(p.ID)
	if !uuidPattern.MatchString(id) {
		return "", gpu.Errorf(gpu.CodeInvalid, "its id is not a UUID of 36 characters")
	}
	if h := p.Handle.MdevUUID; h != "" && strings.ToLower(h) != id {
		return "", gpu.Errorf(gpu.CodeInvalid, "its id and its mdev uuid %q differ", h)
	}
	return id, nil
}

// A device is one mdev as the bus shows it.
type device struct {
	uuid   string
	dir    string // real path
	native string
}

// parentDir is the device's parent: the directory that really holds it. Nothing
// else says so for certain.
func (d device) parentDir() string { return path.Dir(d.dir) }

// device looks one mdev up; false if there is none, or none any more.
func (b *Backend) device(uuid string) (device, bool, error) {
	dir, err := b.real(path.Join(deviceDir, uuid))
	if errors.Is(err, fs.ErrNotExist) {
		return device{}, false, nil
	}
	if err != nil {
		return device{}, false, err
	}
	target, err := b.fs.Readlink(path.Join(dir, "mdev_type"))
	if errors.Is(err, fs.ErrNotExist) {
		still, xerr := b.fs.Exists(path.Join(deviceDir, uuid))
		if xerr == nil && !still {
			return device{}, false, nil
		}
		return device{}, false, errors.Join(fmt.Errorf("%q has no type", uuid), xerr)
	}
	if err != nil {
		return device{}, false, err
	}
	return device{uuid: uuid, dir: dir, native: path.Base(target)}, true, nil
}

// devices lists the mdevs of one parent as partitions, sorted by UUID.
func (b *Backend) devices(p parent) ([]gpu.Partition, error) {
	uuids, err := b.fs.List(deviceDir)
	if errors.Is(err, fs.ErrNotExist) {
		return []gpu.Partition{}, nil // no bus, no devices
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(uuids)
	if len(uuids) == 0 {
		return []gpu.Partition{}, nil
	}
	var names map[string]typeName // all virtual functions of a card list the same
	out := []gpu.Partition{}
	for _, uuid := range uuids {
		d, ok, err := b.device(uuid)
		if err != nil {
			return nil, err
		}
		at, here := p.place(d.parentDir())
		if !ok || !here {
			continue
		}
		if _, known := names[d.native]; !known {
			if names, err = b.names(at); err != nil {
				return nil, err
			}
		}
		part, err := b.partition(at, d, names)
		if err != nil {
			return nil, err
		}
		out = append(out, part)
	}
	return out, nil
}

// partition is a device as a client sees it; p is what it is on.
func (b *Backend) partition(p parent, d device, names map[string]typeName) (gpu.Partition, error) {
	group, err := sysfs.Base(b.fs, path.Join(d.dir, "iommu_group"))
	if err != nil {
		return gpu.Partition{}, err
	}
	name, listed := names[d.native]
	if !listed {
		name.profile = d.native // the driver does not list its type any more
	}
	out := gpu.Partition{
		ID: d.uuid, GPU: p.id, Parent: p.name(), Kind: gpu.KindMdev, Profile: name.profile, Native: d.native,
		Handle: gpu.Handle{MdevUUID: d.uuid}, DeviceAPI: name.api, IOMMUGroup: group,
	}
	if isNVIDIA(d.native) {
		b.addParams(&out, d.dir)
	}
	return out, nil
}

// leaked says so if a type can make fewer devices than its maximum although
// nothing explains it: the driver has lost count of what was removed, and only
// reloading it helps. This is claimed only where it is certain: the maximum is
// known, no device of another type is on the card, and two looks agree.
func (b *Backend) leaked(p parent, types []mdevType) ([]gpu.Condition, error) {
	first, err := b.missing(p, types)
	if first == "" || err != nil {
		return nil, err
	}
	again, err := b.types(p)
	if err != nil {
		return nil, err
	}
	second, err := b.missing(p, again)
	if second != first || err != nil {
		return nil, err
	}
	return []gpu.Condition{{Type: gpu.Degraded, Status: true, Reason: "LeakedCapacity", Message: first}}, nil
}

func (b *Backend) missing(p parent, types []mdevType) (string, error) {
	if !slices.ContainsFunc(types, func(t mdevType) bool { return t.max > 0 && t.available < t.max }) {
		return "", nil
	}
	if len(p.functions) > 0 {
		return "", nil // what is available is our own reckoning there
	}
	if len(b.writes.Stuck(p.id)) > 0 || b.writes.Taken(p.id) {
		return "", nil // a write under way explains it
	}
	devices, err := b.devices(p)
	if err != nil {
		return "", err
	}
	used := map[string]int{}
	for _, d := range devices {
		used[d.Native]++
	}
	for _, t := range types {
		if t.max == 0 || t.broken != nil || len(devices) != used[t.native] {
			continue
		}
		if n := t.max - t.available - used[t.native]; n > 0 {
			return fmt.Sprintf("%d of %d %s are neither in use nor available: the driver has lost count of them",
				n, t.max, t.name), nil
		}
	}
	return "", nil
}
