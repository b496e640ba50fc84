package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
)

// What layoutLine writes of a card without instances.
const (
	off  = "MIG off"
	none = "MIG on, no instances"
)

// cutAs is a card with a layout as "mig set" takes it, with the compute instances that
// the daemon would tell of.
func cutAs(t *testing.T, id, layout string) (api.GPU, api.MIG) {
	t.Helper()
	g := api.GPU{ID: id, Vendor: "NVIDIA", Model: "card", Managed: true, MIG: api.MIGMode{Capable: true}}
	m := api.MIG{GPU: id, Actual: api.Layout{Instances: []api.LayoutInstance{}}}
	switch layout {
	case none:
		m.Actual.Enabled = true
	case off:
	default:
		var err error
		if m.Actual, err = layoutArgs(strings.Fields(layout)); err != nil {
			t.Fatal(err)
		}
	}
	for i, in := range m.Actual.Instances {
		m.Actual.Instances[i].Compute = computeWish(in)
	}
	return g, m
}

// A host of cards that are cut, as the fake daemon tells of it.
func (f *fake) cut(t *testing.T, layouts ...string) {
	t.Helper()
	var all []api.GPU
	for i, layout := range layouts {
		g, m := cutAs(t, "0000:4"+string(rune('0'+i))+":00.0", layout)
		all = append(all, g)
		f.answers["GET gpus/"+g.ID] = g
		f.answers["GET gpus/"+g.ID+"/mig"] = m
		f.answers["PUT gpus/"+g.ID+"/mig"] = api.Plan{Summary: "lay out", Changes: true}
	}
	f.answers["GET gpus"] = list(all...)
}

var layouts = map[string][]string{
	"a100":       {"1g.5gb@0 3g.20gb@4=1c.3g.20gb,2c.3g.20gb", "4g.20gb@0=2c.4g.20gb,2c.4g.20gb 1g.5gb+me@6", off, none},
	"shared":     {"3g.20gb@0=1c.3g.20gb,1c.3g.20gb 3g.20gb@4=1c.3g.20gb", "3g.20gb@0=1c.3g.20gb 3g.20gb@4=1c.3g.20gb,1c.3g.20gb"},
	"h100":       {"1g.10gb@6 1g.20gb@4 3g.40gb@0", "1g.10gb@0 1g.20gb@2 3g.40gb@4", "7g.80gb@0=1c.7g.80gb,2c.7g.80gb,4c.7g.80gb"},
	"rtx":        {"1g.24gb-me@0 1g.24gb+me.all@3 2g.48gb+gfx@6=1c.2g.48gb+gfx,1c.2g.48gb+gfx", "2g.48gb-me@0 1g.24gb+gfx@9", "4g.96gb@0"},
	"alike":      {"1g.5gb@0 1g.5gb@6", "1g.5gb@1 1g.5gb@6", "1g.5gb@0 1g.5gb@6"},
	"all in one": {off, off},
}

// What is exported asks for just what is there when it is applied, to the place.
func TestMIGExportRoundTrip(t *testing.T) {
	for name, cards := range layouts {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.cut(t, cards...)
			out := session{args: []string{"mig", "export"}}
			assert := session{args: []string{"mig", "assert", "-f", "-"}}
			apply := session{args: []string{"mig", "apply", "--dry-run", "-f", "-"}}
			for _, s := range []*session{&out, &assert, &apply} {
				s.stdin = out.stdout
				if s.run(t.Context(), socket); s.code != exitDone {
					t.Error(s)
				}
			}
			var asked []string
			for _, r := range f.requests {
				var l api.Layout
				_, body, _ := strings.Cut(r, " {")
				if err := json.Unmarshal([]byte("{"+body), &l); err != nil {
					t.Fatal(err)
				}
				asked = append(asked, layoutLine(l))
			}
			if diff := cmp.Diff(cards, asked); diff != "" {
				t.Errorf("%s%s", diff, &out)
			}
		})
	}
}

// Without the comments the file counts what is there, as mig-parted reads it. Cards that
// are cut alike share an entry.
func TestMIGExportForMIGParted(t *testing.T) {
	f, socket := startFake(t)
	f.cut(t, "1g.5gb@0 3g.20gb@4=1c.3g.20gb,2c.3g.20gb", off, "1g.5gb@1 3g.20gb@4=1c.3g.20gb,2c.3g.20gb", none, "1g.5gb@0 3g.20gb@4=1c.3g.20gb,2c.3g.20gb")
	s := session{args: []string{"mig", "export"}}
	s.run(t.Context(), socket)
	counts := "\n      mig-devices:\n        1c.3g.20gb: 1\n        1g.5gb: 1\n        2c.3g.20gb: 1"
	want := `version: v1
mig-configs:
  current:
    - devices: [0, 4]
      # gpuvirt-gpus: 0000:40:00.0 0000:44:00.0
      mig-enabled: true
      # gpuvirt: 1g.5gb@0 3g.20gb@4=1c.3g.20gb,2c.3g.20gb` + counts + `
    - devices: [1]
      # gpuvirt-gpus: 0000:41:00.0
      mig-enabled: false
      mig-devices: {}
    - devices: [2]
      # gpuvirt-gpus: 0000:42:00.0
      mig-enabled: true
      # gpuvirt: 1g.5gb@1 3g.20gb@4=1c.3g.20gb,2c.3g.20gb` + counts + `
    - devices: [3]
      # gpuvirt-gpus: 0000:43:00.0
      mig-enabled: true
      mig-devices: {}
`
	if diff := cmp.Diff(want, s.stdout); diff != "" {
		t.Error(diff)
	}
	// The places alone make a difference.
	f.cut(t, "1g.5gb@1 3g.20gb@4=1c.3g.20gb,2c.3g.20gb", off, "1g.5gb@1 3g.20gb@4=2c.3g.20gb,1c.3g.20gb", none, "1g.5gb@0 3g.20gb@4=3g.20gb")
	again := session{args: []string{"mig", "assert", "-f", "-"}, stdin: s.stdout}
	again.run(t.Context(), socket)
	if again.code != exitFailed || !strings.Contains(again.stderr, "not cut as - says: 0000:40:00.0, 0000:44:00.0") {
		t.Error(&again)
	}
}

