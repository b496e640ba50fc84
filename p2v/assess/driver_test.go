package assess

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	d, err := BuiltInDrivers().Extend("branch=620 vgpu=21 previous=595 certain=documented", "branch=580 vgpu=19 same_branch=true", "compute_capability=13.0 since=620 modules=open")
	if err != nil {
		t.Fatal(err)
	}
	if d.VGPU("620.1.2", "595.71.03").State != Compatible || d.VGPU("580.65.05", "580.82.07").State != Compatible || d.VGPU("580.65.05", "570.1").State == Compatible {
		t.Error("the operator's rows do not count")
	}
	if c := d.VGPU("580.65.05", "580.82.07"); c.Certain != "inferred" {
		t.Errorf("nobody has said that it was read: %+v", c)
	}
	if d.Card("595.1", "open", "13.0").State != Incompatible || d.Card("620.1", "open", "13.0").State != Compatible {
		t.Error("the operator's architecture does not count")
	}
	if BuiltInDrivers().VGPU("620.1.2", "595.71.03").State != Unknown {
		t.Error("the built-in table was changed")
	}
	for _, test := range [][2]string{
		{"", "branch or compute_capability"},
		{"since=1", `"since" is none of branch`},
		{"branch", `"branch" is not of the form name=value`},
		{"branch=620 vgup=21", `"vgup" is none of branch, vgpu, long_term`},
		{"branch=620 since=410", `"since" is none of branch,`},
		{"branch=620 vgpu=21 vgpu=22", "vgpu: it stands there twice"},
		{"branch=5", "5 is no branch"},
		{"branch=x", `branch: "x" is no whole number`},
		{"branch=620 previous=620", "a branch before 620 is not older"},
		{"branch=620 previous=-1", "-1 is no branch"},
		{"branch=620 previous_long_term=7", "7 is no branch"},
		{"branch=620 long_term=yes", `long_term: "yes" is neither true nor false`},
		{"branch=620 vgpu=x", `vgpu: "x" is no release`},
		{"branch=620 cuda=new", `cuda: "new" is no version`},
		{"branch=620 certain=sure", `certain: "sure" is none of documented, inferred`},
		{"compute_capability=9 since=520", `compute_capability: "9" is no version`},
		{"compute_capability=9.0", "since: 0 is no branch"},
		{"compute_capability=9.0 since=5 until=3", "since: 5 is no branch"},
		{"compute_capability=9.0 since=520 until=470", "until: 470 is older than 520"},
		{"compute_capability=9.0 since=520 modules=any", `modules: "any" is none of open, proprietary`},
	} {
		text, want := test[0], test[1]
		if _, err := d.Extend(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := d.Extend("branch=620 vgpu=21", "branch=620 vgpu=22"); err == nil || !strings.Contains(err.Error(), "two rows of branch 620") {
		t.Error(err)
	}
	if _, err := d.Extend("compute_capability=9.0 since=520", "compute_capability=9.0 since=530"); err == nil || !strings.Contains(err.Error(), "two rows of compute capability 9.0") {
		t.Error(err)
	}
}

// A row is written in one way, whatever way it was written.
func TestDriverRow(t *testing.T) {
	for text, want := range map[string]string{
		"  previous=595 vgpu=21\tbranch=0620 long_term=false ": "branch=620 vgpu=21 previous=595",
		"since=520 compute_capability=9.0":                     "compute_capability=9.0 since=520",
	} {
		got, err := DriverRow(text)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
		if again, err := DriverRow(got); err != nil || again != got {
			t.Errorf("%q: %q, %v", got, again, err)
		}
	}
}

// All figures of the policy can be set, and are named as they are in an assessment.
func TestFigures(t *testing.T) {
	var names []string
	p := Policy{}.WithDefaults()
	for _, f := range Figures() {
		names = append(names, f.Name)
		switch v := f.Of(&p).(type) {
		case *float64:
			*v = f.Most
		case *uint64:
			*v = uint64(f.Most)
		case *bool:
			*v = true
		default:
			t.Errorf("%s is %T", f.Name, v)
		}
	}
	if p != p.WithDefaults() {
		t.Errorf("the most that can be set is not taken: %+v, %+v", p, p.WithDefaults())
	}
	text, err := json.Marshal(p)
	var fields map[string]any
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	slices.Sort(names)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(fields)), names); diff != "" || err != nil {
		t.Error(err, diff)
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
