package convert

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
)

// The names of the programs that are driven.
const (
	nameInPlace   = "virt-v2v-in-place"
	nameV2V       = "virt-v2v"
	nameInspector = "virt-v2v-inspector"
	nameCustomize = "virt-customize"
	nameQemuImg   = "qemu-img"
	nameQemuNBD   = "qemu-nbd"
	nameNBDKit    = "nbdkit" // virt-v2v refuses to begin without it
	nameTestTool  = "libguestfs-test-tool"
)

// packages names what to install for a program, by the ID of os-release.
var packages = map[string]map[string]string{
	nameInPlace:   {"debian": "virt-v2v", "ubuntu": "virt-v2v", "rhel": "virt-v2v", "fedora": "virt-v2v", "suse": "virt-v2v"},
	nameV2V:       {"debian": "virt-v2v", "ubuntu": "virt-v2v", "rhel": "virt-v2v", "fedora": "virt-v2v", "suse": "virt-v2v"},
	nameInspector: {"debian": "virt-v2v", "ubuntu": "virt-v2v", "rhel": "virt-v2v", "fedora": "virt-v2v", "suse": "virt-v2v"},
	nameCustomize: {"debian": "guestfs-tools", "ubuntu": "guestfs-tools", "rhel": "guestfs-tools", "fedora": "guestfs-tools", "suse": "guestfs-tools"},
	nameQemuImg:   {"debian": "qemu-utils", "ubuntu": "qemu-utils", "rhel": "qemu-img", "fedora": "qemu-img", "suse": "qemu-img"},
	nameQemuNBD:   {"debian": "qemu-utils", "ubuntu": "qemu-utils", "rhel": "qemu-img", "fedora": "qemu-img", "suse": "qemu-img"},
	nameNBDKit:    {"debian": "nbdkit", "ubuntu": "nbdkit", "rhel": "nbdkit", "fedora": "nbdkit", "suse": "nbdkit"},
	nameTestTool:  {"debian": "libguestfs-tools", "ubuntu": "libguestfs-tools", "rhel": "libguestfs", "fedora": "libguestfs", "suse": "libguestfs"},
}

// needed are those without which nothing is converted; the others only help.
var needed = []string{nameInPlace, nameCustomize, nameQemuImg, nameNBDKit}

// driven are all of them.
var driven = []string{nameInPlace, nameCustomize, nameQemuImg, nameNBDKit, nameV2V, nameInspector, nameQemuNBD, nameTestTool}

// A Tool is a program that is there.
type Tool struct {
	Name    string `json:"name"`
	Path    string `json:"path"`
	Version string `json:"version"` // as it says: "2.2.0"; empty: it does not
	// Features is what it says that it can do, and its long options: "output-xml-option",
	// "--no-fstrim". Sorted.
	Features []string `json:"features,omitempty"`
}

// Has tells whether the program has a feature, or an option by its long name.
func (t Tool) Has(feature string) bool {
	_, found := slices.BinarySearch(t.Features, feature)
	return found
}

// A Missing program, and what brings it.
type Missing struct {
	Name     string            `json:"name"`
	Needed   bool              `json:"needed"`   // nothing is converted without it
	Packages map[string]string `json:"packages"` // by the ID of os-release
}

// Tools is what a host converts with.
type Tools struct {
	InPlace   Tool      `json:"virt_v2v_in_place"`
	Customize Tool      `json:"virt_customize"`
	QemuImg   Tool      `json:"qemu_img"`
	Others    []Tool    `json:"others"`
	Missing   []Missing `json:"missing"`
	Appliance Appliance `json:"appliance"`
	// NoUser says why there is nobody whom the programs could run as.
	NoUser string `json:"no_user,omitempty"`
}

// Ready returns why nothing can be converted here, or nil.
func (t Tools) Ready() error {
	if t.NoUser != "" {
		return gpu.Errorf(gpu.CodeUnavailable, "cannot convert a guest here: nobody is there to run the programs: %s", t.NoUser).
			WithHint("the package makes the user by \"systemd-sysusers gpuvirt.conf\"; another one is named by the setting p2v.convert_user")
	}
	var names []string
	install := map[string][]string{}
	for _, m := range t.Missing {
		if !m.Needed {
			continue
		}
		names = append(names, m.Name)
		for id, name := range m.Packages {
			if !slices.Contains(install[id], name) {
				install[id] = append(install[id], name)
			}
		}
	}
	if len(names) > 0 {
		var hints []string
		for _, id := range slices.Sorted(maps.Keys(install)) {
			hints = append(hints, id+": "+strings.Join(install[id], " "))
		}
		return gpu.Errorf(gpu.CodeUnavailable, "cannot convert a guest here: %s is missing", strings.Join(names, ", ")).
			WithHint("install the packages: %s", strings.Join(hints, "; "))
	}
	if t.Appliance.State == ApplianceBroken {
		return gpu.Errorf(gpu.CodeUnavailable, "cannot convert a guest here: libguestfs's appliance does not come up: %s", t.Appliance.Detail).
			WithHint("run libguestfs-test-tool; a kernel that is readable under /boot and 2 GiB of free space are what is missing most often")
	}
	return nil
}

