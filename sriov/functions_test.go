package sriov_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sim"
	"gpuvirt/internal/sysfs"
	"gpuvirt/sriov"
)

const vfProfile = "vf-8086:56c0"

func vfWish(id gpu.ID, profile, slot string) gpu.Partition {
	return gpu.Partition{ID: string(id) + "/vf/" + slot, GPU: id, Kind: gpu.KindVF, Profile: profile, Slot: slot}
}

// next is what the host asks for: one more.
func next(t *testing.T, b gpu.Placer, id gpu.ID, profile string) gpu.Partition {
	t.Helper()
	p, err := b.Place(t.Context(), id, profile, nil)
	must(t, err)
	return p
}

func TestFunctionsContract_T04_T06_T37_T43(t *testing.T) {
	for _, id := range []gpu.ID{flex, "0001:4d:00.0", "10000:4d:00.0"} {
		t.Run(string(id), func(t *testing.T) {
			h := host(t, sim.Flex(string(id), 1), sim.A2(a2, 0))
			b := functions(t, h, id, 4)
			// One is somebody else's, and one has no driver.
			toVFIO(t, h, strings.Replace(string(id), "00.0", "00.1", 1))
			write(t, h, "bus/pci/drivers/xe/unbind", strings.Replace(string(id), "00.0", "00.3", 1))
			gputest.Backend(t, b, gputest.Options{
				GPU: id, Profile: vfProfile, Places: true, Racers: 10,
				Want: func(profile string) gpu.Partition {
					p, err := b.Place(t.Context(), id, profile, nil)
					if err != nil {
						return vfWish(id, profile, "30")
					}
					return p
				},
			})
		})
	}
}

