package main

import (
	"cmp"
	"errors"
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

// A migSpec says how some GPUs are cut.
type migSpec struct {
	Filter  filters        `yaml:"device-filter,omitempty,flow"` // PCI ids, "0x20B010DE": device, then vendor
	Devices devices        `yaml:"devices"`
	Enabled bool           `yaml:"mig-enabled"`
	Counts  map[string]int `yaml:"mig-devices"` // how many compute instances of each profile
}

// filters may be written as one or as a list.
type filters []string

func (f *filters) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		*f = filters{n.Value}
		return nil
	}
	return n.Decode((*[]string)(f))
}

// devices are GPUs by their number among NVIDIA's, in order of PCI address; nil: all.
type devices []int

func (d *devices) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.Value == "all" {
		*d = nil
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		return fmt.Errorf("line %d: devices are neither \"all\" nor a list of numbers", n.Line)
	}
	*d = devices{}
	return n.Decode((*[]int)(d))
}

// MarshalYAML writes them as they are read.
func (d devices) MarshalYAML() (any, error) {
	if d == nil {
		return "all", nil
	}
	n := &yaml.Node{}
	if err := n.Encode([]int(d)); err != nil {
		return nil, err
	}
	n.Style = yaml.FlowStyle
	return n, nil
}

// readMIGFile reads a file strictly: a word that means nothing here would mean that
// something is not done.
func readMIGFile(r io.Reader) (migFile, error) {
	var f migFile
	dec := yaml.NewDecoder(r)
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil {
		return f, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return f, errors.New("it holds more than one document")
	}
	if f.Version != "v1" {
		return f, fmt.Errorf("its version is %q: only \"v1\" is known", f.Version)
	}
	for name, specs := range f.Configs {
		for i, s := range specs {
			if _, err := s.layout(); err != nil {
				return f, fmt.Errorf("mig-configs.%s[%d]: %w", name, i, err)
			}
			for _, id := range s.Filter {
				if _, err := pciID(id); err != nil {
					return f, fmt.Errorf("mig-configs.%s[%d]: %w", name, i, err)
				}
			}
		}
	}
	return f, nil
}

// pciID reads a filter as the rest of gpuvirt writes ids: "10de:20b0".
func pciID(filter string) (string, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(strings.ToLower(filter), "0x"), 16, 32)
	if err != nil || !strings.HasPrefix(strings.ToLower(filter), "0x") {
		return "", fmt.Errorf("%q is no PCI id of device and vendor, as in 0x20B010DE", filter)
	}
	return fmt.Sprintf("%04x:%04x", n&0xffff, n>>16), nil
}

// matches reports whether a spec is for a GPU, of whose kind this is the index-th.
func (s migSpec) matches(g api.GPU, index int) bool {
	if s.Devices != nil && !slices.Contains(s.Devices, index) {
		return false
	}
	return len(s.Filter) == 0 || slices.ContainsFunc(s.Filter, func(f string) bool {
		id, err := pciID(f)
		return err == nil && id == g.PCIID
	})
}

// layout turns counts of compute instances into GPU instances. Partial ones are put
// together in as few as they need, the largest first.
func (s migSpec) layout() (api.Layout, error) {
	l := api.Layout{Enabled: s.Enabled, Instances: []api.LayoutInstance{}}
	if !s.Enabled && len(s.Counts) > 0 {
		return l, errors.New("mig-devices are given, and mig-enabled is false")
	}
	type open struct {
		room int
		in   *api.LayoutInstance
	}
	shared := map[string][]*open{}
	var order []string
	partial := slices.SortedFunc(maps.Keys(s.Counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(computeSlices(b), computeSlices(a)), cmp.Compare(a, b))
	})
	for _, name := range partial {
		n := s.Counts[name]
		if n < 0 || n > 64 {
			return l, fmt.Errorf("mig-devices: %d of %s", n, name)
		}
		slots, whole := computeSlices(name), name
		if slots > 0 {
			_, whole, _ = strings.Cut(name, ".")
		}
		total, _, ok := strings.Cut(whole, "g.")
		all, err := strconv.Atoi(total)
		if !ok || err != nil || slots > all {
			return l, fmt.Errorf("mig-devices: %q is no profile", name)
		}
		for range n {
			if slots == 0 || slots == all {
				l.Instances = append(l.Instances, api.LayoutInstance{Profile: whole})
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
			l.Instances = append(l.Instances, *o.in)
		}
	}
	return l, nil
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
