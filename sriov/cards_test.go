package sriov_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sim"
	"gpuvirt/sriov"
)

const rxProfile = "card-1002:744c"

func cardWish(id gpu.ID, profile string) gpu.Partition {
	return gpu.Partition{ID: string(id) + "/card/0", GPU: id, Kind: gpu.KindCard, Profile: profile, Slot: "0"}
}

func TestCardsContract_T04_T06_T37_T43(t *testing.T) {
	for id, profile := range map[gpu.ID]string{
		rx: rxProfile, a2: "card-10de:25b6", "10000:03:00.0": rxProfile, "0001:03:00.0": rxProfile,
	} {
		t.Run(string(id), func(t *testing.T) {
			cards := []sim.Card{sim.Flex(flex, 1), sim.A2(a2, 0), sim.RX(rx)}
			if !slices.ContainsFunc(cards, func(c sim.Card) bool { return c.Name == string(id) }) {
				cards = append(cards[:2], sim.RX(string(id)))
			}
			h := host(t, cards...)
			b := sriov.NewCards(h.Sysfs, options(h))
			gputest.Backend(t, b, gputest.Options{
				GPU: id, Profile: profile, Places: true, Single: true, Racers: 10,
				Want: func(profile string) gpu.Partition {
					p, err := b.Place(t.Context(), id, profile, nil)
					if err != nil {
						return cardWish(id, profile)
					}
					return p
				},
			})
		})
	}
}

