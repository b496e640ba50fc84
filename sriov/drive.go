package sriov

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"syscall"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
	"gpuvirt/internal/sysfs"
	"gpuvirt/internal/writer"
)

const (
	driversDir = "bus/pci/drivers"
	probeFile  = "bus/pci/drivers_probe"
)

// A goal is the driver that a PCI function is to have.
type goal struct {
	driver string // empty: none
	any    bool   // whichever the kernel finds, best this one
	// override is what driver_override is to say: the kernel binds that driver and no
	// other. Empty: nothing.
	override string
}

var toVFIO = goal{driver: vfioPCI, override: vfioPCI}

// former is the driver that a function is to get back, as a record of ours says. A record
// may be older than the last boot, so what it names is a preference: another driver that
// the kernel finds is better than none, and is what the rest of the host expects. But a
// virtual function that had none gets none, as the host has no use of it.
func (b *bus) former(drivers map[string]string, f function) (goal, error) {
	driver, known := drivers[f.address]
	switch {
	case !known || isVFIO(driver):
		return goal{any: true}, nil
	case driver == "":
		return goal{any: !f.virtual}, nil
	}
	ok, err := b.fs.Exists(path.Join(driversDir, driver))
	if !ok { // nor would the kernel bind anything where an override named it
		driver = ""
	}
	return goal{driver: driver, any: true}, err
}

// write writes for a GPU with a deadline of its own. What has been begun is brought to
// an end: a function without a driver is of no use to anybody.
func (b *bus) write(ctx context.Context, id gpu.ID, file, value string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.opts.WriteTimeout)
	defer cancel()
	err := b.w.Write(ctx, id, file, value)
	errno, ok := errors.AsType[syscall.Errno](err)
	if err == nil || gpu.CodeOf(err) == gpu.CodeStuck || !ok {
		return err
	}
	switch errno {
	case syscall.EBUSY:
		return gpu.Errorf(gpu.CodeGPUBusy, "the gpu is busy: %w", err)
	case syscall.EACCES, syscall.EPERM, syscall.EROFS:
		return gpu.Errorf(gpu.CodeForbidden, "the system forbids the write: %w", err).
			WithHint("the daemon runs as root, so a policy denies it: look for AppArmor or SELinux denials, for a kernel that is locked down, and whether its unit may write to sysfs")
	default:
		return gpu.Errorf(gpu.CodeUnavailable, "the driver failed: %w", err).WithHint("the kernel log may say more")
	}
}

// overrideOf reads what driver_override says, empty for nothing.
func (b *bus) overrideOf(f function) (string, error) {
	text, err := b.fs.Read(path.Join(f.dir, "driver_override"))
	if text == "(null)" {
		text = ""
	}
	return text, err
}

// setOverride changes driver_override where it says something else.
func (b *bus) setOverride(ctx context.Context, id gpu.ID, f function, to string) error {
	now, err := b.overrideOf(f)
	if err != nil || now == to {
		return err
	}
	// An empty write does not reach the kernel; an empty line takes the override back.
	err = b.write(ctx, id, path.Join(f.dir, "driver_override"), to+"\n")
	if gpu.CodeOf(err) == gpu.CodeStuck {
		return err
	}
	// What it says is what counts, whatever became of the write.
	now, rerr := b.overrideOf(f)
	switch {
	case rerr != nil:
		return rerr
	case now != to && err == nil:
		return gpu.Errorf(gpu.CodeUnavailable, "the kernel accepted driver_override %q and says %q", to, now)
	case now != to:
		return err
	}
	return nil
}

// drive gives a function the driver that it is to have, from whatever it has, and reads
// that back. It writes only what is needed, so that it can go on from any point where it
// was broken off. The GPU's turn is the caller's.
func (b *bus) drive(ctx context.Context, id gpu.ID, address string, to goal) error {
	err := b.driveTo(ctx, id, address, to)
	return wrapEach(err, "function %s", address)
}

