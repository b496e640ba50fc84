package main

import (
	"cmp"
	"context"
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

// cards are those of NVIDIA's that an entry of a file of NVIDIA's tools is for.
type cards struct {
	filter  []cardID // empty: any card
	devices []int    // by number among NVIDIA's, in order of PCI address; nil: all
	were    []string // those that had these numbers when the file was written; nil: it does not say
	skips   bool     // the tool that the file is of does not number what NVIDIA's driver does not have
}

// readStrictly reads the one document of a file. A word that means nothing here would mean
// that something is not done.
func readStrictly(r io.Reader, into any) error {
	dec := yaml.NewDecoder(r)
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil {
		return oneLine(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("it holds more than one document")
	}
	return nil
}

// checkConfigs refuses a file of another version, and configs that are cut short.
func checkConfigs[S any](version string, configs map[string][]S) error {
	if version != "v1" {
		return fmt.Errorf("its version is %q: only \"v1\" is known", version)
	}
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		if len(configs[name]) == 0 {
			return fmt.Errorf("config %q has no entries", name)
		}
	}
	return nil
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

// A configEntry is an entry as it stands in the file.
type configEntry struct {
	node   *yaml.Node
	fields map[string]yaml.Node
}

// readEntry reads an entry that may have certain fields.
func readEntry(n *yaml.Node, fields ...string) (configEntry, error) {
	e := configEntry{node: n, fields: map[string]yaml.Node{}}
	if n.Kind != yaml.MappingNode {
		return e, e.wrong("", "an entry is not of the form field: value")
	}
	if err := n.Decode(&e.fields); err != nil {
		return e, oneLine(err)
	}
	for _, name := range slices.Sorted(maps.Keys(e.fields)) {
		if !slices.Contains(fields, name) {
			return e, e.wrong(name, "unknown field %q", name)
		}
	}
	return e, nil
}

// has reports whether a field is there, with a value.
func (e configEntry) has(name string) bool {
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

func (e configEntry) read(name string, into any, otherwise string) error {
	n := e.fields[name]
	if n.Decode(into) != nil {
		return e.wrong(name, "%q is %s", name, otherwise)
	}
	return nil
}

// wrong is an error in the line of a field, or of the entry.
func (e configEntry) wrong(name, format string, args ...any) error {
	line := e.node.Line
	for _, n := range e.node.Content {
		if n.Kind == yaml.ScalarNode && n.Value == name && name != "" {
			line = n.Line
			break
		}
	}
	return fmt.Errorf("line %d: "+format, append([]any{line}, args...)...)
}

// readDevices reads which are meant by number.
func (s *cards) readDevices(e configEntry) error {
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
func (s *cards) readFilter(e configEntry) error {
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
func (s cards) matches(g api.GPU, index int) bool {
	if s.devices != nil && !slices.Contains(s.devices, index) {
		return false
	}
	return len(s.filter) == 0 || slices.ContainsFunc(s.filter, func(id cardID) bool {
		return id.card == g.PCIID && (id.board == "" || id.board == g.PCISubsystem)
	})
}

// concerns reports whether what an entry means depends on a GPU that cannot be read: it
// may be for that one, or count it.
func (s cards) concerns(g api.GPU) bool {
	id := cardIDOf(g)
	return s.devices != nil || len(s.filter) == 0 || id == "" ||
		slices.ContainsFunc(s.filter, func(f cardID) bool { return f.card == id })
}

// chosen is a GPU and the entry of a config that is for it.
type chosen[S any] struct {
	gpu  api.GPU
	spec S
}

// choose finds a config of a file, and what it has for which GPU. Of several entries for one
// GPU the last counts, as if all were carried out in turn.
func choose[S any](ctx context.Context, c *cli, file, config string, configs map[string][]S, of func(S) cards) (name string, out []chosen[S], err error) {
	have := slices.Sorted(maps.Keys(configs))
	if config == "" && len(have) == 1 {
		config = have[0]
	}
	specs, ok := configs[config]
	if !ok {
		return config, nil, fmt.Errorf("cannot find config %q in %s: it has %s", config, file, cmp.Or(strings.Join(have, ", "), "none"))
	}
	gpus, err := c.nvidiaGPUs(ctx)
	if err != nil {
		return config, nil, err
	}
	if lost := slices.DeleteFunc(slices.Clone(gpus), func(g api.GPU) bool {
		return unread(g) == "" || !slices.ContainsFunc(specs, func(s S) bool { return of(s).concerns(g) })
	}); len(lost) > 0 {
		return config, nil, notReadable("cannot tell which gpus "+config+" is for", lost)
	}
	for _, s := range specs {
		if n := slices.Max(append(slices.Clone(of(s).devices), -1)); n >= len(gpus) {
			return config, nil, fmt.Errorf("cannot find gpu number %d: this host has %d of NVIDIA", n, len(gpus))
		}
	}
	for _, s := range specs {
		if err := of(s).certain(gpus); err != nil {
			return config, nil, fmt.Errorf("cannot tell which gpus %s is for: %w", config, err)
		}
	}
	for i, g := range gpus {
		at := -1
		for j, s := range specs {
			if of(s).matches(g, i) {
				at = j
			}
		}
		if at >= 0 {
			out = append(out, chosen[S]{g, specs[at]})
		}
	}
	return config, out, nil
}