func TestFunctionsLook(t *testing.T) {
	h := host(t)
	b := sriov.NewFunctions(h.Sysfs, options(h))
	ids, err := b.IDs(t.Context())
	if !slices.Equal(ids, []gpu.ID{flex}) || err != nil {
		t.Fatal(ids, err)
	}
	g, profiles, err := b.Look(t.Context(), flex)
	wantGPU := gpu.GPU{
		ID: flex, Vendor: "Intel", Model: "8086:56c0", PCIAddress: flex, NUMANode: 1, IOMMUGroup: "61",
		Identity: gpu.Identity{Model: "8086:56c0", Subsystem: "8086:4905"}, Driver: gpu.Driver{Name: "xe"},
		Kinds: []gpu.Kind{gpu.KindVF}, SRIOV: gpu.SRIOV{TotalVFs: 31},
	}
	want := gpu.Profile{
		Name: vfProfile, Kind: gpu.KindVF, GPU: flex, MaxInstances: 31, NativeID: "8086:56c0", DeviceAPI: "vfio-pci",
		Attributes:   map[string]string{"num_vfs": "0"},
		NotCreatable: "no virtual functions are on: gpuvirt sriov set 0000:4d:00.0 <n>",
	}
	if diff := cmp.Diff(wantGPU, g) + cmp.Diff([]gpu.Profile{want}, profiles); diff != "" || err != nil {
		t.Error(diff, err)
	}
	_, err = b.Place(t.Context(), flex, vfProfile, nil)
	wantCode(t, err, gpu.CodeProfileNotCreatable)

	must(t, b.SetVFs(t.Context(), flex, 3))
	p := next(t, b, flex, vfProfile)
	wantPartition := gpu.Partition{
		ID: flex + "/vf/0", GPU: flex, Parent: "0000:4d:00.1", Kind: gpu.KindVF, Profile: vfProfile, Native: "8086:56c0",
		Slot: "0", Handle: gpu.Handle{PCIAddress: "0000:4d:00.1"}, DeviceAPI: "vfio-pci", IOMMUGroup: "1000",
		FormerDrivers: map[string]string{"0000:4d:00.1": "xe"},
	}
	if diff := cmp.Diff(wantPartition, p); diff != "" {
		t.Error(diff)
	}
	if _, err := b.Make(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	_, profiles, err = b.Look(t.Context(), flex)
	want.NotCreatable, want.Available = "", 2
	want.Attributes = map[string]string{"num_vfs": "3", "reset_method": "flr bus"}
	if diff := cmp.Diff([]gpu.Profile{want}, profiles); diff != "" || err != nil {
		t.Error(diff, err)
	}
	// Named by the definition of a VM that is off: it is not free.
	p, err = b.Place(t.Context(), flex, vfProfile, []gpu.Handle{{PCIAddress: "0000:4d:00.2"}})
	if p.Slot != "2" || err != nil {
		t.Error(p, err)
	}
	_, err = b.Place(t.Context(), flex, vfProfile, []gpu.Handle{{PCIAddress: "0000:4d:00.2"}, {PCIAddress: "0000:4d:00.3"}})
	wantCode(t, err, gpu.CodeNoCapacity)
	// The GPU itself is away: its functions went with it.
	write(t, h, "bus/pci/drivers/xe/unbind", flex)
	if _, profiles, err = b.Look(t.Context(), flex); err != nil || profiles[0].NotCreatable != "no driver is bound to the gpu" {
		t.Error(profiles, err)
	}
}

// Four cards with 36 functions each are four GPUs, whatever the functions look like.
func TestVFIsNoGPU_T39(t *testing.T) {
	for _, kind := range []struct {
		card func(string, int) sim.Card
		vf   bool // its functions are plain
	}{{sim.Flex, true}, {sim.A2, false}} {
		var cards []sim.Card
		var want []gpu.ID
		for _, bus := range []string{"0000:21", "0000:22", "0000:81", "0000:82"} {
			c := kind.card(bus+":00.0", 0)
			c.SRIOV.TotalVFs = 36
			cards, want = append(cards, c), append(want, gpu.ID(c.Name))
		}
		h := host(t, cards...)
		b := sriov.NewFunctions(h.Sysfs, options(h))
		for _, id := range want {
			must(t, b.SetVFs(t.Context(), id, 36))
		}
		all, err := h.Sysfs.List("bus/pci/devices")
		if len(all) != 4+144 || err != nil {
			t.Fatal(len(all), err)
		}
		cardsOf := sriov.NewCards(h.Sysfs, options(h))
		if ids, err := cardsOf.IDs(t.Context()); !slices.Equal(ids, want) || err != nil {
			t.Error(ids, err)
		}
		ids, err := b.IDs(t.Context())
		if kind.vf != slices.Equal(ids, want) || !kind.vf && len(ids) > 0 || err != nil {
			t.Error(ids, err)
		}
		for _, id := range want {
			if got, err := b.Functions(t.Context(), id); len(got) != 36 || err != nil {
				t.Error(got, err)
			}
			// R60: with its functions on, a card is not given away.
			_, profiles, err := cardsOf.Look(t.Context(), id)
			if err != nil || profiles[0].Available != 0 || !strings.HasPrefix(profiles[0].NotCreatable, "36 of its virtual functions are on") {
				t.Errorf("%+v, %v", profiles, err)
			}
			_, err = cardsOf.Make(t.Context(), cardWish(id, profiles[0].Name))
			wantCode(t, err, gpu.CodeProfileNotCreatable)
			vf := gpu.ID(strings.Replace(string(id), "00.0", "00.5", 1))
			for _, l := range []gpu.Backend{b, cardsOf} {
				_, _, err = l.Look(t.Context(), vf)
				wantCode(t, err, gpu.CodeNotFound)
			}
		}
	}
}

func TestFunctionsOfNVIDIAAreNotPlain(t *testing.T) {
	h := host(t)
	b := functions(t, h, a2, 16)
	all, err := b.Functions(t.Context(), a2)
	if len(all) != 16 || err != nil {
		t.Fatal(all, err)
	}
	want := gpu.Function{Index: 11, PCIAddress: "0000:08:01.7", IOMMUGroup: "1267", Driver: "nvidia"}
	if diff := cmp.Diff(want, all[11]); diff != "" {
		t.Error(diff)
	}
	_, err = b.Make(t.Context(), vfWish(a2, "vf-10de:25b6", "3"))
	wantCode(t, err, gpu.CodeNotFound)
	if got := driver(t, h, all[3].PCIAddress); got != "nvidia" {
		t.Error(got)
	}
}

// Whoever has a part of an IOMMU group has all of it.
func TestVFThatSharesItsGroup(t *testing.T) {
	card := sim.Flex(flex, 1)
	card.Companions = []sim.PCIFunction{{Address: "0000:4d:1f.0", Vendor: "0x8086", Device: "0x1533", Class: "0x020000", Driver: "igb", Group: 1001}}
	h := host(t, card)
	b := functions(t, h, flex, 2)
	_, profiles, err := b.Look(t.Context(), flex)
	if err != nil || profiles[0].Available != 1 || profiles[0].NotCreatable != "" {
		t.Error(profiles, err)
	}
	_, err = b.Make(t.Context(), vfWish(flex, vfProfile, "1"))
	wantCode(t, err, gpu.CodeProfileNotCreatable)
	if !strings.Contains(err.Error(), "0000:4d:1f.0 (igb)") {
		t.Error(err)
	}
	must(t, b.SetVFs(t.Context(), flex, 0))
	must(t, h.Change(flex, func(c *sim.Card) { c.PCI.Group = -1 }))
	must(t, b.SetVFs(t.Context(), flex, 2))
	_, profiles, err = b.Look(t.Context(), flex)
	if err != nil || profiles[0].Available != 0 || !strings.Contains(profiles[0].NotCreatable, "IOMMU is off") {
		t.Error(profiles, err)
	}
}

func TestVFWithoutTheModule(t *testing.T) {
	h := host(t)
	b := functions(t, h, flex, 2)
	planned := next(t, b, flex, vfProfile)
	must(t, h.SetLoaded("vfio-pci", false))
	before := len(writes(t, h))
	_, err := b.Place(t.Context(), flex, vfProfile, nil)
	wantCode(t, err, gpu.CodeDriverMissing)
	_, err = b.Make(t.Context(), planned)
	wantCode(t, err, gpu.CodeDriverMissing)
	if after := writes(t, h); len(after) != before {
		t.Errorf("%q", after[before:])
	}
}

// Whatever write fails, and whether or not it has taken effect: all is made, or all is as
// it was.
func TestEachWriteOfAVFFails(t *testing.T) {
	const vf = "0000:4d:00.2"
	for _, had := range []string{"", "xe"} {
		for _, after := range []bool{false, true} {
			for at := 1; at <= 8; at++ {
				t.Run(fmt.Sprintf("from %q, write %d, after %t", had, at, after), func(t *testing.T) {
					h := host(t)
					functions(t, h, flex, 3)
					if had == "" {
						write(t, h, "bus/pci/drivers/xe/unbind", vf)
					}
					before, made := state{had, "(null)"}, state{"vfio-pci", "vfio-pci"}
					want := vfWish(flex, vfProfile, "1")
					want.FormerDrivers = map[string]string{vf: had}
					sysfs := &broken{Sysfs: h.Sysfs, at: at, after: after}
					if _, err := sriov.NewFunctions(sysfs, options(h)).Make(t.Context(), want); err != nil {
						before.want(t, h, vf)
						good := sriov.NewFunctions(h.Sysfs, options(h))
						if _, err := good.Make(t.Context(), want); err != nil {
							t.Fatal(err)
						}
					}
					made.want(t, h, vf)
					sysfs = &broken{Sysfs: h.Sysfs, at: at, after: after}
					if err := sriov.NewFunctions(sysfs, options(h)).Remove(t.Context(), want); err != nil {
						made.want(t, h, vf)
						must(t, sriov.NewFunctions(h.Sysfs, options(h)).Remove(t.Context(), want))
					}
					before.want(t, h, vf)
				})
			}
		}
	}
}

// A daemon that is killed at any write goes on, or takes back, when it runs again.
func TestKilledAtEachWriteOfAVF(t *testing.T) {
	const vf = "0000:4d:00.2"
	for at := 1; at <= 4; at++ {
		for _, after := range []bool{false, true} {
			for _, undo := range []bool{false, true} {
				t.Run(fmt.Sprintf("write %d, after %t, undone %t", at, after, undo), func(t *testing.T) {
					h := host(t)
					good := functions(t, h, flex, 3)
					want := vfWish(flex, vfProfile, "1")
					want.FormerDrivers = map[string]string{vf: "xe"}
					killed := func() *sriov.Functions {
						return sriov.NewFunctions(&broken{Sysfs: h.Sysfs, at: at, after: after, killed: true}, options(h))
					}
					_, err := killed().Make(t.Context(), want)
					if (err == nil) != (at > 3) && !after {
						t.Errorf("write %d: %v", at, err)
					}
					if !undo {
						if _, err := good.Make(t.Context(), want); err != nil {
							t.Fatal(err)
						}
						state{"vfio-pci", "vfio-pci"}.want(t, h, vf)
						_ = killed().Remove(t.Context(), want)
					}
					must(t, good.Remove(t.Context(), want))
					state{"xe", "(null)"}.want(t, h, vf)
				})
			}
		}
	}
}

// A VM that has it still: the write hangs, and everything else goes on.
func TestRemoveHangs_T44_R70(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := sim.Flex("0000:4e:00.0", 1)
		other.PCI.Group = 90
		h := host(t, sim.Flex(flex, 1), other)
		b := functions(t, h, flex, 2)
		must(t, b.SetVFs(t.Context(), "0000:4e:00.0", 2))
		want := next(t, b, flex, vfProfile)
		made, err := b.Make(t.Context(), want)
		must(t, err)
		dev := gpu.Hostdev{Alias: gpu.Alias(made.ID), Handle: made.Handle}
		must(t, h.Libvirt.Attach(t.Context(), sim.Web1, dev, gpu.Scope{Live: true}))
		// Asked in time, it is not begun at all.
		asked := sriov.NewFunctions(h.Sysfs, sriov.Options{Unused: func(ctx context.Context, p gpu.Partition) error {
			if holders, err := h.Holders(ctx, p); err != nil || len(holders) > 0 {
				return gpu.Errorf(gpu.CodeBusy, "a VM has it")
			}
			return nil
		}})
		wantCode(t, asked.Remove(t.Context(), want), gpu.CodeBusy)
		state{"vfio-pci", "vfio-pci"}.want(t, h, made.Parent)

		start := time.Now()
		wantCode(t, b.Remove(t.Context(), want), gpu.CodeStuck)
		if d := time.Since(start); d != 30*time.Second {
			t.Error(d)
		}
		start = time.Now()
		g, _, err := b.Look(t.Context(), flex)
		if err != nil || len(g.Conditions) != 1 || g.Conditions[0].Type != gpu.Stuck {
			t.Error(g.Conditions, err)
		}
		_, err = b.Make(t.Context(), vfWish(flex, vfProfile, "1"))
		wantCode(t, err, gpu.CodeStuck)
		wantCode(t, b.SetVFs(t.Context(), flex, 0), gpu.CodeStuck)
		if _, err := b.Make(t.Context(), next(t, b, "0000:4e:00.0", vfProfile)); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("others have waited %s", d)
		}
		must(t, h.Libvirt.Shutdown(sim.Web1))
		synctest.Wait()
		must(t, b.Remove(t.Context(), want))
		state{"xe", "(null)"}.want(t, h, made.Parent)
		if g, _, err := b.Look(t.Context(), flex); err != nil || len(g.Conditions) > 0 {
			t.Error(g.Conditions, err)
		}
	})
}

