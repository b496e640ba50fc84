package mdev_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sim"
	"gpuvirt/internal/sysfs"
	"gpuvirt/mdev"
)

// mdevVFs is a host with an A2 whose virtual functions are on, and on the mdev bus.
func mdevVFs(t *testing.T, change ...func(*sim.Card)) (*sim.Host, *mdev.Backend) {
	t.Helper()
	card := sim.A2(string(a2), 0).WithVGPU(true)
	for _, f := range change {
		f(&card)
	}
	h := vfHost(t, card, sim.T4("0000:88:00.0", 1), sim.Mbochs())
	return h, mdev.New(h.Sysfs, mdev.Options{VanishWait: -1})
}

func TestFunctionsContract_T04_T06_T40(t *testing.T) {
	_, b := mdevVFs(t, func(c *sim.Card) { c.SRIOV.TotalVFs = 6 })
	gputest.Backend(t, b, gputest.Options{GPU: a2, Profile: "A2-4Q", Other: "A2-4C", Racers: 10})
}

// What a real host has shown: with three of four in use thirteen functions are free,
// each says that one more fits, and one does. Neither is a function a GPU.
func TestFunctionsAreNotCounted_T39_T40_R85(t *testing.T) {
	h, b := mdevVFs(t)
	uuids := []string{gputest.NewUUID(), gputest.NewUUID(), gputest.NewUUID()}
	for i, profile := range []string{"A2-4C", "A2-4A", "A2-4Q"} {
		made := mustMake(t, b, gpu.Partition{ID: uuids[i], GPU: a2, Parent: string(a2), Kind: gpu.KindMdev, Profile: profile})
		if wantVF := []string{"0000:08:00.4", "0000:08:00.5", "0000:08:00.6"}[i]; made.Parent != wantVF || made.GPU != a2 {
			t.Errorf("%+v, want it on %s", made, wantVF)
		}
	}
	names, err := h.Sysfs.List("class/mdev_bus")
	if err != nil {
		t.Fatal(err)
	}
	says := 0
	for _, vf := range names {
		text, err := h.Sysfs.Read("class/mdev_bus/" + vf + "/mdev_supported_types/nvidia-746/available_instances")
		if err == nil && text == "1" {
			says++
		}
	}
	if diff := cmp.Diff(map[string]int{"A2-4A": 1, "A2-4C": 1, "A2-4Q": 1}, available(t, b, a2)); diff != "" || says != 13 {
		t.Error(says, diff)
	}
	if p := profile(t, b, a2, "A2-4Q"); p.MaxInstances != 4 || p.MemoryBytes != 4<<30 || p.NativeID != "nvidia-746" {
		t.Errorf("%+v", p)
	}
	ids, err := b.IDs(t.Context())
	if diff := cmp.Diff([]gpu.ID{a2, "0000:88:00.0", "mbochs"}, ids); diff != "" || err != nil {
		t.Error(err, diff)
	}
	g, _, err := b.Look(t.Context(), a2)
	if g.Model != "A2" || g.PCIAddress != string(a2) || len(g.Conditions) != 0 || err != nil {
		t.Errorf("%+v, %v", g, err)
	}
	if _, _, err := b.Look(t.Context(), "0000:08:00.4"); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Error(err)
	}
	// Other cards do not see them, and another size is explained.
	if p, err := b.Partitions(t.Context(), "0000:88:00.0"); len(p) != 0 || err != nil {
		t.Error(p, err)
	}
	_, err = b.Make(t.Context(), gpu.Partition{ID: uuid, GPU: a2, Profile: "A2-1Q"})
	if gpu.CodeOf(err) != gpu.CodeNoCapacity || !strings.Contains(err.Error(), "another vGPU size is active on this card (A2-4A, A2-4C, A2-4Q)") {
		t.Error(err)
	}
}

