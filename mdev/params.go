package mdev

import (
	"context"
	"errors"
	"fmt"
	"path"
	"syscall"
	"time"

	"gpuvirt/gpu"
)

// paramsFile holds a vGPU's parameters, in the directory of its mdev or virtual function.
// Where there is no vGPU, reading or writing it is an error of the driver's.
const paramsFile = "nvidia/vgpu_params"

// params reads the parameters of a vGPU; empty where it has none, or its driver has no
// such thing.
func (k kernel) params(dir string) (string, error) {
	text, err := k.fs.Read(path.Join(dir, paramsFile))
	if isGone(err) || errors.Is(err, syscall.ENXIO) {
		return "", nil
	}
	return text, err
}

// addParams adds its parameters to a vGPU, or says that they are not known: that is not
// the same as none.
func (k kernel) addParams(p *gpu.Partition, dir string) {
	var err error
	if p.Params, err = k.params(dir); err != nil {
		p.Conditions = append(p.Conditions, gpu.Condition{
			Type: gpu.Degraded, Status: true, Reason: gpu.ReasonParamsUnknown, Message: "its vgpu_params are not known: " + err.Error(),
		})
	}
}

// tune gives a vGPU the parameters that are wanted, where it has others, and makes sure
// that it has them. One for which none are wanted stays as the driver has made it. A
// driver takes parameters only while no VM has the vGPU open. It returns those that the
// vGPU has then.
func (k kernel) tune(ctx context.Context, id gpu.ID, dir, params string, patience time.Duration) (string, error) {
	have, err := k.params(dir)
	if params == "" || err == nil && gpu.SameVGPUParams(have, params) {
		return have, nil
	}
	if err != nil { // what is not known is not written over: it may be what is wanted, and in use
		return "", gpu.Errorf(gpu.CodeUnavailable, "its parameters cannot be read: %w", err)
	}
	file := path.Join(dir, paramsFile)
	if ok, err := k.fs.Exists(file); err != nil {
		return "", err
	} else if !ok {
		return "", gpu.Errorf(gpu.CodeProfileNotCreatable, "its driver takes no parameters: there is no %s", paramsFile)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// All of them at once, as a write replaces what was there; and with an end of line, as the
	// driver drops the last byte whatever it is.
	err = k.writes.Write(ctx, id, file, params+"\n")
	if gpu.CodeOf(err) == gpu.CodeStuck {
		return "", err
	}
	now, rerr := k.fs.Read(file)
	switch {
	case rerr == nil && gpu.SameVGPUParams(now, params):
		return now, nil
	case err == nil && rerr != nil:
		return "", fmt.Errorf("its parameters cannot be read back: %w", rerr)
	case err == nil:
		return "", gpu.Errorf(gpu.CodeUnavailable, "the driver accepted the parameters %q, but has %q", params, now)
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return "", unwritten(ctx, err)
	}
	return "", untuned(errno, params, err)
}

// untuned is the error of parameters that the driver does not take.
func untuned(errno syscall.Errno, params string, err error) error {
	switch errno {
	case syscall.EPERM, syscall.EBUSY:
		return gpu.Errorf(gpu.CodeGPUBusy, "its parameters cannot be changed to %q while somebody uses it: %w", params, err)
	case syscall.E2BIG:
		return gpu.Errorf(gpu.CodeInvalid, "the driver takes no parameters of this length (%d bytes): %w", len(params)+1, err)
	case syscall.EINVAL:
		return gpu.Errorf(gpu.CodeInvalid, "the driver refuses the parameters %q: %w", params, err).WithHint("the kernel log may say which of them")
	case syscall.ENXIO, syscall.ENODEV, syscall.ENOENT:
		return gpu.Errorf(gpu.CodeUnavailable, "it has gone while it was given its parameters: %w", err)
	default:
		return driverError(errno, err)
	}
}
