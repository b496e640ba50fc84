package main

import (
	"slices"
	"strings"
	"testing"

	"gpuvirt/api"
)

const lostReason = "the kernel does not show it"

// lost is a card as the daemon lists it when only its record tells of it.
func lost(id, model string) api.GPU {
	return api.GPU{ID: id, Model: model, Managed: true, Conditions: []api.Condition{{Type: "Unknown", Status: true, Reason: "NotThere", Message: lostReason}}}
}

func list(gpus ...api.GPU) api.List[api.GPU] { return api.List[api.GPU]{Items: gpus} }

// mig-parted numbers NVIDIA's cards by address, whichever the daemon lists first.
func TestNVIDIAGPUs(t *testing.T) {
	f, socket := startFake(t)
	f.answers["GET gpus"] = list(
		api.GPU{ID: "10000:01:00.0", Vendor: "NVIDIA"}, api.GPU{ID: "0000:5a:00.0", Vendor: "NVIDIA"}, api.GPU{ID: "0000:00:02.0", Vendor: "Intel"},
		lost("0000:3b:00.0", "10de:2330"), lost("0000:03:00.0", "8086:5912"), lost("0000:4b:00.0", ""), lost("mbochs", ""), gpus[3],
	)
	c := cli{streams: streams{socket: socket}}
	got, err := c.nvidiaGPUs(t.Context())
	want := []string{"0000:3b:00.0", "0000:4b:00.0", "0000:5a:00.0", "10000:01:00.0"}
	if ids := names(got, gpuTable.name); err != nil || !slices.Equal(ids, want) {
		t.Errorf("got %v, %v, want %v", ids, err, want)
	}
}

// mig-parted does not number what NVIDIA's driver does not have, unless it has none: from
// there on a number alone says nothing.
func TestMIGNumbersInDoubt(t *testing.T) {
	card := func(id, driver string, capable bool) api.GPU {
		return api.GPU{ID: id, Vendor: "NVIDIA", Driver: api.Driver{Name: driver}, MIG: api.MIGMode{Capable: capable}}
	}
	first, given, second := card("0000:01:00.0", "nvidia", true), card("0000:02:00.0", "vfio-pci", false), card("0000:03:00.0", "nvidia", true)
	entry := func(devices string) string {
		return "version: v1\nmig-configs:\n  a:\n    - devices: " + devices + "\n      mig-enabled: true\n      mig-devices: {}\n"
	}
	const doubt = "mig-parted does not count gpu 0000:02:00.0, as NVIDIA's driver does not have it, so that numbers from 1 on may mean others"
	for name, tt := range map[string]struct {
		gpus           []api.GPU
		stdin, stderr  string
		code, requests int
	}{
		"before it":                {[]api.GPU{first, given, second}, entry("[0]"), "", exitDone, 1},
		"it":                       {[]api.GPU{first, given, second}, entry("[1]"), doubt, exitFailed, 0},
		"after it":                 {[]api.GPU{first, given, second}, entry("[0, 2]"), doubt + `: name the gpus in a comment above "mig-enabled", as in "# gpuvirt-gpus: 0000:03:00.0"`, exitFailed, 0},
		"after it, and named":      {[]api.GPU{first, given, second}, entry("[2] # gpuvirt-gpus: 0000:03:00.0"), "", exitDone, 1},
		"all":                      {[]api.GPU{first, given, second}, entry("all"), "", exitDone, 2},
		"none of them":             {[]api.GPU{first, given, second}, entry("[]"), "a is for no gpu of this host", exitDone, 0},
		"only such as it":          {[]api.GPU{given, card("0000:04:00.0", "", false)}, entry("[1]"), "MIG cannot, and a wants it", exitFailed, 0},
		"its driver is not told":   {[]api.GPU{card("0000:02:00.0", "", true), second}, entry("[1]"), "", exitDone, 1},
		"it hangs: another reason": {[]api.GPU{first, lost("0000:02:00.0", "10de:2330")}, entry("[0]"), "cannot tell which gpus a is for: gpu 0000:02:00.0", exitNotReady, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.answers["GET gpus"] = list(tt.gpus...)
			for _, g := range tt.gpus {
				f.answers["PUT gpus/"+g.ID+"/mig"] = api.Plan{Summary: "lay out", Changes: true}
			}
			s := session{args: []string{"mig", "apply", "--dry-run", "-f", "-"}, stdin: tt.stdin}
			s.run(t.Context(), socket)
			if s.code != tt.code || len(f.requests) != tt.requests || !strings.Contains(s.stderr, tt.stderr) {
				t.Errorf("%s%q", &s, f.requests)
			}
		})
	}
}

