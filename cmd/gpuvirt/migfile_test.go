package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
)

// The shapes in which files of mig-parted are written: one filter or several, all
// devices or some, whole and partial profiles, with media engines and without.
const parted = `version: v1
mig-configs:
  all-disabled:
    - devices: all
      mig-enabled: false
  all-balanced:
    # H100 and H200
    - device-filter: ["0x233010DE", "0x233510de"]
      devices: all
      mig-enabled: true
      mig-devices: {"1g.18gb": 2, "2g.35gb": 1, "3g.71gb": 1}
    - device-filter: "0x20F110DE"
      devices: all
      mig-enabled: true
      mig-devices:
        "1g.5gb": 2
        "2g.10gb": 1
        "3g.20gb": 1
    - device-filter: 0x290110DE
      devices: all
      mig-enabled: true
      mig-devices:
        1g.23gb+me: 1
        1g.45gb: 1
  shared:
    - devices: [1]
      mig-enabled: true
      mig-devices:
        1c.3g.20gb: 4
        2c.3g.20gb: 1
        1g.5gb: 1
  as-it-is:
    - devices: all
      mig-enabled: false
    - devices: [1]
      mig-enabled: true
      mig-devices: {"1g.5gb": 1, "1c.3g.20gb": 1, "2c.3g.20gb": 1}
  empty:
    - devices: [1]
      mig-enabled: true
      mig-devices: {}
  beyond:
    - devices: [7]
      mig-enabled: true
      mig-devices: {}
  none:
    - device-filter: "0x233010DE"
      devices: all
      mig-enabled: false
`

func TestMIGFileLayouts(t *testing.T) {
	f, err := readMIGFile(strings.NewReader(parted))
	if err != nil {
		t.Fatal(err)
	}
	a100 := api.GPU{ID: "a", PCIID: "10de:20f1"}
	for name, want := range map[string]string{
		"all-disabled": "MIG off",
		"all-balanced": "3g.20gb 2g.10gb 1g.5gb 1g.5gb",
		"shared":       "1g.5gb 3g.20gb=2c.3g.20gb,1c.3g.20gb 3g.20gb=1c.3g.20gb,1c.3g.20gb,1c.3g.20gb",
		"empty":        "MIG on, no instances",
	} {
		checkLayout(t, f, name, a100, want)
	}
	for id, want := range map[string]int{"10de:2335": 0, "10de:20f1": 1, "10de:2901": 2, "10de:1eb8": -1, "1002:2901": -1} {
		got := slices.IndexFunc(f.Configs["all-balanced"], func(s migSpec) bool { return s.matches(api.GPU{PCIID: id}, 0) })
		if got != want {
			t.Errorf("%s: spec %d, want %d", id, got, want)
		}
	}
}

// checkLayout compares what a config has for a card, as its number 1, in any order.
func checkLayout(t *testing.T, f migFile, config string, card api.GPU, want string) {
	t.Helper()
	got := "nothing"
	for _, s := range f.Configs[config] {
		if s.matches(card, 1) {
			got = layoutLine(s.want)
		}
	}
	sorted := func(s string) []string { return slices.Sorted(strings.FieldsSeq(s)) }
	if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
		t.Errorf("%s, %s: %s", config, card.PCIID, diff)
	}
}

