package assess

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/report"
)

// What gpuvirt rewrites and what a person has to see to are told apart, each with its places.
func TestPinsOfPlan(t *testing.T) {
	sure := report.Pin{Where: "/etc/default/infer:3", Key: "CUDA_VISIBLE_DEVICES", Value: "GPU-1", Kind: "gpu-uuid", Line: "CUDA_VISIBLE_DEVICES=GPU-1"}
	again := sure
	again.Where = "/etc/infer.env:1"
	process := report.Pin{Where: "process 812", Key: "CUDA_VISIBLE_DEVICES", Value: "GPU-1", Kind: "gpu-uuid"}
	bus := report.Pin{Where: "/etc/X11/xorg.conf:7", Key: "BusID", Value: "PCI:65:0:0", Kind: "pci", Line: `BusID "PCI:65:0:0"`}
	right := report.Pin{Where: "/etc/infer.env:9", Key: "CUDA_VISIBLE_DEVICES", Value: "0", Kind: "index", Line: "CUDA_VISIBLE_DEVICES=0"}
	const rewritten = `Rewrite the GPUs that are named to their numbers in the VM, in 2 lines of "/etc/default/infer", "/etc/infer.env".`
	const byHand = "Change files on the server before the cut-over, or in the VM after it; start processes and containers with the new value."
	for name, c := range map[string]struct {
		pins []report.Pin
		none bool // the VM has no GPU
		want []string
	}{
		"all are right":      {pins: []report.Pin{right, {Where: "x", Kind: "all"}}},
		"all are rewritten":  {pins: []report.Pin{sure, again, right}, want: []string{"pins offline true 2 " + rewritten}},
		"another edit does":  {pins: []report.Pin{bus}},
		"one is of a person": {pins: []report.Pin{sure, again, process}, want: []string{"pins offline true 2 " + rewritten, `pins-by-hand first-boot false 1 Name GPUs as the VM has them, in 1 place that gpuvirt does not rewrite: "process 812". ` + byHand}},
		"no GPU":             {pins: []report.Pin{sure}, none: true, want: []string{`pins-by-hand first-boot false 1 Take out the GPUs that are named, as the VM has none, in 1 place that gpuvirt does not rewrite: "/etc/default/infer:3". ` + byHand}},
	} {
		t.Run(name, func(t *testing.T) {
			in, w := sample(), good()
			in.Pins = c.pins
			in.Configs = []report.Config{{Path: "/etc/X11/xorg.conf", Kind: "xorg"}}
			if c.none {
				w.Partitions = []WishPartition{{Source: in.GPUs[0].PCI, None: true}}
			}
			var got []string
			for _, change := range NewPlan(in, w, hostOf(), Policy{}, BuiltInDrivers()).Changes {
				if strings.HasPrefix(change.ID, "pins") {
					got = append(got, fmt.Sprint(change.ID, " ", change.When, " ", change.Automatic, " ", len(change.Items), " ", change.What))
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
