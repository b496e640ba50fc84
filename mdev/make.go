package mdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/writer"
)

// Make makes a device with the UUID that is the partition's ID, and returns it as
// read back. One that is there already with the same parent and profile is
// returned; with another, it is a conflict. When the driver does not answer in
// time, the error is CodeStuck and the device may yet appear: it carries our UUID,
// so that a later Make finds it and a later Remove removes it.
func (b *Backend) Make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	made, err := b.make(ctx, want)
	if err != nil {
		return gpu.Partition{}, writer.Wrap(err, "cannot make partition %q on gpu %q", want.ID, want.GPU)
	}
	return made, nil
}

func (b *Backend) make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	uuid, err := uuidOf(want)
	if err != nil {
		return gpu.Partition{}, err
	}
	if want.Kind != "" && want.Kind != gpu.KindMdev {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeInvalid, "%q is no kind of mdev", want.Kind)
	}
	give, err := b.writes.Take(ctx, want.GPU)
	if err != nil {
		return gpu.Partition{}, err
	}
	defer give()

	p, err := b.parent(want.GPU)
	if err != nil {
		return gpu.Partition{}, err
	}
	if want.Parent != "" && want.Parent != p.name() && !slices.ContainsFunc(p.functions, func(f parent) bool { return f.name() == want.Parent }) {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeInvalid, "%q is no device of this gpu that mdevs are made on", want.Parent)
	}
	if have, ok, err := b.same(p, uuid, want); ok || err != nil {
		return b.found(ctx, have, want, err)
	}
	for tried := 1; ; tried++ {
		t, at, err := b.choose(p, want)
		if err != nil {
			return gpu.Partition{}, err
		}
		err = b.create(ctx, p, at, t, uuid)
		switch {
		case err == nil:
			return b.readBack(ctx, at, t, uuid, want.Params)
		case gpu.CodeOf(err) == gpu.CodeNoCapacity && want.Parent != at.name() && tried < len(p.functions):
			// Somebody has taken this virtual function. Another may be free.
		case !errors.Is(err, syscall.EEXIST):
			return gpu.Partition{}, err
		default:
			// Somebody was quicker. Whether that was this very partition, the bus says.
			have, ok, serr := b.same(p, uuid, want)
			if serr == nil && !ok {
				serr = err
			}
			return b.found(ctx, have, want, serr)
		}
	}
}

// choose finds the type that a wish means, and where a device of it is to be made: on
// the GPU itself, or on the first virtual function that takes one, if the wish names none.
func (b *Backend) choose(p parent, want gpu.Partition) (t mdevType, at parent, err error) {
	t, ok, err := b.known(p, want)
	if err == nil && !ok {
		t, err = b.wanted(p, want)
	}
	if err != nil {
		return mdevType{}, parent{}, err
	}
	for _, at := range t.on {
		if want.Parent == "" || want.Parent == p.name() || want.Parent == at.name() {
			return t, at, nil
		}
	}
	i := slices.IndexFunc(p.functions, func(f parent) bool { return f.name() == want.Parent })
	return mdevType{}, parent{}, b.full(p.functions[i], t, nil)
}

// known reads the type that a wish names by profile and directory, and no other: a
// GPU may have dozens. It is false where that type is not what the wish means, or
// cannot take another device: then all of them are needed, to find it or to explain. So
// they are to choose a virtual function.
func (b *Backend) known(p parent, want gpu.Partition) (mdevType, bool, error) {
	if len(p.functions) > 0 || want.Profile == "" || want.Native == "" || path.Base(want.Native) != want.Native || strings.Trim(want.Native, ".") == "" {
		return mdevType{}, false, nil
	}
	files, err := b.readTypes(p, []string{want.Native}, typeFiles)
	if err != nil {
		return mdevType{}, false, b.gone(p, err)
	}
	names, err := naming(files)
	if err != nil {
		return mdevType{}, false, nil //nolint:nilerr // reading all tells, too, whether the GPU is still there
	}
	t, err := typeOf(p, want.Native, names[want.Native], files[want.Native])
	t.on = []parent{p}
	return t, err == nil && t.broken == nil && t.name == want.Profile && t.available > 0, nil //nolint:nilerr // the same
}

