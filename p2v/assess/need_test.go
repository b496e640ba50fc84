package assess

import (
	"slices"
	"strings"
	"testing"

	"gpuvirt/p2v/report"
)

// The sample takes at most 16 GiB less a hundredth of the step, and 95 of 100 samples have
// at most 94/400 of 132 multiprocessors busy: the figures of the guide.
func TestNeedOfTheSample(t *testing.T) {
	n := Assess(sample(), Policy{}).Needs[0]
	peak := bytesOf(sample().Usage.GPUs[0].Memory.Max)
	if want := peak + bytesOf(float64(peak)*0.15); n.MemoryBytes != want || n.MemoryBasis != BasisWindow {
		t.Errorf("memory %d (%s), want %d", n.MemoryBytes, n.MemoryBasis, want)
	}
	if n.SMs != 32 || n.ComputeBasis != BasisActivity {
		t.Errorf("%d multiprocessors (%s), want 32", n.SMs, n.ComputeBasis)
	}
	if !n.Required || n.Class != Compute || n.WholeGPU {
		t.Errorf("%+v", n)
	}
}

func TestNeeds(t *testing.T) {
	for name, test := range map[string]struct {
		make func(*report.Report)
		want func(Need) bool
		line string // in the explanation
	}{
		"margin of 1 GiB at least": {
			func(r *report.Report) {
				r.Usage.GPUs[0].Memory, r.Processes[0].MemoryBytes = report.Series{Samples: 1, Max: gib}, 0
			},
			func(n Need) bool { return n.MemoryBytes == 2*gib }, "a margin of 1.0 GiB",
		},
		"not more than the GPU has": {
			func(r *report.Report) { r.Usage.GPUs[0].Memory.Add(75 * gib) },
			func(n Need) bool { return n.MemoryBytes == 80*gib }, "more than the GPU has",
		},
		"what is there now counts where it is more": {
			func(r *report.Report) { r.Processes[0].MemoryBytes = 20 * gib },
			func(n Need) bool { return n.MemoryBytes == 23*gib }, "20.0 GiB at most",
		},
		"a moment, with contexts": {
			func(r *report.Report) { r.Usage = nil },
			func(n Need) bool {
				return n.MemoryBasis == BasisMoment && n.MemoryBytes == (13*gib+512*mib)+bytesOf((13.5*gib)*0.15)
			}, "nothing is known of a peak",
		},
		"programs only, with contexts": {
			func(r *report.Report) {
				r.Usage.GPUs = nil
				r.Usage.Processes[0].Memory = report.Series{Samples: 1, Max: 20 * gib}
			},
			func(n Need) bool { return n.MemoryBasis == BasisWindow && n.MemoryBytes > 23*gib }, "512 MiB for each context",
		},
		"nothing known: all of it": {
			func(r *report.Report) { r.Usage = nil; r.Processes[0].MemoryBytes = 0 },
			func(n Need) bool { return n.MemoryBasis == BasisNone && n.MemoryBytes == 80*gib && n.SMs == 0 }, "not known",
		},
		"preallocator": {
			func(r *report.Report) {
				r.Processes[0].Preallocates = true
				r.Models = []report.Models{{SizeBytes: 15 * gib}}
			},
			func(n Need) bool { return n.MemoryBasis == BasisPreallocated }, "the largest has 15.0 GiB on disk",
		},
		"utilisation": {
			func(r *report.Report) { r.Usage.GPUs[0].Activity = false },
			func(n Need) bool { return n.ComputeBasis == BasisUtilisation && n.SMs == 32 }, "upper bound",
		},
		"multiprocessors by the model's name": {
			func(r *report.Report) { r.GPUs[0].Multiprocessors = 0 },
			func(n Need) bool { return n.Source.SMs == 132 && n.SMs == 32 }, "of its 132",
		},
		"multiprocessors unknown": {
			func(r *report.Report) { r.GPUs[0].Multiprocessors, r.GPUs[0].Model = 0, "NVIDIA Z1" },
			func(n Need) bool { return n.SMs == 0 && n.ComputeRatio > 0.2 }, "how many multiprocessors the GPU has is not known",
		},
		"idle": {
			func(r *report.Report) { r.Processes = nil; r.Usage.GPUs[0].SM = report.Series{Samples: 9} },
			func(n Need) bool { return !n.Required }, "did nothing for 2.0 days",
		},
		"idle, not known well": {
			func(r *report.Report) { r.Processes, r.Usage = nil, nil },
			func(n Need) bool { return !n.Required }, "not known well",
		},
		"worked for what was not seen": {
			func(r *report.Report) { r.Processes = nil },
			func(n Need) bool { return n.Required }, "for a program that was not seen",
		},
		"only watched": {
			func(r *report.Report) { r.Processes[0].Framework = "monitor"; r.Usage = nil },
			func(n Need) bool { return !n.Required }, "no program",
		},
		"graphics": {
			func(r *report.Report) { r.Processes[0].Type = "graphics" },
			func(n Need) bool { return n.Class == Graphics }, "graphics are drawn",
		},
		"engines": {
			func(r *report.Report) { r.Usage.GPUs[0].Decoder.Add(0.2); r.Usage.GPUs[0].OFA.Add(0.1) },
			func(n Need) bool { return n.Engines == Engines{Decoder: true, OFA: true} }, "decoder, optical flow",
		},
		"an encoder by word, where it was not watched": {
			func(r *report.Report) { r.Features.Encoder = []string{"x"}; r.Usage = nil },
			func(n Need) bool { return n.Engines.Encoder }, "encoder",
		},
		"GPUDirect takes the whole GPU": {
			func(r *report.Report) { r.Features.GPUDirectRDMA = []string{"x"} },
			func(n Need) bool { return n.WholeGPU && slices.Contains(n.Features, FeatureRDMA) }, "whole cards have it",
		},
		"NVLink between the GPUs of one program": {
			func(r *report.Report) {
				r.Features.NVLink = []string{"x"}
				r.GPUs = append(r.GPUs, report.GPU{PCI: "0000:42:00.0", Vendor: nvidia})
				r.Processes[0].GPUs = append(r.Processes[0].GPUs, "0000:42:00.0")
			},
			func(n Need) bool { return n.WholeGPU && slices.Equal(n.Together, []string{"0000:42:00.0"}) }, "1 other",
		},
		"NVLink, and one GPU each": {
			func(r *report.Report) { r.Features.NVLink = []string{"x"} },
			func(n Need) bool { return !n.WholeGPU && slices.Contains(n.Features, FeaturePeer) }, "peer-to-peer",
		},
		"two GPUs share what one process has": {
			func(r *report.Report) {
				r.Usage, r.Processes[0].MemoryBytes = nil, 40*gib
				r.Processes[0].GPUs = append(r.Processes[0].GPUs, "0000:42:00.0")
			},
			func(n Need) bool { return n.MemoryBytes > 20*gib && n.MemoryBytes < 24*gib }, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := sample()
			test.make(&in)
			n := Assess(in, Policy{}).Needs[0]
			if !test.want(n) {
				t.Errorf("got %+v", n)
			}
			var lines []string
			for _, l := range n.Explanation {
				lines = append(lines, l.Text)
			}
			if all := strings.Join(lines, "\n"); !strings.Contains(all, test.line) {
				t.Errorf("explained as\n%s\nwant %q in it", all, test.line)
			}
		})
	}
}

func TestPolicyOverrides(t *testing.T) {
	n := Assess(sample(), Policy{MemoryMarginRatio: 1, ComputeQuantile: 0.5}).Needs[0]
	if peak := bytesOf(sample().Usage.GPUs[0].Memory.Max); n.MemoryBytes != 2*peak || n.SMs >= 32 {
		t.Errorf("%+v", n)
	}
}
