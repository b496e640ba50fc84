package mdev_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/internal/sim/fixture"
	"gpuvirt/internal/sysfs"
	"gpuvirt/mdev"
)

func condition(t *testing.T, b gpu.Backend, id gpu.ID) string {
	t.Helper()
	g, _, _ := b.Look(t.Context(), id)
	if len(g.Conditions) == 0 {
		return ""
	}
	return string(g.Conditions[0].Type) + " " + g.Conditions[0].Reason
}

func TestVendorFixture(t *testing.T) {
	root, err := sysfs.Open(fixture.Load(t, "testdata/nvidia-l40s-vendor.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	const id = gpu.ID("0000:26:00.0")
	b := mdev.NewVendor(root, mdev.VendorOptions{})
	ids, err := b.IDs(t.Context())
	if diff := cmp.Diff([]gpu.ID{id}, ids); diff != "" || err != nil {
		t.Fatal(err, diff)
	}
	g, profiles, err := b.Look(t.Context(), id)
	if diff := cmp.Diff(gpu.GPU{
		ID: id, Vendor: "NVIDIA", Model: "L40S", PCIAddress: string(id), NUMANode: 1, IOMMUGroup: "27", SRIOV: gpu.SRIOV{TotalVFs: 32, NumVFs: 3},
		Identity: gpu.Identity{Model: "10de:26b9", Subsystem: "10de:1851"},
		Driver:   gpu.Driver{Name: "nvidia", Version: "550.90.05"}, Kinds: []gpu.Kind{gpu.KindVGPU},
	}, g); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if diff := cmp.Diff([]gpu.Profile{{
		Name: "L40S-4Q", Kind: gpu.KindVGPU, GPU: id, Available: 1, NativeID: "1150", DeviceAPI: "vfio-pci",
		Attributes: map[string]string{"name": "NVIDIA L40S-4Q", "series": "Q"},
	}}, profiles); diff != "" {
		t.Error(diff)
	}
	partitions, err := b.Partitions(t.Context(), id)
	if diff := cmp.Diff([]gpu.Partition{{
		ID: "0000:26:00.0/vgpu/0", GPU: id, Parent: "0000:26:00.4", Kind: gpu.KindVGPU, Profile: "L40S-4Q", Native: "1150", Slot: "0",
		Handle: gpu.Handle{PCIAddress: "0000:26:00.4"}, DeviceAPI: "vfio-pci", IOMMUGroup: "120",
	}}, partitions); diff != "" || err != nil {
		t.Error(err, diff)
	}
	placed, err := b.Place(t.Context(), id, "L40S-4Q", nil)
	if placed.Slot != "1" || placed.Parent != "0000:26:00.5" || err != nil {
		t.Errorf("%+v, %v", placed, err)
	}
	if made, err := b.Make(t.Context(), placed); err != nil || made.Native != "1150" {
		t.Error(made, err) // real files keep what is written to them
	}
}

// A virtual function is no GPU, nor is a card without such functions, or one whose
// functions are off.
func TestVendorIDs_T39(t *testing.T) {
	a40 := sim.A40("0000:81:00.0", 1).WithVGPU(true)
	h := vfHost(t, sim.L40S(string(l40s), 0).WithVGPU(false), a40, sim.T4("0000:88:00.0", 1), sim.A100("0000:c1:00.0", 0), sim.Mbochs(), sim.Flex("0000:4d:00.0", 1))
	if err := h.Sysfs.Write(t.Context(), "bus/pci/devices/0000:4d:00.0/sriov_numvfs", "31"); err != nil {
		t.Fatal(err)
	}
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
	ids, err := b.IDs(t.Context())
	if diff := cmp.Diff([]gpu.ID{l40s}, ids); diff != "" || err != nil {
		t.Error(err, diff)
	}
	for _, id := range []gpu.ID{"0000:41:00.4", "0000:88:00.0", "0000:4d:00.0", "0000:81:00.0", "mbochs", "..", "", "../mdev"} {
		if _, _, err := b.Look(t.Context(), id); gpu.CodeOf(err) != gpu.CodeNotFound {
			t.Errorf("%q: %v", id, err)
		}
	}
	if err := h.Reboot(); err != nil {
		t.Fatal(err)
	}
	if ids, err := b.IDs(t.Context()); len(ids) != 0 || err != nil {
		t.Error(ids, err)
	}
	if _, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q")); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Error(err)
	}
}

// What the driver's library knows of the types, and what one VM may have (T41).
func TestVendorProfiles_T41(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
	if diff := cmp.Diff(gpu.Profile{
		Name: "L40S-8Q", Kind: gpu.KindVGPU, GPU: l40s, MemoryBytes: 8 << 30, MaxInstances: 6, Available: 6, NativeID: "1152", DeviceAPI: "vfio-pci",
		Attributes: map[string]string{
			"name": "NVIDIA L40S-8Q", "class": "Quadro", "num_heads": "4", "max_resolution": "7680x4320",
			"license": "Quadro-Virtual-DWS,5.0;GRID-Virtual-WS,2.0", "max_per_vm": "16", "series": "Q",
		},
	}, profile(t, b, l40s, "L40S-8Q")); diff != "" {
		t.Error(diff)
	}
	if got := profile(t, b, l40s, "L40S-1B").Attributes["max_per_vm"]; got != "1" {
		t.Errorf("a VM may have %q L40S-1B", got)
	}
	// As many as there are functions, though the memory would do for more.
	if got := profile(t, b, l40s, "L40S-1Q"); got.Available != 32 {
		t.Errorf("%+v", got)
	}
}

// Capacity is that of the card, whatever its functions say one by one.
func TestVendorCapacity_T40_R85(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
	for i, name := range []string{"L40S-12Q", "L40S-12C", "L40S-12Q"} {
		if _, err := b.Make(t.Context(), on(l40s, 7*i, name)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(map[string]int{"L40S-12Q": 1, "L40S-12C": 1}, available(t, b, l40s)); diff != "" {
		t.Error(diff)
	}
	vague := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
	if diff := cmp.Diff(map[string]int{"L40S-12Q": 1, "L40S-12C": 1}, available(t, vague, l40s)); diff != "" {
		t.Error(diff)
	}
}

// Where sizes share the card one more is certain, and no number is.
func TestVendorMixed_T40(t *testing.T) {
	h := vfHost(t)
	if err := h.Mix(string(l40s), true); err != nil {
		t.Fatal(err)
	}
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
	for i, name := range []string{"L40S-24Q", "L40S-12C"} {
		if _, err := b.Make(t.Context(), on(l40s, 7*i, name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := available(t, b, l40s); got["L40S-12Q"] != 1 || got["L40S-1Q"] != 1 || got["L40S-16Q"] != 0 || got["L40S-24Q"] != 0 {
		t.Error(got)
	}
}

// A host whose functions are not VFIO's makes none.
func TestVendorNotCreatable_R03(t *testing.T) {
	h := vfHost(t)
	hidden := &hiding{Sysfs: h.Sysfs, suffix: "/vfio-dev"}
	for reason, b := range map[string]*mdev.Vendor{
		"does not offer them to VFIO": mdev.NewVendor(hidden, mdev.VendorOptions{}),
	} {
		if got := profile(t, b, l40s, "L40S-8Q").NotCreatable; !strings.Contains(got, reason) {
			t.Errorf("%q", got)
		}
		_, err1 := b.Make(t.Context(), on(l40s, 0, "L40S-8Q"))
		_, err2 := b.Place(t.Context(), l40s, "L40S-8Q", nil)
		for _, err := range []error{err1, err2} {
			if gpu.CodeOf(err) != gpu.CodeProfileNotCreatable || !strings.Contains(err.Error(), reason) {
				t.Error(err)
			}
		}
	}
	if w, err := h.Writes(); slices.ContainsFunc(w, func(w sim.Write) bool { return strings.HasSuffix(w.Path, "current_vgpu_type") }) || err != nil {
		t.Error(w, err)
	}
}

// hiding is a sysfs without some entries.
type hiding struct {
	mdev.Sysfs
	suffix string
}

func (s *hiding) Exists(path string) (bool, error) {
	if strings.HasSuffix(path, s.suffix) {
		return false, nil
	}
	return s.Sysfs.Exists(path)
}

// What cannot be read is not free, and not gone.
func TestVendorUnreadable(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
	at := h.Sysfs
	const current = "devices/pci0000:00/0000:00:01.0/0000:41:00.*/nvidia/current_vgpu_type"
	const lists = "devices/pci0000:00/0000:00:01.0/0000:41:*/nvidia/creatable_vgpu_types"
	if err := h.Inject(sim.Fault{Op: "read", Path: current, Errno: syscall.EIO}); err != nil {
		t.Fatal(err)
	}
	ids, err := b.IDs(t.Context())
	if len(ids) != 1 || err != nil {
		t.Error(ids, err)
	}
	if got := condition(t, b, l40s); got != "Unknown NotReadable" {
		t.Errorf("condition %q", got)
	}
	if _, err := b.Partitions(t.Context(), l40s); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Error(err)
	}
	if err := b.Remove(t.Context(), on(l40s, 0, "L40S-8Q")); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Error(err)
	}
	if err := errors.Join(h.Clear(""), h.Inject(sim.Fault{Op: "read", Path: lists, Errno: syscall.EINVAL})); err != nil {
		t.Fatal(err)
	}
	if got := profile(t, b, l40s, "L40S-8Q"); got.Available != 0 || !strings.Contains(got.NotCreatable, "does not say what fits") {
		t.Errorf("%+v", got)
	}
	if _, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q")); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Error(err)
	}
	if err := h.Clear(""); err != nil {
		t.Fatal(err)
	}
	// A function that is bound to another driver is none of ours.
	for _, w := range [][2]string{
		{"bus/pci/devices/0000:41:00.4/driver_override", "vfio-pci"}, {"bus/pci/drivers/nvidia/unbind", "0000:41:00.4"}, {"bus/pci/drivers_probe", "0000:41:00.4"},
	} {
		if err := at.Write(t.Context(), w[0], w[1]); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := b.Place(t.Context(), l40s, "L40S-8Q", nil); p.Slot != "1" || err != nil {
		t.Error(p, err)
	}
	if _, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q")); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Error(err)
	}
	if err := b.Remove(t.Context(), on(l40s, 0, "L40S-8Q")); err != nil {
		t.Error(err)
	}
}

// Without the driver's library sizes are not known, and that is told; the rest goes on.
func TestVendorWithoutLibrary(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: func(context.Context, gpu.ID) ([]gpu.VGPUType, error) {
		return nil, gpu.Errorf(gpu.CodeStuck, "it hangs")
	}})
	if got := condition(t, b, l40s); got != "Degraded TypesUnknown" {
		t.Errorf("condition %q", got)
	}
	if got := profile(t, b, l40s, "L40S-8Q"); got.MaxInstances != 0 || got.MemoryBytes != 0 || got.Available != 1 {
		t.Errorf("%+v", got)
	}
	if _, err := b.Make(t.Context(), on(l40s, 0, "L40S-8Q")); err != nil {
		t.Error(err)
	}
	_, err := b.Make(t.Context(), on(l40s, 1, "L40S-9Q"))
	e, _ := errors.AsType[*gpu.Error](err)
	if gpu.CodeOf(err) != gpu.CodeProfileUnknown || !strings.Contains(e.Hint, "it hangs") {
		t.Error(err, e)
	}
}

// On GPU instances: the driver lists a type as long as one is free, and tells which it took.
func TestVendorOnInstances_T35(t *testing.T) {
	h := vfHost(t, sim.H100(string(l40s), 0).WithVGPU(false))
	migOn(t, h)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
	s, err := h.NVML.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, _ := gpu.ParseAddress(string(l40s))
	d, err := s.Device(a)
	if err != nil {
		t.Fatal(err)
	}
	if got := available(t, b, l40s); len(got) != 0 {
		t.Errorf("%v fit though there is no instance", got)
	}
	_, err = b.Make(t.Context(), on(l40s, 0, "H100XM-2-20C"))
	if e, _ := errors.AsType[*gpu.Error](err); gpu.CodeOf(err) != gpu.CodeNoCapacity || !strings.Contains(e.Hint, "GPU instance") {
		t.Error(err)
	}
	if _, err := b.Place(t.Context(), l40s, "H100XM-2-20C", nil); gpu.CodeOf(err) != gpu.CodeNoCapacity {
		t.Error(err)
	}
	ahead, err := b.PlaceAhead(t.Context(), l40s, "H100XM-2-20C", []gpu.Handle{{PCIAddress: "0000:41:00.4"}})
	if ahead.Slot != "1" || ahead.Profile != "H100XM-2-20C" || ahead.Parent != "0000:41:00.5" || err != nil {
		t.Error(ahead, err)
	}
	all, err := d.Profiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Name != "2g.20gb" {
			continue
		}
		for _, start := range []int{0, 4} {
			if _, err := d.Create(p.Index, start); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Seven would be the most that a card could have; how many there are is not known here.
	if diff := cmp.Diff(map[string]int{"H100XM-2-20C": 1}, available(t, b, l40s)); diff != "" {
		t.Error(diff)
	}
	for i, want := range []string{"1", "2"} {
		made, err := b.Make(t.Context(), on(l40s, i, "H100XM-2-20C"))
		if err != nil || made.Instance != want {
			t.Errorf("%+v, %v", made, err)
		}
	}
	if got := available(t, b, l40s); len(got) != 0 {
		t.Errorf("%v fit", got)
	}
	if got := profile(t, b, l40s, "H100XM-2-20C"); got.On != "2g.20gb" || got.Attributes["gpu_instance_profile"] != "14" || got.Attributes["max_per_instance"] != "1" {
		t.Errorf("%+v", got)
	}
}