// wanted finds the type that a wish means among all, or says why it cannot be had.
func (b *Backend) wanted(p parent, want gpu.Partition) (mdevType, error) {
	types, err := b.types(p)
	if err != nil {
		return mdevType{}, b.gone(p, err)
	}
	t, err := typeFor(types, want)
	switch {
	case err != nil:
		return mdevType{}, err
	case t.broken != nil:
		return mdevType{}, t.broken
	case t.available == 0:
		return mdevType{}, b.full(p, t, types)
	}
	return t, nil
}

// same looks for a device with our UUID: true if it is what is wanted, a conflict
// if it is anything else.
func (b *Backend) same(p parent, uuid string, want gpu.Partition) (gpu.Partition, bool, error) {
	d, ok, err := b.device(uuid)
	if err != nil || !ok {
		return gpu.Partition{}, false, err
	}
	at, here := p.place(d.parentDir())
	if !here {
		return gpu.Partition{}, false, differs("gpu", path.Base(d.parentDir()), string(want.GPU))
	}
	if want.Parent != "" && want.Parent != p.name() && want.Parent != at.name() {
		return gpu.Partition{}, false, differs("parent", at.name(), want.Parent)
	}
	names, err := b.names(at)
	if err != nil {
		return gpu.Partition{}, false, err
	}
	have, err := b.partition(at, d, names)
	if err != nil {
		return gpu.Partition{}, false, err
	}
	if have.Profile != want.Profile && (want.Profile != "" || have.Native != want.Native) {
		return gpu.Partition{}, false, differs("profile", have.Profile, want.Profile)
	}
	return have, true, nil
}

// found gives a device that was there already the parameters that are wanted.
func (b *Backend) found(ctx context.Context, have, want gpu.Partition, err error) (gpu.Partition, error) {
	if err == nil {
		have.Params, err = b.tune(ctx, want.GPU, path.Join(deviceDir, have.ID), want.Params, b.opts.WriteTimeout)
	}
	return have, err
}

func differs(field, have, want string) error {
	err := gpu.Errorf(gpu.CodeConflict, "it exists with %s %q, not %q", field, have, want)
	err.Diff = map[string][2]string{field: {have, want}}
	return err
}