func wrapEach(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return writer.Wrap(err, format, args...)
}

func (b *bus) driveTo(ctx context.Context, id gpu.ID, address string, to goal) error {
	f, err := b.read(address)
	if err != nil {
		return err
	}
	before, err := b.overrideOf(f)
	if err != nil {
		return err
	}
	if err := b.setOverride(ctx, id, f, to.override); err != nil {
		return err
	}
	// A driver that does its work stays where any will do.
	if f.driver != "" && f.driver != to.driver && (!to.any || f.vfio) {
		if err := b.unbind(ctx, id, f); err != nil {
			if gpu.CodeOf(err) != gpu.CodeStuck { // else the next write would hang, too
				err = errors.Join(err, b.setOverride(ctx, id, f, before))
			}
			return err
		}
		f.driver = ""
	}
	if f.driver != "" || to.driver == "" && !to.any {
		return nil
	}
	return b.bind(ctx, id, f, to)
}

// unbind takes a function from its driver. NVIDIA's waits for every program that has the
// GPU open, so it is asked for its lock first.
func (b *bus) unbind(ctx context.Context, id gpu.ID, f function) error {
	release := func() {}
	if f.nvidia() && !f.virtual {
		open, err := b.closeNVML(ctx)
		if err != nil {
			return err
		}
		defer open()
		if release, err = b.lock(ctx, f); err != nil {
			return err
		}
	}
	err := b.write(ctx, id, path.Join(driversDir, f.driver, "unbind"), f.address)
	if gpu.CodeOf(err) == gpu.CodeStuck {
		return err
	}
	// A driver that has let go of it meanwhile answers with an error.
	now, rerr := sysfs.Base(b.fs, path.Join(f.dir, "driver"))
	switch {
	case rerr != nil:
		return rerr
	case now == "":
		return nil
	}
	release()
	if err == nil {
		return gpu.Errorf(gpu.CodeUnavailable, "driver %q accepted to let go of it and has not", f.driver)
	}
	return err
}

// closeNVML ends our sessions with NVIDIA's library until open is called.
func (b *bus) closeNVML(ctx context.Context) (open func(), err error) {
	if b.opts.CloseNVML == nil {
		return func() {}, nil
	}
	limit, cancel := context.WithTimeout(ctx, b.opts.WriteTimeout)
	defer cancel()
	return b.opts.CloseNVML(limit)
}

// lock has NVIDIA's driver open a GPU for nobody any more. The driver itself ends that
// when it lets go of the GPU.
func (b *bus) lock(ctx context.Context, f function) (release func(), err error) {
	if b.opts.UnbindLock == nil {
		return func() {}, nil
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.opts.WriteTimeout)
	defer cancel()
	release, err = b.opts.UnbindLock(limit, f.address)
	return release, wrapEach(err, "cannot take it from its driver")
}

// bind gives a function without a driver to one: by its name, or by force where it does
// not know the function, as somebody may have done before us; else to the one that the
// kernel finds. Whichever has it then stays, and is an error only where no other will do.
func (b *bus) bind(ctx context.Context, id gpu.ID, f function, to goal) error {
	probe := func(override string) error {
		if err := b.setOverride(ctx, id, f, override); err != nil {
			return err
		}
		return b.write(ctx, id, probeFile, f.address)
	}
	var first error
	ways := []func() error{func() error { return probe(to.override) }}
	if to.driver != "" {
		ways = slices.Insert(ways, 0, func() error {
			return b.write(ctx, id, path.Join(driversDir, to.driver, "bind"), f.address)
		}, func() error {
			if !errors.Is(first, syscall.ENODEV) {
				return nil // it knows the function, and has failed
			}
			return probe(to.driver)
		})
	}
	now := ""
	for _, try := range ways {
		err := try()
		if gpu.CodeOf(err) == gpu.CodeStuck {
			return err
		}
		if first == nil {
			first = err
		}
		if now, err = sysfs.Base(b.fs, path.Join(f.dir, "driver")); err != nil {
			return err
		}
		if now != "" {
			break
		}
	}
	switch {
	case to.any && to.driver == "" && now == "":
		return first // where the kernel finds none there is none
	case to.any && to.driver != now && now != "":
		b.opts.Log.InfoContext(ctx, "a function gets another driver than it had", "gpu", id, "function", f.address, "driver", now, "had", to.driver, "err", first)
		return nil
	case to.driver == now:
		return nil
	case first == nil:
		first = errors.New("the kernel accepted it, and it has none")
	}
	return gpu.Errorf(gpu.CodeUnavailable, "driver %q does not take it: %w", to.driver, first).WithHint("the kernel log may say more")
}

