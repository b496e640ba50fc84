//go:build lab

package lab

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/test/lab/nvml"
)

// All that a card of NVIDIA loses at a boot comes back in the one order that works: MIG's
// mode, virtual functions, instances, types; and before libvirt starts the guest that has
// one of them (T09, T10). The library says that it is a card with MIG, and the kernel that it
// has functions that take types: what is between the two nothing plays.
func TestBootOrder_T10(t *testing.T) {
	ctx := Scenario(t, hypervisor, 8*time.Minute)
	if hypervisor.Suite() == "bookworm" {
		t.Skip("its libvirt gives no VM such a function")
	}
	fresh(ctx, t)
	must(t, hypervisor.LoadVGPU(ctx))
	declareCards(ctx, t)
	card, err := gpu.ParseAddress(VGPUCard)
	must(t, err)
	installNVML(ctx, t, nvml.GPU{Address: card, Model: model("A100-PCIE-40GB"), Resets: true})
	manage(ctx, t, VGPUCard)

	done(ctx, t, call(ctx, t, http.MethodPut, migPath(card), cut()))
	done(ctx, t, call(ctx, t, http.MethodPut, sriovPath(VGPUCard), numVFs(VFs)))
	done(ctx, t, call(ctx, t, http.MethodPut, migPath(card), cut("3g.20gb")))
	_, err = hypervisor.DefineGuest(ctx, "pci", GuestOptions{Ports: 4, Autostart: true, Start: true})
	must(t, err)
	attach(ctx, t, "gfx", "pci", "LAB-8Q")
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", VGPUKind, 1))
	was := layout(ctx, t, card)

	must(t, hypervisor.Reboot(ctx))
	must(t, hypervisor.WaitReady(ctx))
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", VGPUKind, 1))
	if now := layout(ctx, t, card); now != was || now == "" {
		t.Errorf("the layout is %q, and was %q", now, was)
	}
	if got := restored(ctx, t); !slices.Equal(got, []string{"MIG mode", "virtual functions", "3g.20gb", "LAB-8Q"}) {
		t.Errorf("restored in this order: %q", got)
	}
	ended, began := moment(ctx, t, "gpuvirt-restore.service", "ExecMainExitTimestampMonotonic"), moment(ctx, t, "libvirtd.service", "ExecMainStartTimestampMonotonic")
	if ended == 0 || began == 0 || ended > began {
		t.Errorf("the restore ended at %d, and libvirt began at %d", ended, began)
	}

	detach(ctx, t, "gfx")
	done(ctx, t, call(ctx, t, http.MethodPut, migPath(card), cut()))
	done(ctx, t, call(ctx, t, http.MethodPut, sriovPath(VGPUCard), numVFs(0)))
}

// restored is what the restore of this boot has put back, in its order.
func restored(ctx context.Context, t *testing.T) (out []string) {
	t.Helper()
	for line := range strings.Lines(run(ctx, t, "journalctl -b -u gpuvirt-restore -o cat")) {
		switch {
		case strings.Contains(line, `msg="MIG mode restored"`):
			out = append(out, "MIG mode")
		case strings.Contains(line, `msg="virtual functions restored"`):
			out = append(out, "virtual functions")
		case strings.Contains(line, `msg="partition restored"`):
			_, profile, _ := strings.Cut(strings.TrimSpace(line), " profile=")
			out = append(out, strings.Trim(profile, `"`))
		}
	}
	return out
}