// A card that cannot be read would make every number after it mean another card, and
// may be meant itself: nothing is said or done then, unless the file is for others only.
func TestMIGUnreadCard(t *testing.T) {
	config := func(entry string) string { return "version: v1\nmig-configs: {a: [" + entry + "]}\n" }
	off := config("{devices: all, mig-enabled: false}")
	stuck := gpus[1]
	stuck.MIG, stuck.Vendor = api.MIGMode{}, ""
	stuck.Conditions = []api.Condition{{Type: "Stuck", Status: true, Message: "the library hangs"}}
	h100, before := lost("0000:4b:00.0", "10de:2330"), lost("0000:02:00.0", "10de:1eb8")
	hint := "gpuvirt gpu unmanage 0000:4b:00.0"
	for name, tt := range map[string]struct {
		gpus        []api.GPU
		line, stdin string
		code        int
		stderr      []string
	}{
		"assert, lost":          {[]api.GPU{h100}, "mig assert -f -", off, exitNotReady, []string{"cannot tell which gpus a is for: gpu 0000:4b:00.0: " + lostReason, hint}},
		"assert, stuck":         {[]api.GPU{stuck}, "mig assert -f -", off, exitNotReady, []string{"gpu 0000:5a:00.0: the library hangs"}},
		"assert, by number":     {[]api.GPU{before, gpus[1]}, "mig assert -f -", config("{devices: [0], mig-enabled: false}"), exitNotReady, []string{"0000:02:00.0"}},
		"assert, by its id":     {[]api.GPU{h100, gpus[1]}, "mig assert -f -", config(`{device-filter: "0x233010DE", devices: all, mig-enabled: false}`), exitNotReady, []string{"0000:4b:00.0"}},
		"assert, by another id": {[]api.GPU{h100, gpus[1]}, "mig assert -f -", config(`{device-filter: "0x20F110DE", devices: all, mig-enabled: false}`), exitFailed, []string{"0000:5a:00.0 is 1g.5gb@0"}},
		"apply":                 {[]api.GPU{gpus[1], h100}, "mig apply -f -", off, exitNotReady, []string{"0000:4b:00.0"}},
		"apply, two":            {[]api.GPU{before, h100}, "mig apply -f -", off, exitNotReady, []string{"0000:02:00.0", "; gpu 0000:4b:00.0"}},
		"export":                {[]api.GPU{gpus[1], h100}, "mig export", "", exitNotReady, []string{"cannot export: gpu 0000:4b:00.0: " + lostReason}},
		"show as json":          {[]api.GPU{gpus[1], h100}, "mig show -o json", "", exitNotReady, []string{"cannot show all: gpu 0000:4b:00.0"}},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.answers["GET gpus"] = list(tt.gpus...)
			s := session{args: strings.Fields(tt.line), stdin: tt.stdin}
			s.run(t.Context(), socket)
			for _, want := range tt.stderr {
				if !strings.Contains(s.stderr, want) {
					t.Errorf("it does not say %q: %s", want, &s)
				}
			}
			if s.code != tt.code || len(f.requests) > 0 || strings.Contains(tt.line, "export") && s.stdout != "" {
				t.Errorf("%s%q", &s, f.requests)
			}
		})
	}
}

// The picture has every card: one that stopped answering just now, too.
func TestMIGShowUnread(t *testing.T) {
	f, socket := startFake(t)
	f.answers["GET gpus"] = list(lost("0000:4b:00.0", "10de:2330"), gpus[1], lost("0000:03:00.0", "8086:5912"))
	f.answers["GET gpus/0000:5a:00.0/mig"] = &api.Problem{Status: 503, Code: "stuck", Detail: "it hangs"}
	s := session{args: []string{"mig", "show"}}
	s.run(t.Context(), socket)
	want := "0000:4b:00.0  10de:2330  cannot be read: " + lostReason + "\n\n0000:5a:00.0  A100-PCIE-40GB  cannot be read: it hangs\n"
	if s.code != exitDone || s.stdout != want {
		t.Error(&s)
	}
	f.answers["GET gpus"] = list(gpus[0])
	for output, want := range map[string]string{"json": "[]\n", "table": ""} {
		s = session{args: []string{"mig", "show", "-o", output}}
		if s.run(t.Context(), socket); s.code != exitDone || s.stdout != want {
			t.Error(&s)
		}
	}
}