// What nobody can ask for is not exported as if it were something else.
func TestMIGExportRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		line   string
		edit   func(*api.Layout)
		stderr string
		code   int
	}{
		"all":                 {"mig export", func(*api.Layout) {}, "", exitDone},
		"one":                 {"mig export 0000:41:00.0", func(l *api.Layout) { l.Instances[0].Compute = nil }, "", exitDone},
		"no compute instance": {"mig export", func(l *api.Layout) { l.Instances[0].Compute = nil }, "cannot export gpu 0000:40:00.0: instance 1g.5gb@0 has no compute instance", exitFailed},
		"unlisted profile":    {"mig export", func(l *api.Layout) { l.Instances[1].Profile = "19" }, "cannot export gpu 0000:40:00.0: instance 19@4 is of a profile that its driver does not list", exitFailed},
		"unlisted compute":    {"mig export", func(l *api.Layout) { l.Instances[1].Compute = []string{"2"} }, "instance 3g.20gb@4 is of a profile", exitFailed},
		"no such gpu":         {"mig export 0000:ff:00.0", func(*api.Layout) {}, "does not exist", exitFailed},
		"no gpu of NVIDIA":    {"mig export mbochs", func(*api.Layout) {}, "cannot export gpu mbochs (mbochs): MIG cannot cut it", exitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.cut(t, "1g.5gb@0 3g.20gb@4", off)
			_, m := cutAs(t, "0000:40:00.0", "1g.5gb@0 3g.20gb@4")
			tt.edit(&m.Actual)
			f.answers["GET gpus/0000:40:00.0/mig"] = m
			s := session{args: strings.Fields(tt.line)}
			s.run(t.Context(), socket)
			if s.code != tt.code || !strings.Contains(s.stderr, tt.stderr) || tt.code != exitDone && s.stdout != "" {
				t.Error(&s)
			}
			if strings.Contains(s.stdout, "devices: [0]") != (name == "all") && tt.code == exitDone {
				t.Error(&s)
			}
		})
	}
	f, socket := startFake(t)
	f.answers["GET gpus"] = list(gpus[0])
	s := session{args: []string{"mig", "export"}}
	if s.run(t.Context(), socket); s.code != exitFailed || !strings.Contains(s.stderr, "no gpu that MIG can cut") {
		t.Error(&s)
	}
}

// An instance without compute instances is not what was asked for.
func TestMIGAssertComputeMissing(t *testing.T) {
	f, socket := startFake(t)
	_, m := cutAs(t, "0000:40:00.0", "1g.5gb@0")
	m.Actual.Instances[0].Compute = nil
	f.cut(t, "1g.5gb@0")
	f.answers["GET gpus/0000:40:00.0/mig"] = m
	s := session{args: []string{"mig", "assert", "-f", "-"}, stdin: "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: true, mig-devices: {1g.5gb: 1}}]}\n"}
	if s.run(t.Context(), socket); s.code != exitFailed || !strings.Contains(s.stderr, "0000:40:00.0 is 1g.5gb@0=-, and should be 1g.5gb") {
		t.Error(&s)
	}
}

