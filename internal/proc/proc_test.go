package proc_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/proc"
	"gpuvirt/internal/sysfs"
)

const uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"

// A world is a /proc and a /sys that the tests write as they need them.
type world struct {
	t         *testing.T
	proc, sys string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, proc: t.TempDir(), sys: t.TempDir()}
	w.process("1", "systemd", "/dev/null")
	w.process("2", "kthreadd")
	w.mkdir(w.proc, "sys", "self", "driver")
	w.mkdir(w.sys, "bus/mdev/devices/"+uuid, "bus/pci/devices/0000:41:00.4")
	return w
}

func (w *world) mkdir(root string, dirs ...string) {
	w.t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) process(pid, comm string, files ...string) {
	w.t.Helper()
	w.mkdir(w.proc, pid+"/fd")
	if err := os.WriteFile(filepath.Join(w.proc, pid, "comm"), []byte(comm+"\n"), 0o644); err != nil {
		w.t.Fatal(err)
	}
	for i, f := range files {
		if err := os.Symlink(f, filepath.Join(w.proc, pid, "fd", string(rune('0'+i)))); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) table() *proc.Table {
	w.t.Helper()
	fs, err := sysfs.Open(w.sys)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { fs.Close() })
	t, err := proc.Open(w.proc, fs)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { t.Close() })
	return t
}

var (
	mdevPartition = gpu.Partition{ID: uuid, Handle: gpu.Handle{MdevUUID: uuid}, IOMMUGroup: "12"}
	vfPartition   = gpu.Partition{ID: "x/vgpu/0000:41:00.4", Handle: gpu.Handle{PCIAddress: "0000:41:00.4"}, IOMMUGroup: "40"}
)

// write writes a file that the kernel would show.
func (w *world) write(name, text string) {
	w.t.Helper()
	w.mkdir(w.proc, filepath.Dir(name))
	if err := os.WriteFile(filepath.Join(w.proc, name), []byte(text), 0o444); err != nil {
		w.t.Fatal(err)
	}
}

// Who has a MIG instance or one of its compute instances open holds it, computing or not.
func TestHoldersOfMIG_T32(t *testing.T) {
	w := newWorld(t)
	access := func(minor string) string {
		return "DeviceFileMinor: " + minor + "\nDeviceFileMode: 292\nDeviceFileModify: 1\n"
	}
	w.write("driver/nvidia/gpus/0000:41:00.0/information", "Model: \t\t NVIDIA A100-PCIE-40GB\nIRQ:   \t\t 213\nBus Location: \t 0000:41:00.0\nDevice Minor: \t 3\n")
	w.write("driver/nvidia/capabilities/gpu3/mig/gi2/access", access("12"))
	w.write("driver/nvidia/capabilities/gpu3/mig/gi2/ci0/access", access("13"))
	w.write("driver/nvidia/capabilities/gpu3/mig/gi2/ci1/access", access("14"))
	w.write("driver/nvidia/capabilities/gpu3/mig/gi1/access", access("1"))
	w.process("4711", "python", "/dev/nvidia3", "/dev/nvidia-caps/nvidia-cap14")
	w.process("4712", "dcgm", "/dev/nvidia-caps/nvidia-cap12")
	w.process("4713", "other", "/dev/nvidia3", "/dev/nvidia-caps/nvidia-cap1", "/dev/nvidia-caps/nvidia-cap122")
	table := w.table()
	for instance, want := range map[string][]gpu.Holder{
		"2": {{Kind: "process", ID: "4711", Name: "python"}, {Kind: "process", ID: "4712", Name: "dcgm"}},
		"1": {{Kind: "process", ID: "4713", Name: "other"}},
		"7": {},
		"":  {},
	} {
		got, err := table.Holders(t.Context(), gpu.Partition{ID: "p", GPU: "0000:41:00.0", Kind: gpu.KindMIG, Instance: instance})
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("instance %q: %v\n%s", instance, err, diff)
		}
	}
	w.write("driver/nvidia/capabilities/gpu3/mig/gi9/access", "?\n")
	got, err := table.Holders(t.Context(), gpu.Partition{GPU: "0000:41:00.0", Kind: gpu.KindMIG, Instance: "9"})
	if gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Errorf("what cannot be read is %v, %v", got, err)
	}
}

