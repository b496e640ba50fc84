package assess

import (
	"slices"
	"strings"
	"testing"
)

func TestVGPUDrivers(t *testing.T) {
	d := BuiltInDrivers()
	for _, test := range []struct {
		host, guest string
		want        Agreement
		certain     string
	}{
		{"525.85.07", "525.85.05", Compatible, "documented"},    // of one release
		{"525.85.07", "525.60.13", Compatible, "documented"},    // of one branch
		{"580.65.05", "580.65.06", Compatible, "documented"},    // of one release
		{"580.65.05", "580.82.07", Unknown, ""},                 // of one branch, which the notes do not name
		{"580.65.05", "570.133.10", Compatible, "documented"},   // the branch before
		{"580.65.05", "535.161.05", Compatible, "inferred"},     // the long-term branch before
		{"580.65.05", "550.90.07", Incompatible, "documented"},  // two before
		{"550.90.05", "535.161.08", Compatible, "inferred"},     //
		{"550.90.05", "525.85.05", Incompatible, "inferred"},    // Microsoft: 17 goes with 16 only
		{"570.133.10", "580.65.06", Incompatible, "documented"}, // newer
		{"595.71.03", "580.65.06", Compatible, "inferred"},
		{"999.1", "580.65.06", Unknown, ""},
		{"575.57.08", "570.133.10", Unknown, ""}, // no branch of vGPU software
		{"", "580.65.06", Unknown, ""},
		{"580.65.05", "", Unknown, ""},
		{"580.65.05", "latest", Unknown, ""},
	} {
		got := d.VGPU(test.host, test.guest)
		if got.State != test.want || got.Certain != test.certain || got.Why == "" {
			t.Errorf("host %q, guest %q: %+v, want %s %s", test.host, test.guest, got, test.want, test.certain)
		}
	}
	if got := d.VGPU("580.65.05", "").Allowed; !slices.Equal(got, []int{580, 570, 535}) {
		t.Errorf("allowed: %v", got)
	}
}

// Each row says something, and points at rows that are there.
func TestDriverTable(t *testing.T) {
	d := BuiltInDrivers()
	for i, b := range d.Branches {
		if i > 0 && d.Branches[i-1].Branch >= b.Branch {
			t.Errorf("branch %d is out of order", b.Branch)
		}
		if (b.VGPU == "") != (b.Certain == "") {
			t.Errorf("branch %d: a vGPU release says how certain its rule is, others have none", b.Branch)
		}
		for _, n := range []int{b.Previous, b.PreviousLongTerm} {
			if row, ok := d.branch(n); n != 0 && (!ok || row.VGPU == "") {
				t.Errorf("branch %d names %d, which is no release of vGPU software", b.Branch, n)
			}
		}
		if row, ok := d.branch(b.PreviousLongTerm); ok && (!row.LongTerm || !b.LongTerm) {
			t.Errorf("branch %d: both have to be long-term", b.Branch)
		}
	}
}

func TestCardDrivers(t *testing.T) {
	d := BuiltInDrivers()
	for _, test := range []struct {
		driver, flavour, capability string
		want                        Agreement
	}{
		{"550.90.07", "open", "9.0", Compatible},
		{"470.1", "proprietary", "9.0", Incompatible},
		{"550.90.07", "open", "10.0", Incompatible},
		{"570.1", "proprietary", "12.0", Incompatible},
		{"570.1", "unknown", "12.0", Compatible},
		{"590.1", "proprietary", "7.0", Incompatible},
		{"550.90.07", "open", "13.0", Unknown},
		{"550.90.07", "open", "", Unknown},
		{"", "open", "9.0", Unknown},
	} {
		if got := d.Card(test.driver, test.flavour, test.capability); got.State != test.want {
			t.Errorf("%+v: %+v", test, got)
		}
	}
}

func TestExtendDrivers(t *testing.T) {
	d, err := BuiltInDrivers().Extend([]byte(`{"branches": [{"branch": 620, "vgpu": "21", "previous": 595, "certain": "documented"}, {"branch": 580, "vgpu": "19", "same_branch": true, "certain": "documented"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if d.VGPU("620.1.2", "595.71.03").State != Compatible || d.VGPU("580.65.05", "580.82.07").State != Compatible || d.VGPU("580.65.05", "570.1").State == Compatible {
		t.Error("the operator's rows do not count")
	}
	if BuiltInDrivers().VGPU("620.1.2", "595.71.03").State != Unknown {
		t.Error("the built-in table was changed")
	}
	for text, want := range map[string]string{
		`{"branch": []}`:                                   "unknown field",
		`{"branches": [{"branch": 5}]}`:                    "5 is no branch",
		`{"branches": [{"branch": 620, "previous": 620}]}`: "is not older",
		`{"architectures": [{"since": 1}]}`:                "no compute_capability",
	} {
		if _, err := d.Extend([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestRequiredCUDA(t *testing.T) {
	for text, want := range map[string][2]int{
		"cuda>=12.4 brand=tesla,driver>=470,driver<471": {12, 4},
		"cuda>=11":  {11, 0},
		"brand=x":   {},
		"cuda>=x.4": {},
	} {
		if got, ok := requiredCUDA(text); got[0] != want[0] && ok || ok != (want != [2]int{}) {
			t.Errorf("%s: %v %v", text, got, ok)
		}
	}
}

func TestCards(t *testing.T) {
	for model, want := range map[string]int{
		"NVIDIA H100 PCIe": 114, "NVIDIA H100 80GB HBM3": 132, "NVIDIA A100-SXM4-80GB": 108, "NVIDIA A30": 56, "NVIDIA L4": 58, "NVIDIA L40S": 142,
		"NVIDIA RTX PRO 6000 Blackwell Server Edition": 188, "NVIDIA RTX 6000 Ada Generation": 142, "Tesla T4": 40, "NVIDIA RTX A6000": 84, "NVIDIA GB200": 0, "": 0,
	} {
		if got := cardOf(model).SMs; got != want {
			t.Errorf("%q: %d, want %d", model, got, want)
		}
	}
	if !sameModel("NVIDIA A30", "A30") || sameModel("NVIDIA A30", "NVIDIA A30X") || sameModel("", "") || sameModel("NVIDIA", "nvidia") {
		t.Error("models")
	}
}
