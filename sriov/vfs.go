package sriov

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"syscall"

	"gpuvirt/gpu"
	"gpuvirt/internal/writer"
)

// SetVFs gives a GPU n virtual functions and returns when they are there. A GPU that has
// as many is left alone. Those that are there go first, so a GPU of which VFIO has one is
// refused with CodeGPUBusy. On NVIDIA's cards it is all or none, and what MIG has cut of
// the card is gone afterwards.
func (b *Functions) SetVFs(ctx context.Context, id gpu.ID, n int) error {
	if err := b.setVFs(ctx, id, n); err != nil {
		return writer.Wrap(b.gone(id, err), "cannot give gpu %q %d virtual functions", id, n)
	}
	return nil
}

// CheckVFs refuses what SetVFs would refuse before it touches anything.
func (b *Functions) CheckVFs(_ context.Context, id gpu.ID, n int) error {
	err := b.w.Refuse(id)
	if err == nil {
		_, err = b.vfsChange(id, n)
	}
	if err != nil {
		return writer.Wrap(b.gone(id, err), "cannot give gpu %q %d virtual functions", id, n)
	}
	return nil
}

func (b *Functions) setVFs(ctx context.Context, id gpu.ID, n int) error {
	give, err := b.w.Take(ctx, id)
	if err != nil {
		return err
	}
	defer give()
	c, err := b.vfsChange(id, n)
	switch {
	case err != nil:
		return err
	case n == c.now:
		return b.awaitVFs(ctx, c.pf, n)
	case c.pf.nvidia():
		return b.manage(ctx, c.pf, n)
	}
	return b.setPlain(ctx, c.pf, c.now, n)
}

// A vfsChange is what there is before the number of virtual functions changes.
type vfsChange struct {
	pf  function
	now int
}

// vfsChange reads that, and refuses what cannot be done.
func (b *Functions) vfsChange(id gpu.ID, n int) (vfsChange, error) {
	pf, err := b.find(id)
	if err != nil {
		return vfsChange{}, err
	}
	total, now, err := b.counts(pf)
	c := vfsChange{pf, now}
	switch {
	case err != nil:
		return c, err
	case total == 0:
		return c, gpu.Errorf(gpu.CodeInvalid, "it has no SR-IOV")
	case n < 0 || n > total:
		return c, gpu.Errorf(gpu.CodeInvalid, "it can have 0 to %d", total)
	case n == now:
		return c, nil
	case pf.vfio:
		return c, gpu.Errorf(gpu.CodeGPUBusy, "the gpu itself is taken for VMs, whole, by driver %q", pf.driver)
	case pf.driver == "":
		return c, gpu.Errorf(gpu.CodeUnavailable, "no driver is bound to it").
			WithHint("its driver turns virtual functions on: load it, or see in the kernel log why it has not taken the gpu")
	case pf.nvidia() && n != 0 && n != total:
		return c, gpu.Errorf(gpu.CodeInvalid, "NVIDIA's tool turns all %d of them on, or none", total)
	}
	return c, b.noneTaken(pf)
}

// noneTaken refuses to take virtual functions away that VFIO has.
func (b *Functions) noneTaken(pf function) error {
	all, err := b.virtuals(pf)
	if err != nil {
		return err
	}
	var in []gpu.Blocker
	for _, vf := range all {
		taken, err := b.taken(vf)
		if err != nil {
			return err
		}
		if taken {
			in = append(in, gpu.Blocker{Kind: "partition", ID: partitionID(gpu.ID(pf.address), gpu.KindVF, strconv.Itoa(vf.index)), Name: vf.address})
		}
	}
	if len(in) > 0 {
		return gpu.Errorf(gpu.CodeGPUBusy, "%d of those that are there are taken for VMs", len(in)).WithBlockers(in...)
	}
	return nil
}

// taken reports whether VFIO has a virtual function for a VM. The driver of one that
// carries vGPUs is itself its VFIO driver, and a type says that it is for somebody.
func (b *Functions) taken(vf function) (bool, error) {
	typ, err := b.fs.Read(path.Join(vf.dir, "nvidia/current_vgpu_type"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return vf.vfio, nil
	case err != nil:
		return false, err
	}
	return typ != "0", nil
}

// setPlain tells the driver through sysfs. Whether drivers are found for the new functions
// is as the host has it (sriov_drivers_autoprobe): turned off for a moment by us, it would
// stay off for good when we die in that moment, and nobody could tell it from an
// administrator's wish.
func (b *Functions) setPlain(ctx context.Context, pf function, num, n int) error {
	if num > 0 { // the kernel changes the number from none and to none only
		if err := b.number(ctx, pf, 0); err != nil {
			return err
		}
	}
	if n == 0 {
		return nil
	}
	err := b.number(ctx, pf, n)
	if err == nil || gpu.CodeOf(err) == gpu.CodeStuck {
		return err
	}
	// A driver may have made some of them. Half of them is what nobody has asked for.
	if _, now, cerr := b.counts(pf); cerr == nil && now > 0 {
		if zerr := b.number(ctx, pf, 0); zerr != nil {
			err = fmt.Errorf("%w; and those that came cannot be turned off: %w", err, zerr)
		}
	}
	return err
}

// number writes sriov_numvfs and waits until the functions are there or gone.
func (b *Functions) number(ctx context.Context, pf function, n int) error {
	err := b.write(ctx, gpu.ID(pf.address), path.Join(pf.dir, "sriov_numvfs"), strconv.Itoa(n))
	if err == nil {
		return b.awaitVFs(ctx, pf, n)
	}
	if gpu.CodeOf(err) == gpu.CodeStuck {
		return err
	}
	if have, herr := b.have(pf); herr == nil && have == n {
		return nil
	}
	if errors.Is(err, syscall.ENOENT) {
		return gpu.Errorf(gpu.CodeInvalid, "its driver %q turns no virtual functions on by sysfs: %w", pf.driver, err).
			WithHint("some drivers take the number as a parameter of their module instead")
	}
	return err
}

// awaitVFs waits until a GPU has as many virtual functions as it says, and that is n.
func (b *Functions) awaitVFs(ctx context.Context, pf function, n int) error {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.opts.WriteTimeout)
	defer cancel()
	have := 0
	err := await(limit, func() (bool, error) {
		var err error
		have, err = b.have(pf)
		return have == n, err
	})
	if limit.Err() != nil {
		return gpu.Errorf(gpu.CodeUnavailable, "the driver accepted it, and %d are there after %s", max(have, 0), b.opts.WriteTimeout).
			WithHint("the kernel log may say more")
	}
	return err
}

// have counts the virtual functions that a GPU has: -1 while what it says and what is on
// the bus differ.
func (b *Functions) have(pf function) (int, error) {
	_, num, err := b.counts(pf)
	if err != nil {
		return 0, err
	}
	all, err := b.virtuals(pf)
	if err != nil || len(all) != num {
		return -1, err
	}
	return num, nil
}