// Who has a GPU itself open, computing or not, by whichever driver.
func TestGPUHolders_T32(t *testing.T) {
	w := newWorld(t)
	w.write("driver/nvidia/gpus/0000:41:00.0/information", "Model: \t\t NVIDIA A100-PCIE-40GB\nDevice Minor: \t 3\n")
	w.mkdir(w.sys, "bus/pci/devices/0000:41:00.0/drm/card1")
	w.mkdir(w.sys, "bus/pci/devices/0000:41:00.0/drm/renderD128")
	w.mkdir(w.sys, "bus/pci/devices/0000:82:00.0/vfio-dev/vfio4")
	w.process("11", "nvidia-persiste", "/dev/nvidia3")
	w.process("12", "nv-hostengine", "/dev/nvidiactl", "/dev/nvidia3", "/dev/nvidia33")
	w.process("13", "Xorg", "/dev/dri/card1")
	w.process("14", "weston", "/dev/dri/renderD128")
	w.process("15", "qemu-system-x86", "/dev/vfio/devices/vfio4")
	w.process("16", "other", "/dev/nvidia30", "/dev/nvidiactl", "/dev/dri/card11", "/dev/vfio/devices/vfio44")
	table := w.table()
	for id, want := range map[gpu.ID][]gpu.Holder{
		"0000:41:00.0": {
			{Kind: "process", ID: "11", Name: "nvidia-persiste"},
			{Kind: "process", ID: "12", Name: "nv-hostengine"},
			{Kind: "process", ID: "13", Name: "Xorg"},
			{Kind: "process", ID: "14", Name: "weston"},
		},
		"0000:82:00.0": {{Kind: "process", ID: "15", Name: "qemu-system-x86"}},
		"mbochs":       {},
	} {
		got, err := table.GPUHolders(t.Context(), id)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", id, err, diff)
		}
	}
	w.write("driver/nvidia/gpus/0000:41:00.1/information", "?\n")
	if got, err := table.GPUHolders(t.Context(), "0000:41:00.1"); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Errorf("what cannot be read is %v, %v", got, err)
	}
	if err := os.RemoveAll(filepath.Join(w.proc, "1")); err != nil {
		t.Fatal(err)
	}
	if got, err := table.GPUHolders(t.Context(), "0000:41:00.0"); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Errorf("with others hidden: %v, %v", got, err)
	}
}

