package host_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/host"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

// Cards behind a PCI domain other than 0000, of four digits and of five, are found, cut,
// given to VMs, brought back after a reboot, and given back: vGPUs on the mdev bus and on
// virtual functions, MIG instances with vGPUs on them, plain functions, and whole cards (T37).
func TestPCIDomains_T37(t *testing.T) {
	for _, domain := range []string{"0001", "10000"} {
		t.Run(domain, func(t *testing.T) {
			at := func(rest string) string { return domain + ":" + rest }
			turing, ada, hopper, flex, rx := at("08:00.0"), at("61:00.0"), at("42:00.0"), at("4d:00.0"), at("03:00.0")
			vgpu, h100 := sim.L40S(ada, 0).WithVGPU(false), sim.H100(hopper, 0).WithVGPU(false)
			vgpu.SRIOV.TotalVFs, h100.SRIOV.TotalVFs = 4, 4
			// One that differs in the domain alone is another card.
			l := newLab(t, sim.T4(turing, 0), vgpu, h100, sim.Flex(flex, 0), sim.RX(rx), sim.T4("0000:08:00.0", 1))
			addVMs(t, l, 5)
			l.manage(gpu.ID(turing), gpu.ID(ada), gpu.ID(hopper), gpu.ID(flex), gpu.ID(rx))
			for card, n := range map[string]int{ada: 4, hopper: 4, flex: 2} {
				if card == hopper {
					l.mustLay(gpu.ID(hopper), "")
				}
				l.mustSetVFs(gpu.ID(card), n)
			}
			for name, w := range map[string]gpu.Wish{
				"bus":      {VM: "vm1", Profile: "T4-2Q", GPU: gpu.ID(turing)},
				"function": {VM: "vm2", Profile: "L40S-8Q", GPU: gpu.ID(ada)},
				"instance": {VM: "vm3", Profile: "H100XM-1-10C", GPU: gpu.ID(hopper)},
				"plain":    {VM: "vm4", Profile: "vf-8086:56c0", GPU: gpu.ID(flex)},
				"card":     {VM: "vm5", Profile: "card-1002:744c", GPU: gpu.ID(rx)},
			} {
				a := l.attach(name, w)
				vm, err := l.sim.Libvirt.VM(t.Context(), w.VM)
				if err != nil || len(vm.Hostdevs) != 1 {
					t.Fatalf("%s: %+v, %v", name, vm, err)
				}
				if address := vm.Hostdevs[0].Handle.PCIAddress; name != "bus" && !strings.HasPrefix(address, domain+":") {
					t.Errorf("%s: vm has %q", name, address)
				}
				if !strings.HasPrefix(string(a.GPU), domain+":") {
					t.Errorf("%s: %+v", name, a)
				}
			}
			l.attached(5)
			if err := l.sim.Reboot(); err != nil {
				t.Fatal(err)
			}
			done, err := l.restore(time.Minute)
			if err != nil || len(done) != 6 || slices.ContainsFunc(done, func(d host.Restored) bool { return !d.Made }) {
				t.Fatalf("%+v, %v", done, err)
			}
			l.attached(5)
			for _, name := range []string{"bus", "function", "instance", "plain", "card"} {
				l.detach(name)
			}
			l.attached(0)
			_, op, err := l.PutAssignment(t.Context(), "test", "other", gpu.Wish{VM: "vm1", Profile: "T4-2Q", GPU: "0000:08:00.0"})
			if wantCode(t, err, gpu.CodeGPUUnmanaged); op != nil {
				t.Errorf("%+v", op)
			}
		})
	}
}

// With room on several cards, packing fills one before it begins the next, and spreading goes
// round; a card that is named is taken however full it is.
// Where a wish does not say how to choose, the host does; and what was asked for so is the
// same wish after the host has changed its mind.
func TestPlacementOfTheHost(t *testing.T) {
	cards := []gpu.ID{"0000:08:00.0", "0000:88:00.0"}
	for placement, want := range map[gpu.Placement][]int{gpu.Pack: {2, 0}, gpu.Spread: {1, 1}} {
		l := newLab(t, sim.T4(string(cards[0]), 0), sim.T4(string(cards[1]), 0))
		l.manage(cards...)
		addVMs(t, l, 2)
		l.SetPlacement(placement)
		wish := gpu.Wish{VM: "vm1", Profile: "T4-4Q"}
		if a := l.attach("a1", wish); a.Wish.Placement != placement {
			t.Errorf("%s: %+v", placement, a.Wish)
		}
		l.attach("a2", gpu.Wish{VM: "vm2", Profile: "T4-4Q"})
		for i, id := range cards {
			if got := len(l.vgpusOn(id)); got != want[i] {
				t.Errorf("%s: %d on %s, want %d", placement, got, id, want[i])
			}
		}
		for _, other := range []gpu.Placement{gpu.Pack, gpu.Spread} {
			l.SetPlacement(other)
			if a, op, err := l.PutAssignment(t.Context(), "test", "a1", wish); err != nil || op != nil || a.Wish.Placement != placement {
				t.Errorf("%s, then %s: %+v, %+v, %v", placement, other, a, op, err)
			}
		}
		said := wish
		said.Placement = map[gpu.Placement]gpu.Placement{gpu.Pack: gpu.Spread, gpu.Spread: gpu.Pack}[placement]
		if _, _, err := l.PutAssignment(t.Context(), "test", "a1", said); gpu.CodeOf(err) != gpu.CodeConflict {
			t.Errorf("another placement: %v", err)
		}
	}
}

func TestPackAndSpread(t *testing.T) {
	cards := []gpu.ID{"0000:08:00.0", "0000:88:00.0", "0000:c1:00.0"}
	for placement, want := range map[gpu.Placement][]int{gpu.Pack: {4, 2, 0}, gpu.Spread: {2, 2, 2}} {
		l := newLab(t, sim.T4(string(cards[0]), 0), sim.T4(string(cards[1]), 0), sim.T4(string(cards[2]), 0))
		l.manage(cards...)
		addVMs(t, l, 7)
		var words []gpu.NamedWish
		for _, n := range []string{"1", "2", "3", "4", "5", "6"} {
			words = append(words, gpu.NamedWish{Name: "a" + n, Wish: gpu.Wish{VM: "vm" + n, Profile: "T4-4Q", Placement: placement}})
		}
		// Half of them one by one, half together: a plan counts what it has planned itself.
		for _, w := range words[:3] {
			l.attach(w.Name, w.Wish)
		}
		_, op, err := l.ApplyAssignments(t.Context(), "test", words, gpu.Idempotency{})
		if err != nil || op == nil {
			t.Fatal(err)
		}
		if done := l.finish(*op, nil); done.Status != operation.Done {
			t.Fatalf("%+v", done.Problem)
		}
		for i, id := range cards {
			if got := len(l.vgpusOn(id)); got != want[i] {
				t.Errorf("%s: %d on %s, want %d", placement, got, id, want[i])
			}
		}
		if placement == gpu.Pack {
			if a := l.attach("named", gpu.Wish{VM: "vm7", Profile: "T4-16Q", Placement: placement, GPU: cards[2]}); a.GPU != cards[2] {
				t.Errorf("%+v", a)
			}
		}
	}
}
