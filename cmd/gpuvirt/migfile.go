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

// A migSpec is an entry of a config: it says how some GPUs are cut.
type migSpec struct {
	filter  []cardID // empty: any card
	devices []int    // by number among NVIDIA's, in order of PCI address; nil: all
	want    api.Layout
}

// readMIGFile reads a file strictly: a word that means nothing here would mean that
// something is not done.
func readMIGFile(r io.Reader) (migFile, error) {
	var f migFile
	dec := yaml.NewDecoder(r)
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil {
		return f, oneLine(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return f, errors.New("it holds more than one document")
	}
	if f.Version != "v1" {
		return f, fmt.Errorf("its version is %q: only \"v1\" is known", f.Version)
	}
	for _, name := range slices.Sorted(maps.Keys(f.Configs)) {
		if len(f.Configs[name]) == 0 {
			return f, fmt.Errorf("config %q has no entries", name)
		}
	}
	return f, nil
}

// oneLine writes an error of the YAML reader as the others are.
func oneLine(err error) error {
	var list *yaml.TypeError
	switch {
	case errors.As(err, &list):
		return errors.New(strings.Join(list.Errors, "; "))
	case errors.Is(err, io.EOF):
		return errors.New("it is empty")
	}
	return err
}

// UnmarshalYAML reads an entry. What mig-parted asks for in each must be there: an entry
// that is cut short would clear cards.
func (s *migSpec) UnmarshalYAML(n *yaml.Node) error {
	e := migEntry{node: n, fields: map[string]yaml.Node{}}
	if n.Kind != yaml.MappingNode {
		return e.wrong("", "an entry is not of the form field: value")
	}
	if err := n.Decode(&e.fields); err != nil {
		return oneLine(err)
	}
	for _, name := range slices.Sorted(maps.Keys(e.fields)) {
		if !slices.Contains([]string{"device-filter", "devices", "mig-enabled", "mig-devices"}, name) {
			return e.wrong(name, "unknown field %q", name)
		}
	}
	for _, name := range []string{"devices", "mig-enabled"} {
		if !e.has(name) {
			return e.wrong("", "an entry has no %q", name)
		}
	}
	if err := e.read("mig-enabled", &s.want.Enabled, "neither true nor false"); err != nil {
		return err
	}
	if s.want.Enabled && !e.has("mig-devices") {
		return e.wrong("", "an entry has \"mig-enabled: true\" and no \"mig-devices\": \"mig-devices: {}\" means none")
	}
	return cmp.Or(s.readDevices(e), s.readFilter(e), s.readCounts(e))
}

// A migEntry is an entry as it stands in the file.
type migEntry struct {
	node   *yaml.Node
	fields map[string]yaml.Node
}

// has reports whether a field is there, with a value.
func (e migEntry) has(name string) bool {
	n, ok := e.fields[name]
	return ok && value(&n).ShortTag() != "!!null"
}

// value is a node, or what it stands for.
func value(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func (e migEntry) read(name string, into any, otherwise string) error {
	n := e.fields[name]
	if n.Decode(into) != nil {
		return e.wrong(name, "%q is %s", name, otherwise)
	}
	return nil
}

// wrong is an error in the line of a field, or of the entry.
func (e migEntry) wrong(name, format string, args ...any) error {
	line := e.node.Line
	for _, n := range e.node.Content {
		if n.Kind == yaml.ScalarNode && n.Value == name && name != "" {
			line = n.Line
			break
		}
	}
	return fmt.Errorf("line %d: "+format, append([]any{line}, args...)...)
}

func (s *migSpec) readDevices(e migEntry) error {
	if n := e.fields["devices"]; value(&n).Value == "all" {
		return nil
	}
	s.devices = []int{}
	if err := e.read("devices", &s.devices, `neither "all" nor a list of numbers`); err != nil {
		return err
	}
	if slices.ContainsFunc(s.devices, func(i int) bool { return i < 0 }) {
		return e.wrong("devices", "\"devices\" has a number below 0")
	}
	return nil
}

// readFilter reads one PCI id or a list.
func (s *migSpec) readFilter(e migEntry) error {
	if !e.has("device-filter") {
		return nil
	}
	var all []string
	if n := e.fields["device-filter"]; value(&n).Kind != yaml.ScalarNode {
		if err := e.read("device-filter", &all, "neither an id nor a list of them"); err != nil {
			return err
		}
	} else if value(&n).Value != "" {
		all = []string{value(&n).Value}
	}
	for _, text := range all {
		id, err := readCardID(text)
		if err != nil {
			return e.wrong("device-filter", "%w", err)
		}
		s.filter = append(s.filter, id)
	}
	return nil
}

func (s *migSpec) readCounts(e migEntry) error {
	counts := map[string]int{}
	if err := e.read("mig-devices", &counts, "not of the form profile: number"); err != nil && e.has("mig-devices") {
		return err
	}
	if !s.want.Enabled && len(counts) > 0 {
		return e.wrong("mig-devices", "\"mig-devices\" are given, and \"mig-enabled\" is false")
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

// A cardID is which cards a filter is for, as the rest of gpuvirt writes ids.
type cardID struct{ card, board string } // vendor and device; of the subsystem, empty: any

// readCardID reads a filter: 0x20F110DE is a device and its vendor, and what may follow
// as :0x145F10DE those of the subsystem.
func readCardID(filter string) (cardID, error) {
	card, board, narrow := strings.Cut(filter, ":")
	var id cardID
	var ok bool
	id.card, ok = pciID(card)
	if narrow && ok {
		id.board, ok = pciID(board)
	}
	if !ok {
		return id, fmt.Errorf("%q is no PCI id of device and vendor, as in 0x20B010DE or 0x20F110DE:0x145F10DE", filter)
	}
	return id, nil
}

func pciID(text string) (string, bool) {
	digits, ok := strings.CutPrefix(strings.ToLower(text), "0x")
	n, err := strconv.ParseUint(digits, 16, 32)
	return fmt.Sprintf("%04x:%04x", n&0xffff, n>>16), ok && err == nil
}

// matches reports whether an entry is for a GPU, of whose kind this is the index-th.
func (s migSpec) matches(g api.GPU, index int) bool {
	if s.devices != nil && !slices.Contains(s.devices, index) {
		return false
	}
	return len(s.filter) == 0 || slices.ContainsFunc(s.filter, func(id cardID) bool {
		return id.card == g.PCIID && (id.board == "" || id.board == g.PCISubsystem)
	})
}

// concerns reports whether what an entry means depends on a GPU that cannot be read: it
// may be for that one, or count it.
func (s migSpec) concerns(g api.GPU) bool {
	id := cardIDOf(g)
	return s.devices != nil || len(s.filter) == 0 || id == "" ||
		slices.ContainsFunc(s.filter, func(f cardID) bool { return f.card == id })
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
