package mdev_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mdev"
)

// tunable is a backend with a GPU whose vGPUs take parameters, and where their file is.
type tunable struct {
	name    string
	host    *sim.Host
	backend gpu.Backend
	want    gpu.Partition
	file    string
}

func tunables(t *testing.T) (out []tunable) {
	t.Helper()
	t4 := vfHost(t, sim.T4("0000:3b:00.0", 0))
	w := want("0000:3b:00.0", "T4-4Q")
	out = append(out, tunable{"mdev", t4, mdev.New(t4.Sysfs, mdev.Options{VanishWait: -1}), w, "bus/mdev/devices/" + w.ID + "/nvidia/vgpu_params"})
	vfs := vfHost(t, sim.L40S(string(l40s), 0).WithVGPU(true))
	w = want(l40s, "L40S-8Q")
	out = append(out, tunable{"mdev on a function", vfs, mdev.New(vfs.Sysfs, mdev.Options{VanishWait: -1}), w, "bus/mdev/devices/" + w.ID + "/nvidia/vgpu_params"})
	vendor := vfHost(t, sim.L40S(string(l40s), 0).WithVGPU(false))
	v := mdev.NewVendor(vendor.Sysfs, mdev.VendorOptions{Types: types(vendor), ClearWait: -1})
	return append(out, tunable{"vendor", vendor, v, on(l40s, 0, "L40S-8Q"), vf0 + "/nvidia/vgpu_params"})
}

// wrote counts the writes to a host's files.
func wrote(t *testing.T, h *sim.Host) int {
	t.Helper()
	all, err := h.Writes()
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// A vGPU is made with its parameters, whole. The same again writes nothing, other ones
// are put there while nobody uses it.
func TestMakeWithParams(t *testing.T) {
	for _, b := range tunables(t) {
		const params = "enable_uvm=1,frame_rate_limiter=0"
		b.want.Params = params
		made, err := b.backend.Make(t.Context(), b.want)
		if err != nil || made.Params != params {
			t.Fatalf("%s: %+v, %v", b.name, made, err)
		}
		if text, err := b.host.Sysfs.Read(b.file); text != params || err != nil {
			t.Errorf("%s: the driver has %q, %v", b.name, text, err)
		}
		all, err := b.backend.Partitions(t.Context(), b.want.GPU)
		if err != nil || len(all) != 1 || all[0].Params != params {
			t.Errorf("%s: %+v, %v", b.name, all, err)
		}
		writes := wrote(t, b.host)
		if made, err = b.backend.Make(t.Context(), b.want); err != nil || made.Params != params || wrote(t, b.host) != writes {
			t.Errorf("%s: once more: %+v, %v", b.name, made, err)
		}
		// Whoever asks for none leaves what is there.
		b.want.Params = ""
		if made, err = b.backend.Make(t.Context(), b.want); err != nil || made.Params != params || wrote(t, b.host) != writes {
			t.Errorf("%s: with none: %+v, %v", b.name, made, err)
		}
		b.want.Params = "disable_vnc=1"
		if made, err = b.backend.Make(t.Context(), b.want); err != nil || made.Params != "disable_vnc=1" {
			t.Errorf("%s: others: %+v, %v", b.name, made, err)
		}
		attached(t, b.host, "web1", made)
		b.want.Params = params
		if _, err = b.backend.Make(t.Context(), b.want); gpu.CodeOf(err) != gpu.CodeGPUBusy || !strings.Contains(err.Error(), "while somebody uses it") {
			t.Errorf("%s: in use: %v", b.name, err)
		}
		if text, err := b.host.Sysfs.Read(b.file); text != "disable_vnc=1" || err != nil {
			t.Errorf("%s: in use: the driver has %q, %v", b.name, text, err)
		}
	}
}

// Where the driver does not take the parameters, nothing is left behind: a vGPU without
// them is not what was asked for.
func TestMakeWithParamsFails(t *testing.T) {
	for errno, code := range map[syscall.Errno]gpu.Code{
		syscall.EINVAL: gpu.CodeInvalid, syscall.E2BIG: gpu.CodeInvalid, syscall.EPERM: gpu.CodeGPUBusy,
		syscall.ENXIO: gpu.CodeUnavailable, syscall.EIO: gpu.CodeUnavailable, syscall.EROFS: gpu.CodeForbidden,
	} {
		for _, b := range tunables(t) {
			b.want.Params = "frame_rate_limiter=0"
			if err := b.host.Inject(sim.Fault{Op: "write", Path: b.file, Errno: errno}); err != nil {
				t.Fatal(err)
			}
			_, err := b.backend.Make(t.Context(), b.want)
			if gpu.CodeOf(err) != code || !errors.Is(err, errno) {
				t.Errorf("%s: %s: %s: %v", b.name, errno, gpu.CodeOf(err), err)
			}
			if all, err := b.backend.Partitions(t.Context(), b.want.GPU); err != nil || len(all) != 0 {
				t.Errorf("%s: %s: something was left behind: %+v, %v", b.name, errno, all, err)
			}
		}
	}
}

// What the driver makes of parameters that are longer than it keeps is read back.
func TestMakeWithParamsTooLong(t *testing.T) {
	for _, b := range tunables(t) {
		b.want.Params = "x=" + strings.Repeat("1", 600)
		_, err := b.backend.Make(t.Context(), b.want)
		if gpu.CodeOf(err) != gpu.CodeInvalid || !strings.Contains(err.Error(), "no parameters of this length (603 bytes)") {
			t.Errorf("%s: %v", b.name, err)
		}
	}
}

// A driver that has no such thing, as all but NVIDIA's, says so before a VM is touched.
func TestMakeWithParamsUnknown(t *testing.T) {
	h := vfHost(t, sim.Mbochs())
	b := mdev.New(h.Sysfs, mdev.Options{VanishWait: -1})
	w := want("mbochs", "mbochs-small")
	w.Params = "x=1"
	if _, err := b.Make(t.Context(), w); gpu.CodeOf(err) != gpu.CodeProfileNotCreatable || !strings.Contains(err.Error(), "its driver takes no parameters") {
		t.Errorf("%v", err)
	}
	nothingThere(t, h, b, "mbochs")
}
