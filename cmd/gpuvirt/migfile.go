package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"gpuvirt/api"
)

// A migFile is a file of NVIDIA's mig-parted.
type migFile struct {
	Version string               `yaml:"version"`
	Configs map[string][]migSpec `yaml:"mig-configs"`
}

// A migSpec is an entry of a config: it says how some GPUs are cut.
type migSpec struct {
	cards

	want api.Layout
}

// readMIGFile reads a file strictly: a word that means nothing here would mean that
// something is not done.
func readMIGFile(r io.Reader) (migFile, error) {
	var f migFile
	if err := readStrictly(r, &f); err != nil {
		return f, err
	}
	return f, checkConfigs(f.Version, f.Configs)
}

// UnmarshalYAML reads an entry. What mig-parted asks for in each must be there: an entry
// that is cut short would clear cards.
func (s *migSpec) UnmarshalYAML(n *yaml.Node) error {
	e, err := readEntry(n, "device-filter", "devices", "mig-enabled", "mig-devices")
	if err != nil {
		return err
	}
	for _, name := range []string{"devices", "mig-enabled"} {
		if !e.has(name) {
			return e.wrong("", "an entry has no %q", name)
		}
	}
	if err := e.read("mig-enabled", &s.want.Enabled, "neither true nor false"); err != nil {
		return err
	}
	s.skips = true
	if s.want.Enabled && !e.has("mig-devices") {
		return e.wrong("", "an entry has \"mig-enabled: true\" and no \"mig-devices\": \"mig-devices: {}\" means none")
	}
	return cmp.Or(s.readDevices(e), s.readFilter(e), s.readCounts(e), s.readWere(e))
}

func (s *migSpec) readCounts(e configEntry) error {
	counts := map[string]int{}
	if err := e.read("mig-devices", &counts, "not of the form profile: number"); err != nil && e.has("mig-devices") {
		return err
	}
	if !s.want.Enabled && len(counts) > 0 {
		return e.wrong("mig-devices", "\"mig-devices\" are given, and \"mig-enabled\" is false")
	}
	if len(counts) > 0 && !slices.ContainsFunc(slices.Collect(maps.Values(counts)), func(n int) bool { return n != 0 }) {
		return e.wrong("mig-devices", "\"mig-devices\" has no number above 0: \"mig-devices: {}\" means none")
	}
	guess, err := instancesOf(counts)
	if err != nil {
		return e.wrong("mig-devices", "%w", err)
	}
	if s.want.Instances, err = e.exact(counts); s.want.Instances == nil {
		s.want.Instances = guess
	}
	return err
}

// instancesOf turns counts of compute instances into GPU instances. Partial ones are put
// together in as few as they need, the largest first.
func instancesOf(counts map[string]int) ([]api.LayoutInstance, error) {
	out := []api.LayoutInstance{}
	type open struct {
		room int
		in   *api.LayoutInstance
	}
	shared := map[string][]*open{}
	var order []string
	partial := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(computeSlices(b), computeSlices(a)), cmp.Compare(a, b))
	})
	for _, name := range partial {
		n := counts[name]
		if n < 0 || n > 64 {
			return nil, fmt.Errorf("%d of %s", n, name)
		}
		slots, whole := computeSlices(name), name
		if slots > 0 {
			_, whole, _ = strings.Cut(name, ".")
		}
		total, _, ok := strings.Cut(whole, "g.")
		all, err := strconv.Atoi(total)
		if !ok || err != nil || slots > all {
			return nil, fmt.Errorf("%q is no profile", name)
		}
		for range n {
			if slots == 0 || slots == all {
				out = append(out, api.LayoutInstance{Profile: whole})
				continue
			}
			i := slices.IndexFunc(shared[whole], func(o *open) bool { return o.room >= slots })
			if i < 0 {
				if len(shared[whole]) == 0 {
					order = append(order, whole)
				}
				shared[whole] = append(shared[whole], &open{room: all, in: &api.LayoutInstance{Profile: whole}})
				i = len(shared[whole]) - 1
			}
			o := shared[whole][i]
			o.room -= slots
			o.in.Compute = append(o.in.Compute, name)
		}
	}
	for _, whole := range order {
		for _, o := range shared[whole] {
			out = append(out, *o.in)
		}
	}
	return out, nil
}

// computeSlices is the number in front of a partial compute profile: 1 of
// "1c.3g.20gb". It is 0 where the profile fills its GPU instance.
func computeSlices(name string) int {
	c, _, ok := strings.Cut(name, "c.")
	n, err := strconv.Atoi(c)
	if !ok || err != nil {
		return 0
	}
	return n
}