// What mig-parted refuses is refused, and other mistakes as well, with the line.
func TestMIGFileRefused(t *testing.T) {
	entry := func(lines ...string) string {
		return "version: v1\nmig-configs:\n  a:\n    - " + strings.Join(lines, "\n      ") + "\n"
	}
	for text, want := range map[string]string{
		"version: v2\nmig-configs: {}\n":                   `its version is "v2"`,
		"mig-configs: {}\n":                                `its version is ""`,
		"version: v1\nmig-configs: {}\n---\nversion: v1\n": "more than one document",
		"version: v1\nmig-configs: [1]\n":                  "line 2: cannot unmarshal",
		"version: v1\nmig-configs: {a: []}\n":              `config "a" has no entries`,
		"version: v1\nmig-configs: {a: [1]}\n":             "line 2: an entry is not of the form",
		"version: v1\nmig-config: {}\n":                    "line 2: field mig-config not found",
		"version: [\n":                                     "did not find expected node content",
		"":                                                 "it is empty",

		entry("devices: [1]"):                                                      `line 4: an entry has no "mig-enabled"`,
		entry("mig-enabled: false"):                                                `line 4: an entry has no "devices"`,
		entry("devices: null", "mig-enabled: false"):                               `line 4: an entry has no "devices"`,
		entry("devices: [1]", "mig-devices: {1g.5gb: 7}"):                          `line 4: an entry has no "mig-enabled"`,
		entry("devices: [1]", "mig-enabled: true"):                                 `line 4: an entry has "mig-enabled: true" and no "mig-devices"`,
		entry("devices: [1]", "mig-enabled: true", "mig-devices:"):                 `line 4: an entry has "mig-enabled: true" and no "mig-devices"`,
		entry("devices: all", "mig-enabled: true", "mig-device: {}"):               `line 6: unknown field "mig-device"`,
		entry("devices: some", "mig-enabled: false"):                               `line 4: "devices" is neither "all" nor a list`,
		entry("devices: [x]", "mig-enabled: false"):                                `line 4: "devices" is neither "all" nor a list`,
		entry("devices: [-1]", "mig-enabled: false"):                               `line 4: "devices" has a number below 0`,
		entry("devices: all", "mig-enabled: maybe"):                                `line 5: "mig-enabled" is neither true nor false`,
		entry("devices: all", "mig-enabled: true", "mig-devices: [1g.5gb]"):        `line 6: "mig-devices" is not of the form`,
		entry("devices: all", "mig-enabled: false", "mig-devices:", "  1g.5gb: 1"): `line 6: "mig-devices" are given, and "mig-enabled" is false`,
		entry("devices: all", "mig-enabled: true", "mig-devices: {fast: 1}"):       `line 6: "fast" is no profile`,
		entry("devices: all", "mig-enabled: true", "mig-devices: {4c.3g.20gb: 1}"): `line 6: "4c.3g.20gb" is no profile`,
		entry("devices: all", "mig-enabled: true", "mig-devices: {1g.5gb: -1}"):    "line 6: -1 of 1g.5gb",
		entry("devices: all", "mig-enabled: true", "mig-devices: {1g.5gb: 0}"):     `line 6: "mig-devices" has no number above 0`,
		entry("devices: all", "device-filter: A100", "mig-enabled: false"):         `line 5: "A100" is no PCI id`,
		entry("devices: all", "device-filter: {a: b}", "mig-enabled: false"):       `line 5: "device-filter" is neither an id nor a list`,
	} {
		if _, err := readMIGFile(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// A filter may name the board as well: cards of one id come on several.
func TestMIGFileSubsystem(t *testing.T) {
	text := func(filter string) string {
		return "version: v1\nmig-configs: {a: [{device-filter: " + filter + ", devices: all, mig-enabled: false}]}\n"
	}
	card := api.GPU{PCIID: "10de:20f1", PCISubsystem: "10de:145f"}
	for filter, want := range map[string]bool{
		`"0x20F110DE:0x145F10DE"`:                 true,
		`0x20f110de:0x145f10de`:                   true,
		`["0x233010DE", "0x20F110DE:0x145F10DE"]`: true,
		`"0x20F110DE"`:                            true,
		`""`:                                      true,
		`[]`:                                      true,
		`null`:                                    true,
		`"0x20F110DE:0x149310DE"`:                 false,
		`"0x20B010DE:0x145F10DE"`:                 false,
		`["0x20F110DE:0x149310DE", "0x233010DE"]`: false,
	} {
		f, err := readMIGFile(strings.NewReader(text(filter)))
		if err != nil {
			t.Error(err)
			continue
		}
		if got := f.Configs["a"][0].matches(card, 0); got != want {
			t.Errorf("%s matches: %t", filter, got)
		}
		if f.Configs["a"][0].matches(api.GPU{PCIID: "10de:20f1"}, 0) && strings.Contains(filter, ":") {
			t.Errorf("%s matches a card of an unknown board", filter)
		}
	}
	for _, filter := range []string{`"0x20F110DE:"`, `":0x145F10DE"`, `"0x20F110DE:145F"`, `"0x20F110DE:0x1:0x2"`, `"0x120F110DE"`} {
		if _, err := readMIGFile(strings.NewReader(text(filter))); err == nil || !strings.Contains(err.Error(), "line 2: ") {
			t.Errorf("%s: %v", filter, err)
		}
	}
}

// The files that mig-parted publishes have a config of one size for each card, and
// some of several entries.
func TestMIGFilePublishedShapes(t *testing.T) {
	const text = `version: v1
mig-configs:
  all-disabled:
    - devices: all
      mig-enabled: false
  all-enabled:
    - devices: all
      mig-enabled: true
      mig-devices: {}
  all-1g.10gb: # both the small one of 80 GB and the doubled one of 40 GB
    - devices: all
      mig-enabled: true
      mig-devices:
        "1g.10gb": 7
  all-1g.10gb.me:
    - devices: all
      mig-enabled: true
      mig-devices: {"1g.10gb+me": 1}
  all-balanced:
    - device-filter: ["0x20B010DE", "0x20B110DE", "0x20F110DE", "0x20F610DE"]
      devices: all
      mig-enabled: true
      mig-devices: {"1g.5gb": 2, "2g.10gb": 1, "3g.20gb": 1}
    - device-filter: ["0x20B210DE", "0x233010DE", "0x233110DE"]
      devices: all
      mig-enabled: true
      mig-devices: {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}
    - device-filter: ["0x233510DE", "0x233B10DE"]
      devices: all
      mig-enabled: true
      mig-devices: {"1g.18gb": 2, "2g.35gb": 1, "3g.71gb": 1}
    - device-filter: "0x290110DE"
      devices: all
      mig-enabled: true
      mig-devices: {"1g.23gb": 2, "2g.45gb": 1, "3g.90gb": 1}
  custom-config:
    - devices: [0,1,2,3]
      mig-enabled: false
    - devices: [4]
      mig-enabled: true
      mig-devices: {"1g.5gb": 7}
    - devices: [5, 6]
      mig-enabled: true
      mig-devices: {"1g.5gb": 2, "2g.10gb": 1, "3g.20gb": 1}
  of-a-workstation: # one of its cards is for the screen
    - device-filter: "0x20B210DE"
      devices: [0]
      mig-enabled: false
      mig-devices: {}
    - device-filter: "0x20B210DE"
      devices: [2]
      mig-enabled: true
      mig-devices:
        "2g.20gb": 3
        "1g.10gb": 1
    - device-filter: "0x1FB010DE"
      devices: [1]
      mig-enabled: false
      mig-devices: {}
  media:
    - device-filter: [ "0x2BB510DE" ]
      devices: all
      mig-enabled: true
      mig-devices:
        "1g.24gb+me.all": 1
        "1g.24gb-me": 1
        "2g.48gb+gfx": 1
  with-anchors:
    - &small {devices: [0], mig-enabled: true, mig-devices: {"1g.5gb": 7}}
    - <<: *small
      devices: [1]
`
	f, err := readMIGFile(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ config, card, want string }{
		{"all-disabled", "10de:20f1", "MIG off"},
		{"all-enabled", "10de:2330", "MIG on, no instances"},
		{"all-1g.10gb", "10de:2330", strings.Repeat("1g.10gb ", 7)},
		{"all-1g.10gb.me", "10de:2330", "1g.10gb+me"},
		{"all-balanced", "10de:20b0", "3g.20gb 2g.10gb 1g.5gb 1g.5gb"},
		{"all-balanced", "10de:2330", "3g.40gb 2g.20gb 1g.10gb 1g.10gb"},
		{"all-balanced", "10de:233b", "3g.71gb 2g.35gb 1g.18gb 1g.18gb"},
		{"all-balanced", "10de:2901", "3g.90gb 2g.45gb 1g.23gb 1g.23gb"},
		{"all-balanced", "10de:1eb8", "nothing"},
		{"custom-config", "10de:20f1", "MIG off"},
		{"of-a-workstation", "10de:20b2", "nothing"},
		{"of-a-workstation", "10de:1fb0", "MIG off"},
		{"media", "10de:2bb5", "1g.24gb+me.all 1g.24gb-me 2g.48gb+gfx"},
		{"with-anchors", "10de:20f1", strings.Repeat("1g.5gb ", 7)},
	} {
		checkLayout(t, f, tt.config, api.GPU{PCIID: tt.card}, tt.want)
	}
	for number, want := range []int{0, 0, 0, 0, 1, 2, 2, -1} {
		got := slices.IndexFunc(f.Configs["custom-config"], func(s migSpec) bool { return s.matches(api.GPU{}, number) })
		if got != want {
			t.Errorf("custom-config, gpu %d: entry %d, want %d", number, got, want)
		}
	}
}