// The comment counts wherever it stands, and never against what is counted.
func TestMIGFileComment(t *testing.T) {
	const said, counted = "# gpuvirt: 3g.20gb@4=1c.3g.20gb,2c.3g.20gb 1g.5gb@1", "\n        1g.5gb: 1\n        1c.3g.20gb: 1\n        2c.3g.20gb: 1\n"
	const exact = "3g.20gb@4=1c.3g.20gb,2c.3g.20gb 1g.5gb@1"
	for text, want := range map[string]string{
		"    " + said + "\n    - devices: all\n      mig-enabled: true\n      mig-devices:" + counted:                          exact,
		"    - devices: all\n      mig-enabled: true\n      mig-devices: " + said + counted:                                    exact,
		"    - devices: all\n      mig-enabled: true # on\n      # by hand\n      " + said + "\n      mig-devices:" + counted:  exact,
		"    - devices: all\n      mig-devices:" + counted + "        2g.10gb: 0\n      mig-enabled: true " + said + "\n":      exact,
		"    - devices: all\n      mig-enabled: true\n      mig-devices: # gpuvirt is better" + counted:                        "1g.5gb 3g.20gb=2c.3g.20gb,1c.3g.20gb",
		"    " + said + "\n    - devices: all\n      mig-enabled: true\n      mig-devices:" + counted + "        2g.10gb: 1\n": `line 7: "mig-devices" is not what the comment "` + said + `" says`,
		"    " + said + "\n    - devices: all\n      mig-enabled: true\n      mig-devices: {}\n":                               "is not what the comment",
		"    " + said + "\n    - devices: all\n      mig-enabled: false\n":                                                     "is not what the comment",
		"    " + said + "\n    - devices: all # gpuvirt:\n      mig-enabled: true\n      mig-devices:" + counted:               "more than one comment",
		// By hand, and taken over from elsewhere.
		"    #gpuvirt:" + exact + "\n    - devices: all\n      mig-enabled: true\n      mig-devices:" + counted:                                                exact,
		"    - &x\n      devices: all\n      mig-enabled: true\n      " + said + "\n      mig-devices:" + counted + "  b:\n    - <<: *x\n      devices: [1]\n": exact,
		// It cannot be told for which of two it is.
		"    - devices: [0]\n      mig-enabled: true\n      mig-devices:" + counted + "        " + said + "\n\n    - devices: [1]\n      mig-enabled: true\n      mig-devices:" + counted: "may be meant for it or for the next",
		"    # gpuvirt: 1g.5gb@x\n    - devices: all\n      mig-enabled: true\n      mig-devices: {1g.5gb: 1}\n":                                                                          `line 7: the comment "# gpuvirt:" is wrong: "x" is no memory slice`,
	} {
		f, err := readMIGFile(strings.NewReader("version: v1\nmig-configs:\n  a:\n" + text))
		got := ""
		if err == nil {
			got = layoutLine(f.Configs["a"][0].want)
			if b := f.Configs["b"]; len(b) > 0 && layoutLine(b[0].want) != want {
				t.Errorf("%s: taken over it is %q", text, layoutLine(b[0].want))
			}
		} else if strings.Contains(err.Error(), want) {
			continue
		}
		if got != want {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
}

// Numbers mean other cards when one comes or goes: what was exported says which it meant,
// and is carried out on no other. One that is given to a VM keeps its number.
func TestMIGExportMoved(t *testing.T) {
	f, socket := startFake(t)
	f.cut(t, off, "1g.5gb@0", "3g.20gb@4")
	run := func(line, file string) *session {
		f.requests = nil
		s := session{args: strings.Fields(line), stdin: file}
		s.run(t.Context(), socket)
		return &s
	}
	const apply = "mig apply --dry-run -f -"
	file := run("mig export", "").stdout
	if s := run(apply, file); s.code != exitDone || len(f.requests) != 3 {
		t.Errorf("%s%q", s, f.requests)
	}
	all := f.answers["GET gpus"].(api.List[api.GPU]).Items //nolint:forcetypeassert // it is from cut
	all[0].Driver.Name, all[1].Driver.Name, all[2].Driver.Name = "vfio-pci", "nvidia", "nvidia"
	all[0].MIG = api.MIGMode{}
	if s := run(apply, file); s.code != exitDone || len(f.requests) != 2 {
		t.Errorf("%s%q", s, f.requests)
	}
	if s := run("mig export", ""); !strings.Contains(s.stdout, "- devices: [1]\n      # gpuvirt-gpus: 0000:41:00.0\n") ||
		!strings.Contains(s.stderr, "mig-parted does not count gpu 0000:40:00.0") {
		t.Error(s)
	}
	f.answers["GET gpus"] = list(all[1:]...)
	two := strings.Split(file, "    - devices: [2]")[0]
	for _, line := range []string{apply, "mig apply -f -", "mig assert -f -"} {
		for file, why := range map[string]string{
			file: "cannot find gpu number 2: this host has 2 of NVIDIA",
			two:  `number 0 was gpu 0000:40:00.0 when the file was written, and is 0000:41:00.0 now: correct both the number and the comment "# gpuvirt-gpus:"`,
		} {
			if s := run(line, file); s.code != exitFailed || len(f.requests) > 0 || !strings.Contains(s.stderr, why) {
				t.Errorf("%s%q", s, f.requests)
			}
		}
	}
	for _, wrong := range []string{
		"{devices: all, mig-enabled: false} # gpuvirt-gpus: 0000:41:00.0",
		"devices: [0]\n      # gpuvirt-gpus: 0000:41:00.0 0000:42:00.0\n      mig-enabled: false",
		"devices: [0] # gpuvirt-gpus: 0000:41:00.0\n      mig-enabled: false # gpuvirt-gpus: 0000:41:00.0",
	} {
		s := run(apply, "version: v1\nmig-configs:\n  a:\n    - "+wrong+"\n")
		if s.code != exitFailed || !strings.Contains(s.stderr, "with a gpu for each number") {
			t.Errorf("%s: %s", wrong, s)
		}
	}
}
