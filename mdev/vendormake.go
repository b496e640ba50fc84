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

// Place chooses the first virtual function on which the driver makes a profile now.
func (v *Vendor) Place(ctx context.Context, id gpu.ID, profile string, taken []gpu.Handle) (gpu.Partition, error) {
	return v.placed(ctx, id, profile, taken, vf.takes)
}

// PlaceAhead chooses the first virtual function that is free. The driver lists a type on
// GPU instances only while there is room on one.
func (v *Vendor) PlaceAhead(ctx context.Context, id gpu.ID, profile string, taken []gpu.Handle) (gpu.Partition, error) {
	return v.placed(ctx, id, profile, taken, func(f vf, _ uint32) bool { return f.free() })
}

func (v *Vendor) placed(ctx context.Context, id gpu.ID, profile string, taken []gpu.Handle, on func(vf, uint32) bool) (gpu.Partition, error) {
	p, err := v.place(ctx, id, profile, taken, on)
	if err != nil {
		return gpu.Partition{}, writer.Wrap(err, "cannot place a %s on gpu %q", profile, id)
	}
	return p, nil
}

func (v *Vendor) place(ctx context.Context, id gpu.ID, profile string, taken []gpu.Handle, on func(vf, uint32) bool) (gpu.Partition, error) {
	c, err := v.card(id)
	if err != nil {
		return gpu.Partition{}, err
	}
	typ, err := v.typeOf(ctx, c, gpu.Partition{Profile: profile})
	if err != nil {
		return gpu.Partition{}, err
	}
	if why := v.notCreatable(c); why != "" {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeProfileNotCreatable, "%s", why)
	}
	inDefinitions := 0
	for _, f := range c.functions {
		if !on(f, typ) {
			continue
		}
		if slices.ContainsFunc(taken, func(h gpu.Handle) bool { return sameAddress(h.PCIAddress, f.address()) }) {
			inDefinitions++
			continue
		}
		p := place(id, f)
		p.Profile, p.Native = profile, nativeID(typ)
		return p, nil
	}
	if inDefinitions > 0 {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeNoCapacity,
			"0 of %s available on %s: definitions of VMs name every free virtual function on which it fits (%d)", profile, id, inDefinitions)
	}
	return gpu.Partition{}, v.full(ctx, c, typ, profile)
}

// sameAddress reports whether two texts name one PCI function.
func sameAddress(a, b string) bool {
	x, err1 := gpu.ParseAddress(a)
	y, err2 := gpu.ParseAddress(b)
	return a == b || err1 == nil && err2 == nil && x == y
}

// typeOf finds the type that a wish names: by the profile's name, because its id changes
// with the driver; by the id if that is all the wish has.
func (v *Vendor) typeOf(ctx context.Context, c *card, want gpu.Partition) (uint32, error) {
	find := func() (uint32, bool) {
		if want.Profile != "" {
			return c.find(want.Profile)
		}
		for typ := range c.names() {
			if nativeID(typ) == want.Native {
				return typ, true
			}
		}
		return 0, false
	}
	typ, ok := find()
	var cause error
	if !ok {
		cause = v.catalogue(ctx, c)
		typ, ok = find()
	}
	if ok {
		return typ, nil
	}
	name := want.Profile
	if name == "" {
		name = want.Native
	}
	var have []string
	for _, n := range c.names() {
		have = append(have, n)
	}
	slices.Sort(have)
	err := gpu.Errorf(gpu.CodeProfileUnknown, "it has no profile %q", name)
	switch {
	case cause != nil:
		return 0, err.WithHint("the driver lists %s now; which others it has is not known: %s", orNone(have), cause)
	case c.static == nil:
		return 0, err.WithHint("the driver lists %s; it lists what fits now, and there may be others", orNone(have))
	default:
		return 0, err.WithHint("it has %s", orNone(have))
	}
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// full says that a type does not fit on a card, and why.
func (v *Vendor) full(ctx context.Context, c *card, typ uint32, profile string) error {
	_ = v.catalogue(ctx, c) // without sizes the answer is shorter
	var size uint64
	if !c.onInstance(typ, profile) {
		size = c.static[typ].FramebufferBytes
	}
	there, _ := v.partitions(ctx, c) // likewise
	sizes := map[string]uint64{}
	for n, t := range c.static {
		sizes[nativeID(n)] = t.FramebufferBytes
	}
	err := noRoom(string(c.id), profile, size, there, func(native string) uint64 { return sizes[native] })
	switch {
	case len(there) == len(c.functions):
		err.Hint = "each of its virtual functions has a vGPU"
	case c.onInstance(typ, profile):
		err.Hint = "it takes a free GPU instance of the profile that it lives on; where there is one, some drivers list its types only when nvidia-vgpud.service was restarted"
	}
	return err
}

// Make gives a virtual function the vGPU that is wanted, and returns it as read back.
// One that is there already with the same profile is returned; with another, it is a
// conflict. When the driver does not answer in time, the error is CodeStuck and the
// vGPU may yet appear: in its place a later Make finds it, and a later Remove removes it.
func (v *Vendor) Make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	made, err := v.make(ctx, want)
	if err != nil {
		return gpu.Partition{}, writer.Wrap(err, "cannot make partition %q on gpu %q", want.ID, want.GPU)
	}
	return made, nil
}

