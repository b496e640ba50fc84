package guest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
)

// A server with four GPUs of which the VM gets partitions for the last two, by address.
func pinned() (report.Report, assess.Plan) {
	var r report.Report
	var p assess.Plan
	r.GPUs = append(r.GPUs, report.GPU{Index: -1, PCI: "0000:01:00.0", Model: "VGA"})
	for i := range 4 {
		pci := fmt.Sprintf("0000:%d1:00.0", i+2)
		r.GPUs = append(r.GPUs, report.GPU{
			Index: i, PCI: pci, Model: "A", UUID: fmt.Sprintf("GPU-%d", i),
			Instances: []report.MIGInstance{{UUIDs: []string{fmt.Sprintf("MIG-%da", i), fmt.Sprintf("MIG-%db", i)}}},
		})
		f := assess.Fitting{Need: assess.Need{Source: assess.NeedSource{PCI: pci}}}
		if i > 1 {
			f.Choice = &assess.Choice{Candidate: assess.Candidate{Profile: "X"}}
		}
		p.Fittings = append(p.Fittings, f)
	}
	return r, p
}

func TestPins(t *testing.T) {
	const same, person = "nobody", "person"
	for _, c := range []struct{ key, value, line, want string }{
		{"CUDA_VISIBLE_DEVICES", "2", "Environment=CUDA_VISIBLE_DEVICES=2", "Environment=CUDA_VISIBLE_DEVICES=0"},
		{"CUDA_VISIBLE_DEVICES", "3,2", `Environment="A=3,2" "CUDA_VISIBLE_DEVICES=3,2" B=3,2`, `Environment="A=3,2" "CUDA_VISIBLE_DEVICES=1,0" B=3,2`},
		{"NVIDIA_VISIBLE_DEVICES", "GPU-3", "  NVIDIA_VISIBLE_DEVICES: 'GPU-3' # x", "  NVIDIA_VISIBLE_DEVICES: '1' # x"},
		{"NVIDIA_VISIBLE_DEVICES", "MIG-2b", "NVIDIA_VISIBLE_DEVICES=MIG-2b", "NVIDIA_VISIBLE_DEVICES=0"},
		{"CUDA_VISIBLE_DEVICES", "MIG-GPU-3/7/0", "CUDA_VISIBLE_DEVICES=MIG-GPU-3/7/0", "CUDA_VISIBLE_DEVICES=1"},
		{"CUDA_VISIBLE_DEVICES", "MIG-2a,MIG-2b", "CUDA_VISIBLE_DEVICES=MIG-2a,MIG-2b", person}, // they would be one
		{"CUDA_VISIBLE_DEVICES", "0", "CUDA_VISIBLE_DEVICES=0", person},                         // which the VM has nothing for
		{"CUDA_VISIBLE_DEVICES", "1,2", "CUDA_VISIBLE_DEVICES=1,2", person},
		{"CUDA_VISIBLE_DEVICES", "9", "CUDA_VISIBLE_DEVICES=9", person},
		{"CUDA_VISIBLE_DEVICES", "02", "CUDA_VISIBLE_DEVICES=02", person},
		{"CUDA_VISIBLE_DEVICES", "2", "CUDA_VISIBLE_DEVICES=2 CUDA_VISIBLE_DEVICES=2", person},
		{"CUDA_VISIBLE_DEVICES", "2", "CUDA_VISIBLE_DEVICES=23", person}, // it is not what the line says
		{"CUDA_VISIBLE_DEVICES", "2", "", person},
		{"HIP_VISIBLE_DEVICES", "2", "HIP_VISIBLE_DEVICES=2", person},
		{"--gpus", "device=2,3", `docker run --gpus '"device=2,3"' x`, `docker run --gpus '"device=0,1"' x`},
		{"--gpus", "2", "docker run --gpus 2 x", same},
		{"--gpus", "3", "docker run --gpus 3 x", person},
		{"device_ids", "GPU-2", "      - 'GPU-2'  # the first", "      - '0'  # the first"},
		{"device_ids", "2,GPU-3", `device_ids: ['2', "GPU-3"]`, `device_ids: ['0', "1"]`},
		{"device_ids", "2,3", `device_ids: ['2', "GPU-3"]`, person},
		{"cdi", "nvidia.com/gpu=3", "AddDevice=nvidia.com/gpu=3", "AddDevice=nvidia.com/gpu=1"},
		{"cdi", "nvidia.com/mig-1g=3", "AddDevice=nvidia.com/mig-1g=3", person},
		{"nvidia-smi -i", "0000:51:00.0", "ExecStartPre=nvidia-smi -i 0000:51:00.0 -q", "ExecStartPre=nvidia-smi -i 1 -q"},
		{"nvidia-smi -i", "00000000:41:00.0", "nvidia-smi --id=00000000:41:00.0", "nvidia-smi --id=0"},
		{"device", "/dev/nvidia2", "DeviceAllow=/dev/nvidia2 rw", person}, // device files are counted otherwise
		{"uuid", "GPU-2", "ExecStart=serve --gpu GPU-2", person},
		{"BusID", "PCI:65:0:0", `BusID "PCI:65:0:0"`, person}, // no other change has seen to it
		{"CUDA_VISIBLE_DEVICES", "\xff", "CUDA_VISIBLE_DEVICES=\xff", person},
	} {
		t.Run(c.line, func(t *testing.T) {
			r, p := pinned()
			r.Pins = []report.Pin{{Where: "/etc/x:7", Key: c.key, Value: c.value, Kind: "index", Line: c.line}}
			p.Changes = []assess.GuestChange{{ID: "pins", What: "w", Why: "w", Undo: "u", Automatic: true}}
			edits, left, err := Edits(r, p, Options{})
			if err != nil {
				t.Fatal(err)
			}
			check(t, p, edits, left)
			got := ""
			for _, e := range edits {
				if e.Path != "/etc/x" || e.Old != c.line {
					t.Errorf("%+v", e)
				}
				got += e.New
			}
			for _, l := range left {
				got += string(l.By)
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// What is not told of one server, or of all, is a person's.
func TestPinsUncertain(t *testing.T) {
	pin := report.Pin{Where: "/etc/x:7", Key: "CUDA_VISIBLE_DEVICES", Value: "2", Kind: "index", Line: "CUDA_VISIBLE_DEVICES=2"}
	uuid := report.Pin{Where: "/etc/x:8", Key: "CUDA_VISIBLE_DEVICES", Value: "GPU-3", Kind: "gpu-uuid", Line: "CUDA_VISIBLE_DEVICES=GPU-3"}
	for name, c := range map[string]struct {
		change func(*report.Report, *assess.Plan)
		want   string
	}{
		"as it is":        {func(*report.Report, *assess.Plan) {}, "CUDA_VISIBLE_DEVICES=0 CUDA_VISIBLE_DEVICES=1"},
		"other models":    {func(r *report.Report, _ *assess.Plan) { r.GPUs[1].Model = "B" }, "CUDA_VISIBLE_DEVICES=1 person"}, // its number is not certain, its UUID is
		"other profiles":  {func(_ *report.Report, p *assess.Plan) { p.Fittings[3].Choice.Profile = "Y" }, "person person"},
		"one GPU":         {func(_ *report.Report, p *assess.Plan) { p.Fittings[2].Choice = nil }, "CUDA_VISIBLE_DEVICES=0 person"},
		"no GPU":          {func(_ *report.Report, p *assess.Plan) { p.Fittings = nil }, "person person"},
		"two of one UUID": {func(r *report.Report, _ *assess.Plan) { r.GPUs[1].UUID = "GPU-3" }, "CUDA_VISIBLE_DEVICES=0 person"},
		"a process":       {func(r *report.Report, _ *assess.Plan) { r.Pins[0].Where, r.Pins[1].Where = "process 7", "container x" }, "person person"},
		"all":             {func(r *report.Report, _ *assess.Plan) { r.Pins[0].Kind, r.Pins[1].Kind = "all", "all" }, "nobody"},
		"a strange file":  {func(r *report.Report, _ *assess.Plan) { r.Pins[0].Where = "/etc/a'b:7" }, "CUDA_VISIBLE_DEVICES=1 person"},
		"made by others":  {func(r *report.Report, _ *assess.Plan) { r.Pins[0].Where = "/run/systemd/system/x.service:7" }, "CUDA_VISIBLE_DEVICES=1 person"},
		"twice": {func(r *report.Report, _ *assess.Plan) {
			again := r.Pins[0]
			again.Where = "/etc/x:9"
			r.Pins = append(r.Pins, again)
		}, "CUDA_VISIBLE_DEVICES=0 CUDA_VISIBLE_DEVICES=1"},
		"two in a line": {func(r *report.Report, _ *assess.Plan) {
			line := "CUDA_VISIBLE_DEVICES=2 NVIDIA_VISIBLE_DEVICES=3"
			r.Pins[0].Line = line
			r.Pins[1] = report.Pin{Where: r.Pins[0].Where, Key: "NVIDIA_VISIBLE_DEVICES", Value: "3", Line: line}
		}, "CUDA_VISIBLE_DEVICES=0 NVIDIA_VISIBLE_DEVICES=1"},
	} {
		t.Run(name, func(t *testing.T) {
			r, p := pinned()
			r.Pins = []report.Pin{pin, uuid}
			p.Changes = []assess.GuestChange{{ID: "pins", What: "w", Why: "w", Undo: "u", Automatic: true}}
			c.change(&r, &p)
			edits, left, err := Edits(r, p, Options{})
			if err != nil {
				t.Fatal(err)
			}
			check(t, p, edits, left)
			var got []string
			for _, e := range edits {
				got = append(got, e.New)
			}
			for _, l := range left {
				for range max(1, len(l.Change.Items)) {
					got = append(got, string(l.By))
				}
			}
			if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// With one GPU there and here, its device file is certain too.
func TestPinOfDevice(t *testing.T) {
	r := report.Report{
		GPUs: []report.GPU{{Index: 0, PCI: "0000:41:00.0"}},
		Pins: []report.Pin{{Where: "/etc/x:1", Key: "device", Value: "/dev/nvidia1", Line: "- /dev/nvidia1:/dev/nvidia1 /dev/nvidia11"}},
	}
	p := assess.Plan{
		Fittings: []assess.Fitting{{Need: assess.Need{Source: assess.NeedSource{PCI: "0000:41:00.0"}}, Choice: &assess.Choice{}}},
		Changes:  []assess.GuestChange{{ID: "pins", What: "w", Why: "w", Undo: "u", Automatic: true}},
	}
	edits, _, err := Edits(r, p, Options{})
	if err != nil || len(edits) != 1 || edits[0].New != "- /dev/nvidia0:/dev/nvidia0 /dev/nvidia11" {
		t.Errorf("%v %+v", err, edits)
	}
}

// There are never more edits than are made at once: what is over is a person's.
func TestManyEdits(t *testing.T) {
	r, p := pinned()
	for i := range 300 {
		r.Pins = append(r.Pins, report.Pin{Where: fmt.Sprintf("/etc/%d:1", i), Key: "CUDA_VISIBLE_DEVICES", Value: "2", Line: "CUDA_VISIBLE_DEVICES=2"})
	}
	p.Changes = []assess.GuestChange{{ID: "pins", What: "w", Why: "w", Undo: "u", Automatic: true}}
	edits, left, err := Edits(r, p, Options{})
	if err != nil || len(edits) != convert.MaxEdits || len(left) != 1 || len(left[0].Change.Items) != 100 || left[0].By != ByPerson {
		t.Errorf("%v, %d edits, %d left", err, len(edits), len(left))
	}
}

// Each NIC that the VM has keeps its name, and nothing that is built of it gets that name.
func TestNICNames(t *testing.T) {
	r := bare()
	r.NICs = append(r.NICs, report.NIC{Name: "a b", MAC: "52:54:00:aa:bb:20", Kind: "physical"}, report.NIC{Name: "../x", MAC: "52:54:00:aa:bb:21", Kind: "physical"})
	got := made(t, r, assess.Plan{}, Options{}, assess.GuestChange{ID: "nic-names", Automatic: true})
	link := func(name, mac string) string {
		return "write /etc/systemd/network/10-gpuvirt-" + name + ".link # Of the move to a VM: the NIC keeps its name. [Match] Driver=virtio_net MACAddress=" + mac + " [Link] Name=" + name
	}
	want := []string{
		link("eth2", "52:54:00:aa:bb:02"), link("eth10", "52:54:00:aa:bb:10"),
		`person ["a b 52:54:00:aa:bb:20" "../x 52:54:00:aa:bb:21"]`,
		`person ["ib0 00:11" "eth12 01:54:00:aa:bb:10" "eth13 00:00:00:00:00:00"]`,
		`person ["eth11 52:54:00:aa:bb:10"]`, `person ["wlp1s0 52:54:00:aa:bb:03"]`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