// A record that names the function is made there again, and nowhere else.
func TestFunctionIsKept(t *testing.T) {
	h, b := mdevVFs(t)
	const vf5, vf6 = "0000:08:00.5", "0000:08:00.6"
	wish := gpu.Partition{ID: uuid, GPU: a2, Parent: vf5, Kind: gpu.KindMdev, Profile: "A2-8Q"}
	made := mustMake(t, b, wish)
	if made.Parent != vf5 {
		t.Errorf("%+v", made)
	}
	if again := mustMake(t, b, made); again.Parent != vf5 {
		t.Errorf("%+v", again)
	}
	for parent, code := range map[string]gpu.Code{vf6: gpu.CodeConflict, "0000:88:00.0": gpu.CodeInvalid, "0000:09:00.0": gpu.CodeInvalid} {
		w := wish
		w.Parent = parent
		if _, err := b.Make(t.Context(), w); gpu.CodeOf(err) != code {
			t.Errorf("%s: %v", parent, err)
		}
	}
	// That function is taken; the others are not.
	other := wish
	other.ID = uuid2
	if _, err := b.Make(t.Context(), other); gpu.CodeOf(err) != gpu.CodeNoCapacity || !strings.Contains(err.Error(), "available on "+vf5) {
		t.Error(err)
	}
	if err := h.Reboot(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Make(t.Context(), made); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Errorf("its functions are off: %v", err)
	}
	functionsOn(t, h, sim.A2(string(a2), 0))
	if again := mustMake(t, b, made); again.Parent != vf5 {
		t.Errorf("%+v", again)
	}
	// It is found by its UUID.
	made.Parent = string(a2)
	if err := b.Remove(t.Context(), made); err != nil {
		t.Error(err)
	}
	nothingThere(t, h, b, a2)
}

// Somebody takes the function that was chosen: another is. But not where one was asked for.
func TestFunctionIsTaken_T04(t *testing.T) {
	for _, parent := range []string{"", "0000:08:00.4"} {
		h, b := mdevVFs(t)
		raced := &hooked{Sysfs: h.Sysfs}
		raced.beforeWrite = func(string) {
			raced.beforeWrite = nil
			mustMake(t, b, gpu.Partition{ID: uuid2, GPU: a2, Profile: "A2-4Q"})
		}
		made, err := mdev.New(raced, mdev.Options{}).Make(t.Context(), gpu.Partition{ID: uuid, GPU: a2, Parent: parent, Profile: "A2-4Q"})
		if parent == "" && (err != nil || made.Parent != "0000:08:00.5") || parent != "" && gpu.CodeOf(err) != gpu.CodeNoCapacity {
			t.Errorf("on %q: %+v, %v", parent, made, err)
		}
	}
}

// Sizes share the card: how many more fit is not to be known from one size's maximum.
func TestFunctionsMixed_T40(t *testing.T) {
	h, b := mdevVFs(t)
	if err := h.Mix(string(a2), true); err != nil {
		t.Fatal(err)
	}
	mustMake(t, b, gpu.Partition{ID: uuid, GPU: a2, Profile: "A2-8Q"})
	mustMake(t, b, gpu.Partition{ID: uuid2, GPU: a2, Profile: "A2-4Q"})
	if got := available(t, b, a2); got["A2-4Q"] != 1 || got["A2-1Q"] != 1 || got["A2-8Q"] != 0 {
		t.Error(got)
	}
}