func (v *Vendor) make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	index, err := placeOf(want)
	if err != nil {
		return gpu.Partition{}, err
	}
	if want.Kind != "" && want.Kind != gpu.KindVGPU {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeInvalid, "%q is no vGPU on a virtual function", want.Kind)
	}
	give, err := v.writes.Take(ctx, want.GPU)
	if err != nil {
		return gpu.Partition{}, err
	}
	defer give()

	c, err := v.card(want.GPU)
	if err != nil {
		return gpu.Partition{}, err
	}
	f, ok := c.function(index)
	if !ok {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeNotFound, "it has no virtual function %d that takes a vGPU", index)
	}
	if err := elsewhere(f, want); err != nil {
		return gpu.Partition{}, err
	}
	if have, ok, err := v.same(ctx, c, f, want); ok || err != nil {
		if err == nil {
			have.Params, err = v.tune(ctx, c.id, f.dir, want.Params, v.opts.WriteTimeout)
		}
		return have, err
	}
	typ, err := v.typeOf(ctx, c, want)
	if err != nil {
		return gpu.Partition{}, err
	}
	if why := v.notCreatable(c); why != "" {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeProfileNotCreatable, "%s", why)
	}
	if !f.vfio {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeProfileNotCreatable, "virtual function %d cannot be given to a VM: it has no %s", index, vfioDir)
	}
	if f.unlisted != nil {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeUnavailable, "the driver does not say what fits: %w", f.unlisted)
	}
	if !f.takes(typ) {
		return gpu.Partition{}, v.full(ctx, c, typ, c.names()[typ])
	}
	if err := v.set(ctx, c, f, typ, want); err != nil {
		return gpu.Partition{}, err
	}
	made, err := v.readBack(ctx, f, typ, want)
	if err != nil {
		return gpu.Partition{}, err
	}
	if made.Params, err = v.tune(ctx, c.id, f.dir, want.Params, v.opts.WriteTimeout); err != nil {
		return gpu.Partition{}, v.takeBack(ctx, c.id, f, err)
	}
	return made, nil
}

// takeBack takes a vGPU away again that was just made and is not as wanted because of err:
// a failed Make leaves nothing behind.
func (v *Vendor) takeBack(ctx context.Context, id gpu.ID, f vf, err error) error {
	if gpu.CodeOf(err) == gpu.CodeStuck {
		return err // another write would only hang as well
	}
	if werr := v.write0(context.WithoutCancel(ctx), id, f); werr != nil {
		return fmt.Errorf("%w; and it cannot be removed again: %w", err, werr)
	}
	return err
}

// elsewhere refuses a function that is not the one that was chosen: the functions of a
// GPU have other addresses if its firmware or its slot has changed.
func elsewhere(f vf, want gpu.Partition) error {
	for _, address := range []string{want.Parent, want.Handle.PCIAddress} {
		if address != "" && !sameAddress(address, f.address()) {
			return gpu.Errorf(gpu.CodeConflict, "virtual function %d of this gpu is %s, not %s", f.index, f.address(), address)
		}
	}
	return nil
}

