package mig

/*
#cgo LDFLAGS: -ldl
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

// As nvml.h has them: nvmlVgpuPlacementList_v2_t, and v1 without its last member.
struct placements {
	unsigned int version, size, count;
	unsigned int *ids;
	unsigned int mode; // 0: that of a GPU with mixed sizes
};

#define VERSION(bytes, n) ((unsigned int)(bytes) | (n) << 24)

static int placements(const char *bus, const char *function, unsigned int type, unsigned int *ids, unsigned int *count, unsigned int *size)
{
	// The binding has loaded the library for all to see.
	int (*handle)(const char *, void **) = dlsym(RTLD_DEFAULT, "nvmlDeviceGetHandleByPciBusId_v2");
	int (*list)(void *, unsigned int, struct placements *) = dlsym(RTLD_DEFAULT, function);
	struct placements p = {VERSION(sizeof p, 2u), 0, *count, ids, 0};
	void *device;
	int ret;

	if (!handle || !list)
		return 13; // function not found
	ret = handle(bus, &device);
	if (!ret)
		ret = list(device, type, &p);
	if (ret == 25) { // the driver knows the first version only
		p = (struct placements){VERSION(24, 1u), 0, *count, ids, 0};
		ret = list(device, type, &p);
	}
	*count = p.count;
	*size = p.size;
	return ret;
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"gpuvirt/gpu"
)

// Functions for the places of vGPUs.
const (
	supportedPlacements = "nvmlDeviceGetVgpuTypeSupportedPlacements"
	creatablePlacements = "nvmlDeviceGetVgpuTypeCreatablePlacements"
)

const insufficientSize Return = 7

// maxPlaces is more than any card has: what a library says beyond it is not believed.
const maxPlaces = 4096

// Placements asks the library past its binding, which passes neither an array nor the
// version that goes with its structure. That is all of this file: one question, with a
// handle of its own.
func (d device) Placements(typ uint32) (gpu.VGPUPlacements, error) {
	out := gpu.VGPUPlacements{Type: typ}
	info, ret := d.GetPciInfo()
	if err := check(ret); err != nil {
		return out, err
	}
	var err error
	if out.Starts, out.Size, err = d.places(supportedPlacements, text(info.BusId[:]), typ); err != nil {
		return out, err
	}
	out.Free, _, err = d.places(creatablePlacements, text(info.BusId[:]), typ)
	return out, err
}

func (d device) places(function, bus string, typ uint32) (starts []int, size int, err error) {
	if !d.in.has(function) {
		return nil, 0, lacking(function)
	}
	at, name := C.CString(bus), C.CString(function)
	defer C.free(unsafe.Pointer(at))
	defer C.free(unsafe.Pointer(name))
	for n := C.uint(64); ; {
		ids, count, slots := make([]C.uint, n), n, C.uint(0)
		err := Return(C.placements(at, name, C.uint(typ), &ids[0], &count, &slots))
		switch {
		case count > maxPlaces, err == 0 && count > n:
			return nil, 0, fmt.Errorf("%s tells of %d places in an array of %d: %w", function, count, n, ErrUnknown)
		case err == insufficientSize && count > n:
			n = count
			continue
		case err != 0:
			return nil, 0, err
		}
		starts = make([]int, 0, count)
		for _, id := range ids[:count] {
			starts = append(starts, int(id))
		}
		return starts, int(slots), nil
	}
}