func TestFunctionsFixture_T39(t *testing.T) {
	b := load(t, "nvidia-a2-vf.txtar")
	all, err := gpus(t, b)
	want := []gpu.GPU{{
		ID: a2, Vendor: "NVIDIA", Model: "A2", PCIAddress: string(a2), NUMANode: 0, IOMMUGroup: "30", SRIOV: gpu.SRIOV{TotalVFs: 16, NumVFs: 16},
		Identity: gpu.Identity{Model: "10de:25b6", Subsystem: "10de:157e"},
		Driver:   gpu.Driver{Name: "nvidia", Version: "535.129.03"}, Kinds: []gpu.Kind{gpu.KindMdev},
	}}
	if diff := cmp.Diff(want, all); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if diff := cmp.Diff(map[string]int{"A2-4Q": 1}, available(t, b, a2)); diff != "" {
		t.Error(diff)
	}
	partitions, err := b.Partitions(t.Context(), a2)
	if err != nil || len(partitions) != 1 || partitions[0].Parent != "0000:08:00.4" || partitions[0].Profile != "A2-4Q" || partitions[0].GPU != a2 {
		t.Error(partitions, err)
	}
	for _, id := range []gpu.ID{"0000:08:01.7", "0000:08:00.4"} {
		if _, _, err := b.Look(t.Context(), id); gpu.CodeOf(err) != gpu.CodeNotFound {
			t.Errorf("%s: %v", id, err)
		}
		_, err := b.Make(t.Context(), gpu.Partition{ID: uuid, GPU: id, Profile: "A2-4Q"})
		if gpu.CodeOf(err) != gpu.CodeNotFound {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// counted counts the files that are read.
type counted struct {
	mdev.Sysfs

	files int
}

func (c *counted) Read(name string) (string, error) {
	c.files++
	return c.Sysfs.Read(name)
}

func (c *counted) ReadEach(dir string, names ...string) ([]sysfs.File, error) {
	c.files += len(names)
	return c.Sysfs.ReadEach(dir, names...)
}

// A look reads what the types of a card are once, not on every function; of one that has a
// device it reads nothing, and of the others how many fit.
func TestFunctionsAreReadOnce(t *testing.T) {
	h, all := mdevVFs(t)
	const functions, types, around = 16, 15, 40
	c := &counted{Sysfs: h.Sysfs}
	b := mdev.New(c, mdev.Options{VanishWait: -1})
	_, profiles, err := b.Look(t.Context(), a2)
	if err != nil || len(profiles) != types {
		t.Fatalf("%d types, %v", len(profiles), err)
	}
	if most := functions*types + 3*types + around; c.files > most {
		t.Errorf("%d files were read, for at most %d", c.files, most)
	}
	const made = 4
	for range made {
		mustMake(t, all, gpu.Partition{ID: gputest.NewUUID(), GPU: a2, Profile: "A2-4Q"})
	}
	c.files = 0
	if _, _, err := b.Look(t.Context(), a2); err != nil {
		t.Error(err)
	}
	// What each device is called is read as well, for the first of them.
	if most := (functions-made)*types + (3+2+1)*types + around; c.files > most {
		t.Errorf("%d files were read, for at most %d", c.files, most)
	}
	c.files = 0
	if ps, err := b.Partitions(t.Context(), a2); err != nil || len(ps) != made {
		t.Errorf("%+v, %v", ps, err)
	}
	if most := 2*types + around; c.files > most {
		t.Errorf("%d files were read for the devices, for at most %d", c.files, most)
	}
}

// One function that does not say how many fit, or lists other types than the rest, is taken
// for what it says itself.
func TestFunctionThatDiffers(t *testing.T) {
	h, b := mdevVFs(t)
	const file = "devices/*/*/0000:08:00.5/mdev_supported_types/nvidia-746/available_instances"
	if err := h.Inject(sim.Fault{Op: "read", Path: file, Errno: syscall.EIO}); err != nil {
		t.Fatal(err)
	}
	if p := profile(t, b, a2, "A2-4Q"); p.Available != 4 || p.NotCreatable != "" {
		t.Errorf("%+v", p)
	}
	_, err := b.Make(t.Context(), gpu.Partition{ID: uuid, GPU: a2, Parent: "0000:08:00.5", Profile: "A2-4Q"})
	if gpu.CodeOf(err) != gpu.CodeNoCapacity {
		t.Error(err)
	}
	for i, want := range []string{"0000:08:00.4", "0000:08:00.6"} {
		if made := mustMake(t, b, gpu.Partition{ID: []string{uuid, uuid2}[i], GPU: a2, Profile: "A2-4Q"}); made.Parent != want {
			t.Errorf("%+v", made)
		}
	}
	fs := &lesser{Sysfs: h.Sysfs, where: "0000:08:00.4/mdev_supported_types", only: "nvidia-746"}
	if got := available(t, mdev.New(fs, mdev.Options{}), a2); got["A2-4Q"] != 2 || got["A2-4C"] != 2 {
		t.Error(got)
	}
}

// lesser has one function list one type only.
type lesser struct {
	mdev.Sysfs

	where, only string
}

func (l *lesser) List(dir string) ([]string, error) {
	if strings.HasSuffix(dir, l.where) {
		return []string{l.only}, nil
	}
	return l.Sysfs.List(dir)
}