// loaded refuses to take anything where there is nothing to give it to.
func (b *bus) loaded() error {
	ok, err := b.fs.Exists(path.Join(driversDir, vfioPCI))
	if err == nil && !ok {
		return gpu.Errorf(gpu.CodeDriverMissing, "module vfio-pci is not loaded").WithHint("load it: modprobe vfio-pci")
	}
	return err
}

// give gives functions the drivers back that they had, each whatever becomes of the
// others.
func (b *bus) give(ctx context.Context, id gpu.ID, all []function, drivers map[string]string) error {
	var errs []error
	for _, f := range all {
		to, err := b.former(drivers, f)
		if err == nil {
			err = b.drive(ctx, id, f.address, to)
		}
		// Where no record says what a function had, VFIO's having it is all that shows that it
		// is still to be given back: without, nobody would try again.
		if _, known := drivers[f.address]; err != nil && !known && gpu.CodeOf(err) != gpu.CodeStuck {
			if terr := b.drive(ctx, id, f.address, toVFIO); terr != nil {
				err = fmt.Errorf("%w; and VFIO does not take it again: %w", err, terr)
			}
		}
		if there, eerr := b.fs.Exists(path.Join(pci.Devices, f.address)); eerr == nil && !there {
			continue // it went away meanwhile
		}
		if err != nil {
			errs = append(errs, err)
		}
		if gpu.CodeOf(err) == gpu.CodeStuck {
			break
		}
	}
	return joined(errs)
}

// joined is errors.Join that keeps what the first one says of its kind.
func joined(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) < 2 {
		return errors.Join(errs...)
	}
	out := gpu.Wrap(errs[0], gpu.CodeUnavailable, "%d functions failed, of which the first", len(errs))
	out.Err = errors.Join(errs...)
	return out
}

// take gives functions to VFIO, all or none: where one fails, those that have been
// taken get back what drivers says, or what they had.
func (b *bus) take(ctx context.Context, id gpu.ID, all []function, drivers map[string]string) error {
	if err := b.loaded(); err != nil {
		return err
	}
	had := map[string]goal{}
	for _, f := range all {
		had[f.address] = goal{driver: f.driver}
		if d, known := drivers[f.address]; known && f.driver != d && (f.vfio || f.driver == "") {
			back, err := goal{driver: d}, error(nil) // it was left in the middle of being taken
			if !isVFIO(d) {
				back, err = b.former(drivers, f)
			}
			if err != nil {
				return err
			}
			had[f.address] = back
		}
		override, err := b.overrideOf(f)
		if err != nil {
			return err
		}
		if g := had[f.address]; override != vfioPCI || isVFIO(g.driver) { // else it is ours
			g.override = override
			had[f.address] = g
		}
	}
	for i, f := range all {
		if f.vfio {
			continue
		}
		err := b.drive(ctx, id, f.address, toVFIO)
		if err == nil {
			continue
		}
		for _, back := range all[:i+1] {
			if gpu.CodeOf(err) == gpu.CodeStuck && back.address == f.address {
				continue // the kernel holds it until the write comes back
			}
			if berr := b.drive(ctx, id, back.address, had[back.address]); berr != nil {
				err = fmt.Errorf("%w; and it cannot be given back: %w", err, berr)
			}
		}
		return err
	}
	return nil
}