func TestCardsLook(t *testing.T) {
	h := host(t)
	b := sriov.NewCards(h.Sysfs, options(h))
	ids, err := b.IDs(t.Context())
	if !slices.Equal(ids, []gpu.ID{rx, a2, flex, "0000:88:00.0"}) || err != nil {
		t.Error(ids, err)
	}
	g, profiles, err := b.Look(t.Context(), rx)
	wantGPU := gpu.GPU{
		ID: rx, Vendor: "AMD", Model: "1002:744c", PCIAddress: rx, NUMANode: -1, IOMMUGroup: "70",
		Identity: gpu.Identity{Model: "1002:744c", Subsystem: "1002:0e3b"}, Driver: gpu.Driver{Name: "amdgpu"},
		Kinds: []gpu.Kind{gpu.KindCard},
	}
	want := []gpu.Profile{{
		Name: rxProfile, Kind: gpu.KindCard, GPU: rx, MaxInstances: 1, Available: 1, NativeID: "1002:744c", DeviceAPI: "vfio-pci",
		Attributes: map[string]string{"reset_method": "flr bus", "with": sound},
	}}
	if diff := cmp.Diff(wantGPU, g) + cmp.Diff(want, profiles); diff != "" || err != nil {
		t.Error(diff, err)
	}
	p := next(t, b, rx, rxProfile)
	wantPartition := gpu.Partition{
		ID: rx + "/card/0", GPU: rx, Parent: rx, Kind: gpu.KindCard, Profile: rxProfile, Native: "1002:744c", Slot: "0",
		Handle: gpu.Handle{PCIAddress: rx}, DeviceAPI: "vfio-pci", IOMMUGroup: "70",
		FormerDrivers: map[string]string{rx: "amdgpu", sound: "snd_hda_intel"}, Companions: []string{sound},
	}
	if diff := cmp.Diff(wantPartition, p); diff != "" {
		t.Error(diff)
	}
	if _, err := b.Make(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	state{"vfio-pci", "vfio-pci"}.want(t, h, rx, sound)
	dev := gpu.Hostdev{Alias: gpu.Alias(p.ID), Handle: p.Handle}
	must(t, h.Libvirt.Attach(t.Context(), sim.Web1, dev, gpu.Scope{Live: true}))
	must(t, h.Libvirt.Shutdown(sim.Web1))
	must(t, b.Remove(t.Context(), p))
	state{"amdgpu", "(null)"}.want(t, h, rx)
	state{"snd_hda_intel", "(null)"}.want(t, h, sound)
	_, err = b.Place(t.Context(), rx, rxProfile, []gpu.Handle{{PCIAddress: sound}})
	wantCode(t, err, gpu.CodeNoCapacity)
}

// What makes a card one that cannot be given away, each with its reason.
func TestCardsRefused_R60_R68_R72(t *testing.T) {
	nic := sim.PCIFunction{Address: "0000:03:1f.0", Vendor: "0x8086", Device: "0x1533", Class: "0x020000", Driver: "igb"}
	bridge := sim.PCIFunction{Address: "0000:00:1c.0", Vendor: "0x8086", Device: "0x1901", Class: "0x060400", Driver: "pcieport"}
	for why, tc := range map[string]struct {
		card   func(*sim.Card)
		before func(*testing.T, *sim.Host)
		part   string // of the reason; empty: it can be
	}{
		"a bridge":     {card: func(c *sim.Card) { c.Companions = append(c.Companions, bridge) }},
		"another":      {card: func(c *sim.Card) { c.Companions = append(c.Companions, nic) }, part: "0000:03:1f.0 (igb)"},
		"its console":  {card: func(c *sim.Card) { c.BootVGA = true }, part: "boot_vga"},
		"no IOMMU":     {card: func(c *sim.Card) { c.PCI.Group = -1 }, part: "IOMMU is off"},
		"no driver":    {before: func(t *testing.T, h *sim.Host) { write(t, h, "bus/pci/drivers/amdgpu/unbind", rx) }},
		"functions on": {card: func(c *sim.Card) { c.SRIOV = sim.Flex(rx, 0).SRIOV; c.SRIOV.Offset = 16 }, before: on(rx, "4"), part: "4 of its virtual functions are on"},
		"own group":    {card: func(c *sim.Card) { c.Companions[0].Group = 71 }},
		"shared sound": {card: func(c *sim.Card) {
			c.Companions[0].Group = 71
			n := nic
			n.Group = 71
			c.Companions = append(c.Companions, n)
		}, part: "0000:03:1f.0 (igb)"},
		"not resetable": {card: func(c *sim.Card) { c.PCI.NoReset = true }},
	} {
		t.Run(why, func(t *testing.T) {
			card := sim.RX(rx)
			if tc.card != nil {
				tc.card(&card)
			}
			h := host(t, card)
			if tc.before != nil {
				tc.before(t, h)
			}
			b := sriov.NewCards(h.Sysfs, options(h))
			_, profiles, err := b.Look(t.Context(), rx)
			must(t, err)
			before := len(writes(t, h))
			_, err = b.Make(t.Context(), cardWish(rx, rxProfile))
			if tc.part == "" {
				if err != nil || profiles[0].Available != 1 || profiles[0].NotCreatable != "" {
					t.Errorf("%+v, %v", profiles[0], err)
				}
				if note := profiles[0].Attributes["note"]; card.PCI.NoReset != (note != "") || card.PCI.NoReset != (profiles[0].Attributes["reset_method"] == "none") {
					t.Errorf("%+v", profiles[0].Attributes)
				}
				return
			}
			wantCode(t, err, gpu.CodeProfileNotCreatable)
			if profiles[0].Available != 0 || !strings.Contains(profiles[0].NotCreatable, tc.part) || !strings.Contains(err.Error(), tc.part) {
				t.Errorf("%+v, %v", profiles[0], err)
			}
			_, err = b.Place(t.Context(), rx, rxProfile, nil)
			wantCode(t, err, gpu.CodeProfileNotCreatable)
			if after := writes(t, h); len(after) != before {
				t.Errorf("%q", after[before:])
			}
		})
	}
}

func on(card, n string) func(*testing.T, *sim.Host) {
	return func(t *testing.T, h *sim.Host) { write(t, h, devices+card+"/sriov_numvfs", n) }
}

func TestCardWithMediatedDevices(t *testing.T) {
	const t4 = "0000:88:00.0"
	h := host(t)
	uuid := gputest.NewUUID()
	write(t, h, "class/mdev_bus/"+t4+"/mdev_supported_types/nvidia-230/create", uuid)
	b := sriov.NewCards(h.Sysfs, options(h))
	_, err := b.Make(t.Context(), cardWish(t4, "card-10de:1eb8"))
	wantCode(t, err, gpu.CodeProfileNotCreatable)
	if !strings.Contains(err.Error(), "1 mediated devices are on it") {
		t.Error(err)
	}
	write(t, h, "bus/mdev/devices/"+uuid+"/remove", "1")
	if _, err := b.Make(t.Context(), cardWish(t4, "card-10de:1eb8")); err != nil {
		t.Error(err)
	}
}

// NVIDIA's driver waits for whoever has a card open, so it is asked first.
func TestCardThatSomebodyHasOpen_T33(t *testing.T) {
	h := host(t)
	must(t, h.Watch(a2, 812, "nv-hostengine"))
	b := sriov.NewCards(h.Sysfs, options(h))
	want := next(t, b, a2, "card-10de:25b6")
	_, err := b.Make(t.Context(), want)
	wantCode(t, err, gpu.CodeGPUBusy)
	state{"nvidia", "(null)"}.want(t, h, a2)
	must(t, h.Idle(a2))
	// A card that stays with its driver can be opened again.
	must(t, h.Inject(sim.Fault{Op: "write", Path: "bus/pci/drivers/nvidia/unbind", Errno: syscall.EIO, Times: 1}))
	_, err = b.Make(t.Context(), want)
	wantCode(t, err, gpu.CodeUnavailable)
	if locked, err := h.Proc.Read("driver/nvidia/gpus/" + a2 + "/unbindLock"); locked != "0" || err != nil {
		t.Error(locked, err)
	}
	state{"nvidia", "(null)"}.want(t, h, a2)
	// Our own session, too.
	s, err := h.NVML.Open()
	must(t, err)
	_, err = b.Make(t.Context(), want)
	wantCode(t, err, gpu.CodeGPUBusy)
	o := options(h)
	reopened := false
	o.CloseNVML = closing(s.Close, &reopened)
	b = sriov.NewCards(h.Sysfs, o)
	if _, err := b.Make(t.Context(), want); err != nil || !reopened {
		t.Error(err, reopened)
	}
	must(t, b.Remove(t.Context(), want))
	state{"nvidia", "(null)"}.want(t, h, a2)
}

// Somebody else's, by hand: it is shown, and it is not ours to place.
func TestForeignCard(t *testing.T) {
	h := host(t)
	toVFIO(t, h, rx)
	b := sriov.NewCards(h.Sysfs, options(h))
	all, err := b.Partitions(t.Context(), rx)
	if len(all) != 1 || all[0].ID != rx+"/card/0" || err != nil {
		t.Error(all, err)
	}
	_, err = b.Place(t.Context(), rx, rxProfile, nil)
	wantCode(t, err, gpu.CodeNoCapacity)
	// One that we took when its sound had VFIO already leaves it there.
	h = host(t)
	toVFIO(t, h, sound)
	b = sriov.NewCards(h.Sysfs, options(h))
	want := next(t, b, rx, rxProfile)
	if _, err := b.Make(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	must(t, b.Remove(t.Context(), want))
	state{"amdgpu", "(null)"}.want(t, h, rx)
	state{"vfio-pci", "vfio-pci"}.want(t, h, sound)
}

// A driver that a card has only because somebody forced it comes back in the same way.
func TestForcedDriver(t *testing.T) {
	h := host(t)
	write(t, h, "bus/pci/drivers/amdgpu/unbind", rx)
	write(t, h, devices+rx+"/driver_override", "xe")
	write(t, h, "bus/pci/drivers_probe", rx)
	b := sriov.NewCards(h.Sysfs, options(h))
	want := next(t, b, rx, rxProfile)
	if _, err := b.Make(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	must(t, b.Remove(t.Context(), want))
	state{"xe", "xe"}.want(t, h, rx)
}

// Another VM has the sound alone, running or by its definition: nothing goes back.
func TestCompanionInUse(t *testing.T) {
	for _, scope := range []gpu.Scope{{Live: true}, {Config: true}} {
		card := sim.RX(rx)
		card.Companions[0].Group = 71
		h := host(t, card)
		o := options(h)
		var asked []string
		o.Unused = func(ctx context.Context, p gpu.Partition) error {
			asked = append(asked, p.ID+" "+p.Handle.PCIAddress+" "+p.IOMMUGroup)
			vms, err := h.Libvirt.VMs(ctx)
			for _, vm := range vms {
				for _, d := range vm.Hostdevs {
					if d.Handle == p.Handle {
						err = gpu.Errorf(gpu.CodeGPUBusy, "a VM has it")
					}
				}
			}
			return err
		}
		b := sriov.NewCards(h.Sysfs, o)
		want := next(t, b, rx, rxProfile)
		_, err := b.Make(t.Context(), want)
		must(t, err)
		dev := gpu.Hostdev{Alias: "ua-theirs", Handle: gpu.Handle{PCIAddress: sound}}
		must(t, h.Libvirt.Attach(t.Context(), sim.Web1, dev, scope))
		before := len(writes(t, h))
		err = b.Remove(t.Context(), want)
		wantCode(t, err, gpu.CodeGPUBusy)
		if err == nil || !strings.Contains(err.Error(), "function "+sound) || len(writes(t, h)) != before {
			t.Errorf("%v, %q", err, writes(t, h)[before:])
		}
		state{"vfio-pci", "vfio-pci"}.want(t, h, rx, sound)
		if want := []string{want.ID + " " + rx + " 70", want.ID + " " + sound + " 71"}; !slices.Equal(asked, want) {
			t.Errorf("%q", asked)
		}
		must(t, h.Libvirt.Detach(t.Context(), sim.Web1, dev.Alias, scope))
		must(t, b.Remove(t.Context(), want))
		state{"amdgpu", "(null)"}.want(t, h, rx)
	}
}

func TestEachWriteOfACardFails_T07_R71(t *testing.T) {
	amd, snd := state{"amdgpu", "(null)"}, state{"snd_hda_intel", "(null)"}
	made := state{"vfio-pci", "vfio-pci"}
	for _, after := range []bool{false, true} {
		for at := 1; at <= 12; at++ {
			t.Run(fmt.Sprintf("write %d, after %t", at, after), func(t *testing.T) {
				h := host(t)
				good := sriov.NewCards(h.Sysfs, options(h))
				want := next(t, good, rx, rxProfile)
				bad := func() *sriov.Cards {
					return sriov.NewCards(&broken{Sysfs: h.Sysfs, at: at, after: after}, options(h))
				}
				if _, err := bad().Make(t.Context(), want); err != nil {
					amd.want(t, h, rx)
					snd.want(t, h, sound)
					if _, err := good.Make(t.Context(), want); err != nil {
						t.Fatal(err)
					}
				}
				made.want(t, h, rx, sound)
				if err := bad().Remove(t.Context(), want); err != nil {
					for _, a := range []string{rx, sound} {
						if driver(t, h, a) == "" {
							t.Errorf("function %s has no driver", a)
						}
					}
					must(t, good.Remove(t.Context(), want))
				}
				amd.want(t, h, rx)
				snd.want(t, h, sound)
			})
		}
	}
}

func TestKilledAtEachWriteOfACard(t *testing.T) {
	for at := 1; at <= 7; at++ {
		for _, after := range []bool{false, true} {
			for _, undo := range []bool{false, true} {
				t.Run(fmt.Sprintf("write %d, after %t, undone %t", at, after, undo), func(t *testing.T) {
					h := host(t)
					good := sriov.NewCards(h.Sysfs, options(h))
					want := next(t, good, rx, rxProfile)
					killed := func() *sriov.Cards {
						return sriov.NewCards(&broken{Sysfs: h.Sysfs, at: at, after: after, killed: true}, options(h))
					}
					_, _ = killed().Make(t.Context(), want)
					if !undo {
						if _, err := good.Make(t.Context(), want); err != nil {
							t.Fatal(err)
						}
						state{"vfio-pci", "vfio-pci"}.want(t, h, rx, sound)
						_ = killed().Remove(t.Context(), want)
					}
					must(t, good.Remove(t.Context(), want))
					state{"amdgpu", "(null)"}.want(t, h, rx)
					state{"snd_hda_intel", "(null)"}.want(t, h, sound)
				})
			}
		}
	}
}

// A program that uses it keeps a driver that has no lock to ask for.
func TestTakingACardHangs_T44(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := host(t)
		must(t, h.Inject(sim.Fault{Op: "write", Path: "bus/pci/drivers/amdgpu/unbind", Hang: true}))
		b := sriov.NewCards(h.Sysfs, options(h))
		want := next(t, b, rx, rxProfile)
		_, err := b.Make(t.Context(), want)
		wantCode(t, err, gpu.CodeStuck)
		g, _, err := b.Look(t.Context(), rx)
		if err != nil || len(g.Conditions) != 1 || g.Conditions[0].Type != gpu.Stuck {
			t.Error(g.Conditions, err)
		}
		if _, err := b.Make(t.Context(), next(t, b, flex, "card-8086:56c0")); err != nil {
			t.Error(err)
		}
		must(t, h.Clear(""))
		synctest.Wait()
		// It came back, and had its effect: making and undoing both go on from there.
		if _, err := b.Make(t.Context(), want); err != nil {
			t.Error(err)
		}
		must(t, b.Remove(t.Context(), want))
		state{"amdgpu", "(null)"}.want(t, h, rx)
	})
}