// same looks at what a function has: true if it is what is wanted, a conflict if it is
// anything else.
func (v *Vendor) same(ctx context.Context, c *card, f vf, want gpu.Partition) (gpu.Partition, bool, error) {
	if f.current == 0 {
		return gpu.Partition{}, false, nil
	}
	have, err := v.partition(ctx, c, f)
	if err != nil {
		return gpu.Partition{}, false, err
	}
	if !v.means(c, have, want) {
		return gpu.Partition{}, false, differs("profile", have.Profile, want.Profile)
	}
	return have, true, nil
}

// means reports whether a vGPU that is there is the one that is meant. A type that was
// renumbered by a driver is still the same if its name is; of one without a name only
// the number is left.
func (v *Vendor) means(c *card, have, want gpu.Partition) bool {
	if want.Profile == "" {
		return have.Native == want.Native
	}
	if have.Profile == want.Profile {
		return true
	}
	_, known := c.find(have.Profile)
	return !known && have.Native == want.Native
}

// set writes a function's type. What became of a write that fails is read, not guessed
// from the error: drivers answer one and the same thing with different numbers.
func (v *Vendor) set(ctx context.Context, c *card, f vf, typ uint32, want gpu.Partition) error {
	ctx, cancel := context.WithTimeout(ctx, v.opts.WriteTimeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := v.writes.Write(ctx, c.id, path.Join(f.dir, currentFile), nativeID(typ))
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
		again, rerr := v.refused(ctx, f, typ, want, err)
		if rerr != nil {
			return rerr
		}
		if !again {
			return nil
		}
		if errno != syscall.EAGAIN && errno != syscall.EINTR {
			return refusal(errno, err)
		}
		if perr := writer.Pause(ctx, tick); perr != nil {
			return gpu.Errorf(gpu.CodeUnavailable, "the driver is not ready and time is up: %w", err)
		}
	}
}

// refused explains a write that has failed by what is there now. It is false if the
// vGPU is there all the same, and true if nothing stands against it that can be seen.
func (v *Vendor) refused(ctx context.Context, f vf, typ uint32, want gpu.Partition, cause error) (again bool, err error) {
	c, err := v.card(want.GPU)
	if err != nil {
		return false, errors.Join(err, cause)
	}
	f, ok := c.function(f.index)
	if !ok {
		return false, gpu.Errorf(gpu.CodeNotFound, "its virtual function %d has gone: %w", f.index, cause)
	}
	if _, ok, err := v.same(ctx, c, f, want); ok || err != nil {
		return false, err
	}
	if f.unlisted == nil && !f.takes(typ) {
		full := v.full(ctx, c, typ, c.names()[typ])
		return false, gpu.Wrap(full, gpu.CodeNoCapacity, "the driver refuses it (%s)", cause)
	}
	return true, nil
}

// refusal is the error of a write that fails though the driver lists the type.
func refusal(errno syscall.Errno, err error) error {
	switch errno {
	case syscall.EACCES, syscall.EPERM, syscall.EROFS:
		return driverError(errno, err)
	default:
		return gpu.Errorf(gpu.CodeUnavailable, "the driver refuses it, though it lists the type for this virtual function: %w", err).
			WithHint("the kernel log may say why; a type may need a licence, a mode or a driver of another version")
	}
}

// readBack looks at what was made. Nothing else is made in its place: a function that
// has a type refuses another, so a type that is not ours is somebody's who was quicker.
func (v *Vendor) readBack(ctx context.Context, f vf, typ uint32, want gpu.Partition) (gpu.Partition, error) {
	c, err := v.card(want.GPU)
	if err == nil {
		now, ok := c.function(f.index)
		switch {
		case !ok:
			err = gpu.Errorf(gpu.CodeNotFound, "its virtual function %d has gone", f.index)
		case now.current == 0:
			return gpu.Partition{}, gpu.Errorf(gpu.CodeUnavailable, "the driver accepted it, but the virtual function has no vGPU").
				WithHint("the kernel log may say more")
		case now.current != typ:
			return gpu.Partition{}, differs("profile", v.nameOf(ctx, c, now.current), want.Profile)
		default:
			var made gpu.Partition
			if made, err = v.partition(ctx, c, now); err == nil {
				return made, nil
			}
		}
	}
	if errors.Is(err, fs.ErrNotExist) || gpu.CodeOf(err) == gpu.CodeNotFound {
		return gpu.Partition{}, err
	}
	return gpu.Partition{}, v.takeBack(ctx, want.GPU, f, err)
}