// create writes the UUID where a device is to be made, and turns the driver's answer into a kind of error.
// EAGAIN and EINTR are tried again until the time is up.
func (b *Backend) create(ctx context.Context, p, at parent, t mdevType, uuid string) error {
	ctx, cancel := context.WithTimeout(ctx, b.opts.WriteTimeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	typeDir := path.Join(at.dir, typesDir, t.native)
	for {
		err := b.writes.Write(ctx, p.id, path.Join(typeDir, "create"), uuid)
		if err == nil {
			return nil
		}
		if gpu.CodeOf(err) == gpu.CodeStuck {
			return err
		}
		errno, ok := errors.AsType[syscall.Errno](err)
		if !ok {
			return unwritten(ctx, err)
		}
		switch errno {
		case syscall.EAGAIN, syscall.EINTR:
			if perr := writer.Pause(ctx, tick); perr != nil {
				return gpu.Errorf(gpu.CodeUnavailable, "the driver is not ready and time is up: %w", err)
			}
		case syscall.EEXIST:
			return gpu.Errorf(gpu.CodeConflict, "its uuid is taken on this host: %w", err)
		case syscall.ENOSPC, syscall.EUSERS:
			return b.full(p, t, nil)
		case syscall.EIO:
			return b.refused(p, at, t, err)
		case syscall.ENOENT:
			return b.vanished(at, typeDir, err)
		default:
			return driverError(errno, err)
		}
	}
}

// driverError turns an answer that means the same for every write into its kind.
func driverError(errno syscall.Errno, err error) error {
	switch errno {
	case syscall.EINVAL:
		return gpu.Errorf(gpu.CodeInvalid, "the driver refuses this type or uuid: %w", err).
			WithHint("the kernel log says why, if anything does; a type may need a licence, a mode or a driver of another version")
	case syscall.EBUSY:
		return gpu.Errorf(gpu.CodeGPUBusy, "the gpu is busy: %w", err)
	case syscall.ENODEV:
		return gpu.Errorf(gpu.CodeUnavailable, "the gpu is leaving the mdev bus: %w", err)
	case syscall.EACCES, syscall.EPERM, syscall.EROFS:
		return gpu.Errorf(gpu.CodeForbidden, "the system forbids the write: %w", err).
			WithHint("the daemon runs as root, so a policy denies it: look for AppArmor or SELinux denials, and whether its unit may write to sysfs")
	default:
		return gpu.Errorf(gpu.CodeUnavailable, "the driver failed: %w", err).WithHint("the kernel log may say more")
	}
}

// full says that a type does not fit, and why. Types is what was read just now, or
// nil: then they are read.
func (b *Backend) full(p parent, t mdevType, types []mdevType) error {
	devices, derr := b.devices(p)
	if derr != nil {
		return noRoom(p.name(), t.name, 0, nil, nil) // the first cause is worth more than this one
	}
	if types == nil {
		types, _ = b.types(p) // likewise
	}
	sizes := map[string]uint64{}
	for _, other := range types {
		sizes[other.native] = other.memory
	}
	size := t.memory
	if !t.nvidia() {
		size = 0
	}
	return noRoom(p.name(), t.name, size, devices, func(native string) uint64 { return sizes[native] })
}

// noRoom is the error of a type that does not fit, with what is there in its way. A
// size other than 0 is of a type that goes with no other size; sizeOf tells those of
// what is there, 0 where it is not known.
func noRoom(on, profile string, size uint64, there []gpu.Partition, sizeOf func(native string) uint64) *gpu.Error {
	err := gpu.Errorf(gpu.CodeNoCapacity, "0 of %s available on %s", profile, on)
	others := map[string]bool{}
	for _, p := range there {
		err.Blockers = append(err.Blockers, gpu.Blocker{Kind: "partition", ID: p.ID, Name: p.Profile})
		if n := sizeOf(p.Native); n != 0 && size != 0 && n != size {
			others[p.Profile] = true
		}
	}
	if len(others) == 0 {
		return err
	}
	return gpu.Errorf(gpu.CodeNoCapacity, "%s: another vGPU size is active on this card (%s), and it takes one size at a time",
		err.Detail, sortedKeys(others)).WithBlockers(err.Blockers...)
}

// refused explains EIO, which is what NVIDIA's driver says to a size that does not
// go with what is on the card. If it would fit by now, it was something else.
func (b *Backend) refused(p, at parent, t mdevType, err error) error {
	if n, rerr := b.available(at, t.native); t.nvidia() && rerr == nil && n == 0 {
		return b.full(p, t, nil)
	}
	return driverError(syscall.EIO, err)
}

// vanished explains ENOENT: what is missing, the GPU or the type?
func (b *Backend) vanished(p parent, typeDir string, err error) error {
	if !b.present(p) {
		return gpu.Errorf(gpu.CodeNotFound, "it has gone from the mdev bus: %w", err)
	}
	if ok, eerr := b.fs.Exists(typeDir); eerr == nil && !ok {
		return gpu.Errorf(gpu.CodeProfileUnknown, "its driver no longer offers %q: %w", path.Base(typeDir), err)
	}
	return driverError(syscall.ENOENT, err)
}

// readBack looks at what was made, and gives it its parameters. Anything but the device that was asked for is
// removed again: the driver said yes to our UUID, so it is ours to remove.
func (b *Backend) readBack(ctx context.Context, p parent, t mdevType, uuid, params string) (gpu.Partition, error) {
	d, ok, err := b.device(uuid)
	if err == nil && !ok {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeUnavailable, "the driver accepted it, but there is no such device").
			WithHint("the kernel log may say more")
	}
	var made gpu.Partition
	if err == nil && (d.parentDir() != p.dir || d.native != t.native) {
		err = gpu.Errorf(gpu.CodeUnavailable, "the driver made a %s on %s instead", d.native, path.Base(d.parentDir()))
	}
	if err == nil {
		made, err = b.partition(p, d, map[string]typeName{t.native: {profile: t.name, api: t.api}})
	}
	if err == nil {
		made.Params, err = b.tune(ctx, p.id, path.Join(deviceDir, uuid), params, b.opts.WriteTimeout)
	}
	if err == nil || gpu.CodeOf(err) == gpu.CodeStuck { // another write would only hang as well
		return made, err
	}
	if rerr := b.destroy(context.WithoutCancel(ctx), p.id, uuid); rerr != nil {
		err = fmt.Errorf("%w; and it cannot be removed again: %w", err, rerr)
	}
	return gpu.Partition{}, err
}

func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}