func TestMakeOfWhatIsNotMeant(t *testing.T) {
	h := host(t)
	b := sriov.NewFunctions(h.Sysfs, options(h))
	_, err := b.Make(t.Context(), vfWish(flex, vfProfile, "1"))
	wantCode(t, err, gpu.CodeUnavailable) // just after boot they are still to come
	must(t, b.SetVFs(t.Context(), flex, 2))
	for code, change := range map[gpu.Code]func(*gpu.Partition){
		gpu.CodeInvalid:    func(p *gpu.Partition) { p.ID = "x" },
		gpu.CodeNoCapacity: func(p *gpu.Partition) { *p = vfWish(flex, vfProfile, "2") },
		gpu.CodeConflict:   func(p *gpu.Partition) { p.Parent = "0000:4d:00.1" },
	} {
		want := vfWish(flex, vfProfile, "1")
		change(&want)
		_, err := b.Make(t.Context(), want)
		wantCode(t, err, code)
	}
	// A conflict at removal, too: it is another one.
	want := vfWish(flex, vfProfile, "1")
	if _, err := b.Make(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	want.Parent = "0000:4d:00.1"
	wantCode(t, b.Remove(t.Context(), want), gpu.CodeConflict)
	// And where the functions are off, or the GPU is not there, it is gone.
	must(t, b.Remove(t.Context(), vfWish(flex, vfProfile, "1")))
	must(t, b.SetVFs(t.Context(), flex, 0))
	must(t, b.Remove(t.Context(), vfWish(flex, vfProfile, "1")))
	must(t, b.Remove(t.Context(), vfWish("0000:ff:00.0", vfProfile, "1")))
}

func TestParseDevice(t *testing.T) {
	for in, want := range map[string]string{
		"8086:56c0": "8086:56c0", "10DE:26B9": "10de:26b9", "8086": "", "": "", ":": "", "8086:56c": "", "0x10de:26b9": "",
		"8086:56c0:1": "", "8086:56cg": "", "-086:56c0": "", "8086:56c00": "", "8086:56c0\n": "",
	} {
		if got, err := sriov.ParseDevice(in); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

// What its class does not say, an administrator may.
func TestDeclaredDevice(t *testing.T) {
	card := sim.Flex(flex, 0)
	card.PCI.Class = "0x0b4000"
	h := host(t, card)
	none, err := sriov.NewFunctions(h.Sysfs, options(h)).IDs(t.Context())
	if len(none) > 0 || err != nil {
		t.Error(none, err)
	}
	o := options(h)
	o.Devices = []string{"8086:56c0"}
	b := sriov.NewFunctions(h.Sysfs, o)
	if ids, err := b.IDs(t.Context()); len(ids) != 1 || err != nil {
		t.Error(ids, err)
	}
	// What its functions are for only its own driver may know.
	must(t, b.SetVFs(t.Context(), flex, 1))
	all, err := b.Functions(t.Context(), flex)
	if err != nil || len(all) != 1 || all[0].Driver != "xe" {
		t.Error(all, err)
	}
}

// A host without a PCI bus, and one that cannot be read.
func TestUnreadable(t *testing.T) {
	root, err := sysfs.Open(t.TempDir())
	must(t, err)
	defer root.Close()
	for _, b := range []gpu.Backend{sriov.NewFunctions(root, sriov.Options{}), sriov.NewCards(root, sriov.Options{})} {
		if ids, err := b.IDs(t.Context()); len(ids) > 0 || err != nil {
			t.Error(ids, err)
		}
	}
	h := host(t)
	must(t, h.Inject(sim.Fault{Path: "devices/*/*/" + flex + "/numa_node", Errno: syscall.EIO}))
	must(t, h.Inject(sim.Fault{Op: "read", Path: "devices/*/*/" + flex + "/sriov_totalvfs", Errno: syscall.EIO}))
	b := sriov.NewFunctions(h.Sysfs, options(h))
	if ids, err := b.IDs(t.Context()); len(ids) != 1 || err != nil {
		t.Error(ids, err)
	}
	g, _, err := b.Look(t.Context(), flex)
	if g.ID != flex || len(g.Conditions) != 1 || g.Conditions[0].Type != gpu.Unknown || !errors.Is(err, syscall.EIO) {
		t.Error(g, err)
	}
}