func TestHolders_T17(t *testing.T) {
	w := newWorld(t)
	w.mkdir(w.sys, "bus/pci/devices/0000:41:00.4/vfio-dev/vfio3")
	w.process("4711", "qemu-system-x86", "/dev/null", "socket:[1]", "/dev/vfio/12", "anon_inode:[vfio-device]")
	w.process("99", "qemu-kvm", "/dev/vfio/12 (deleted)")
	w.process("100", "other", "/dev/vfio/120", "/dev/vfio/1", "/dev/vfio/vfio", "/dev/vfio/devices/vfio33", "/dev/vfio/12/x")
	w.process("5000", "firecracker", "/srv/jail/vm7/root/dev/vfio/12")
	w.process("101", "iommufd", "/dev/vfio/devices/vfio3")
	w.process("102", "lab", "/dev/vfio/noiommu-40")
	table := w.table()
	for name, tc := range map[string]struct {
		p    gpu.Partition
		want []gpu.Holder
	}{
		"mdev": {mdevPartition, []gpu.Holder{{Kind: "process", ID: "99", Name: "qemu-kvm"}, {Kind: "process", ID: "4711", Name: "qemu-system-x86"}, {Kind: "process", ID: "5000", Name: "firecracker"}}},
		"vf":   {vfPartition, []gpu.Holder{{Kind: "process", ID: "101", Name: "iommufd"}, {Kind: "process", ID: "102", Name: "lab"}}},
		"nobody's": {
			gpu.Partition{ID: uuid, Handle: gpu.Handle{MdevUUID: uuid}, IOMMUGroup: "7"}, []gpu.Holder{},
		},
		"gone":         {gpu.Partition{ID: "x", Handle: gpu.Handle{MdevUUID: "gone"}}, []gpu.Holder{}},
		"on the host":  {gpu.Partition{ID: "gpu/mig/0"}, []gpu.Holder{}},
		"no vfio (vf)": {gpu.Partition{ID: "x", Handle: gpu.Handle{PCIAddress: "0000:41:00.5"}}, []gpu.Holder{}},
	} {
		got, err := table.Holders(t.Context(), tc.p)
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
}

// Whatever keeps us from looking is an error: never an empty list.
func TestHoldersUnknown_T17_T23(t *testing.T) {
	for name, spoil := range map[string]func(w *world, p *gpu.Partition){
		"other users are hidden": func(w *world, _ *gpu.Partition) {
			if err := os.RemoveAll(filepath.Join(w.proc, "1")); err != nil {
				t.Fatal(err)
			}
		},
		"fd cannot be listed": func(w *world, _ *gpu.Partition) {
			w.mkdir(w.proc, "50")
			// A loop stands for EACCES, which root does not get.
			if err := os.Symlink("fd", filepath.Join(w.proc, "50", "fd")); err != nil {
				t.Fatal(err)
			}
		},
		"a descriptor cannot be read": func(w *world, _ *gpu.Partition) { w.mkdir(w.proc, "50/fd/0") },
		"no group": func(_ *world, p *gpu.Partition) {
			p.IOMMUGroup = ""
		},
		"sysfs cannot be read": func(w *world, _ *gpu.Partition) {
			if err := os.Symlink("vfio-dev", filepath.Join(w.sys, "bus/mdev/devices", uuid, "vfio-dev")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		w := newWorld(t)
		p := mdevPartition
		spoil(w, &p)
		got, err := w.table().Holders(t.Context(), p)
		if gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.HasPrefix(err.Error(), "cannot tell who holds partition") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newWorld(t).table().Holders(ctx, mdevPartition); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Processes come and go during a scan.
func TestHoldersWhileProcessesEnd_T17(t *testing.T) {
	w := newWorld(t)
	w.mkdir(w.proc, "60")                    // its fd directory is gone
	w.process("70", "qemu", "/dev/vfio/12")  // its name is gone
	w.process("80", "qemu2", "/dev/vfio/12") // stays
	if err := os.Remove(filepath.Join(w.proc, "70", "comm")); err != nil {
		t.Fatal(err)
	}
	got, err := w.table().Holders(t.Context(), mdevPartition)
	if diff := cmp.Diff([]gpu.Holder{{Kind: "process", ID: "80", Name: "qemu2"}}, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

// The real table of this machine: we can at least look at ourselves.
func TestHoldersReal(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	fs, err := sysfs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	table, err := proc.Open(proc.DefaultRoot, fs)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if got, err := table.Holders(t.Context(), mdevPartition); err != nil {
		t.Logf("not known here: %v", err)
	} else if len(got) != 0 {
		t.Errorf("somebody holds group 12: %+v", got)
	}
	if id, err := table.BootID(); err != nil || len(id) != 36 {
		t.Errorf("boot id %q, %v", id, err)
	}
}

func TestBootID(t *testing.T) {
	w := newWorld(t)
	if _, err := w.table().BootID(); err == nil {
		t.Error("no boot id, and no error")
	}
	w.mkdir(w.proc, "sys/kernel/random")
	file := filepath.Join(w.proc, "sys/kernel/random/boot_id")
	for text, want := range map[string]string{"\n": "", "5f0b6f1c-9a3a-4c0e-8f0e-0b6b8f6a1d11\n": "5f0b6f1c-9a3a-4c0e-8f0e-0b6b8f6a1d11"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := w.table().BootID(); got != want || (err == nil) != (want != "") {
			t.Errorf("%q, %v", got, err)
		}
	}
}

func TestHostID(t *testing.T) {
	file := filepath.Join(t.TempDir(), "machine-id")
	if _, err := proc.HostID(file); err == nil {
		t.Error("no file, and no error")
	}
	for text, ok := range map[string]bool{"": false, "uninitialized\n": false, "0123456789abcdef0123456789abcdef\n": true} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := proc.HostID(file); (err == nil) != ok || (ok && got != strings.TrimSpace(text)) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