// find looks for a program in the folders of the configuration.
func (c *Converter) find(name string) string {
	for _, dir := range c.cfg.Path {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

func (c *Converter) need(name string) (string, error) {
	if path := c.find(name); path != "" {
		return path, nil
	}
	m := Missing{Name: name, Needed: true, Packages: packages[name]}
	return "", Tools{Missing: []Missing{m}}.Ready()
}

// Look returns why nothing can be converted here, or nil, as Tools.Ready does, by what can be seen
// without running anything: who would run the programs, and whether they are there. It waits for
// nobody.
func (c *Converter) Look() error {
	t := Tools{Missing: c.missing()}
	if c.cfg.User != "" {
		if _, _, err := lookUp(c.cfg.User); err != nil {
			t.NoUser = err.Error()
		}
	}
	return t.Ready()
}

// missing are the programs that are not there, in the order in which they are driven.
func (c *Converter) missing() []Missing {
	var out []Missing
	for _, name := range driven {
		if c.find(name) == "" {
			out = append(out, Missing{Name: name, Needed: slices.Contains(needed, name), Packages: packages[name]})
		}
	}
	return out
}

// Probe finds out what the host converts with: which programs, what they can do, and
// whether libguestfs's appliance comes up, with the processor's help or without. The last
// takes up to minutes once in each boot of the host, and is remembered. A host that cannot
// convert is no error: Tools.Ready tells.
func (c *Converter) Probe(ctx context.Context) (Tools, error) {
	c.probing.Lock()
	defer c.probing.Unlock()
	if c.tools != nil {
		return *c.tools, nil
	}
	t := Tools{NoUser: c.who()}
	if t.NoUser != "" {
		return t, nil
	}
	t.Missing = c.missing()
	for _, name := range driven {
		path := c.find(name)
		if path == "" {
			continue
		}
		tool := Tool{Name: name, Path: path}
		if err := c.ask(ctx, &tool); err != nil {
			return Tools{}, err
		}
		switch name {
		case nameInPlace:
			t.InPlace = tool
		case nameCustomize:
			t.Customize = tool
		case nameQemuImg:
			t.QemuImg = tool
		default:
			t.Others = append(t.Others, tool)
		}
	}
	if t.Ready() != nil {
		return t, nil // who installs what is missing is seen the next time
	}
	var err error
	if t.Appliance, err = c.appliance(ctx, t); err != nil {
		return Tools{}, err
	}
	if t.Appliance.State != ApplianceBroken {
		c.tools = &t
	}
	return t, nil
}

// ready probes, and refuses where a program is missing.
func (c *Converter) ready(ctx context.Context, name string) (Tools, error) {
	if _, err := c.need(name); err != nil {
		return Tools{}, err
	}
	t, err := c.Probe(ctx)
	if err == nil {
		err = t.Ready()
	}
	return t, err
}

var versionText = regexp.MustCompile(`\b[0-9]+\.[0-9]+(\.[0-9]+)*\b`)

// ask asks a program for its version and what it can do. One that does not answer is a
// program all the same: it fails where it is used, with its words.
func (c *Converter) ask(ctx context.Context, tool *Tool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p := run.Program{Confine: &c.cfg.Confine}
	answer := func(args ...string) (string, error) {
		out, err := p.Run(ctx, tool.Path, args...)
		if _, said := errors.AsType[*run.ExitError](err); said {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("cannot ask %q what it is: %w", tool.Name, err)
		}
		return out, nil
	}
	out, err := answer("--version")
	if err != nil {
		return err
	}
	tool.Version = versionText.FindString(out)
	var questions [][]string
	switch tool.Name {
	case nameInPlace, nameV2V, nameInspector:
		questions = [][]string{{"--machine-readable"}, {"--long-options"}}
	case nameCustomize:
		questions = [][]string{{"--long-options"}}
	}
	for _, args := range questions {
		out, err := answer(args...)
		if err != nil {
			return err
		}
		tool.Features = append(tool.Features, strings.Fields(out)...)
	}
	slices.Sort(tool.Features)
	tool.Features = slices.Compact(tool.Features)
	return nil
}
