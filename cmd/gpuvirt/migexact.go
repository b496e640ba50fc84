package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"gpuvirt/api"
)

// A file of mig-parted counts compute instances. Where they lie and which share a GPU
// instance stands in a comment of the entry, as "mig set" takes it: mig-parted reads
// over it.
const exactMark = "# gpuvirt:"

// Such a file has numbers for GPUs, and which has which number changes where one comes or
// goes. So the GPUs stand in a comment as well, in the order of their numbers.
const wereMark = "# gpuvirt-gpus:"

// A migEntryOut is an entry as it is written.
type migEntryOut struct {
	Devices []int          `yaml:"devices,flow"`
	Enabled bool           `yaml:"mig-enabled"`
	Counts  map[string]int `yaml:"mig-devices"`
}

// MarshalYAML writes an entry with its layout in a comment.
func (s migSpec) MarshalYAML() (any, error) {
	var n yaml.Node
	if err := n.Encode(migEntryOut{s.devices, s.want.Enabled, countsOf(s.want)}); err != nil {
		return nil, err
	}
	for _, key := range n.Content {
		if key.Value == "mig-enabled" && len(s.were) > 0 {
			key.HeadComment = wereMark + " " + strings.Join(s.were, " ")
		}
		if key.Value == "mig-devices" && len(s.want.Instances) > 0 {
			key.HeadComment = exactMark + " " + layoutLine(s.want)
		}
	}
	return &n, nil
}

// countsOf is what mig-parted's file can say of a layout that is asked for.
func countsOf(l api.Layout) map[string]int {
	out := map[string]int{}
	for _, in := range l.Instances {
		for _, name := range computeWish(in) {
			out[name]++
		}
	}
	return out
}

// computeWish are the compute instances that are asked for; one that fills it needs no
// word.
func computeWish(in api.LayoutInstance) []string {
	if len(in.Compute) == 0 {
		return []string{in.Profile}
	}
	return in.Compute
}

// exact reads the layout in the comment of an entry; nil if it has none. It must say
// what is counted: who edits the one and forgets the other is told.
func (e configEntry) exact(counts map[string]int) ([]api.LayoutInstance, error) {
	said, stray := comments(e.node, exactLine)
	switch {
	case stray:
		return nil, e.wrong("mig-devices", "the comment %q below it may be meant for it or for the next entry: put it above \"mig-devices\"", exactMark)
	case len(said) == 0:
		return nil, nil
	case len(said) > 1:
		return nil, e.wrong("mig-devices", "the entry has more than one comment %q", exactMark)
	}
	l, err := layoutArgs(strings.Fields(said[0]))
	if err != nil {
		return nil, e.wrong("mig-devices", "the comment %q is wrong: %w", exactMark, err)
	}
	maps.DeleteFunc(counts, func(_ string, n int) bool { return n == 0 })
	if !maps.Equal(counts, countsOf(l)) {
		return nil, e.wrong("mig-devices", "\"mig-devices\" is not what the comment \"%s%s\" says: change both, or remove the comment", exactMark, said[0])
	}
	return l.Instances, nil
}

// readWere reads which GPUs had the numbers.
func (s *migSpec) readWere(e configEntry) error {
	said, stray := comments(e.node, wereLine)
	if len(said) == 0 && !stray {
		return nil
	}
	for _, text := range said {
		s.were = append(s.were, strings.Fields(text)...)
	}
	if stray || len(said) != 1 || len(s.were) != len(s.devices) {
		return e.wrong("devices", "the comment %q is to stand once in an entry, above \"mig-enabled\", with a gpu for each number: correct or remove it", wereMark)
	}
	return nil
}

// exactLine and wereLine are how the comments may be written by hand.
var (
	exactLine = regexp.MustCompile(`^#+\s*gpuvirt:(.*)$`)
	wereLine  = regexp.MustCompile(`^#+\s*gpuvirt-gpus:(.*)$`)
)

// comments finds those of a form in and above a node, wherever an editor has put them,
// and in what the node takes over from elsewhere. One below it may be meant for the
// next: stray reports such a one.
func comments(n *yaml.Node, form *regexp.Regexp) (out []string, stray bool) {
	find := func(comment string) (found []string) {
		for line := range strings.Lines(comment) {
			if m := form.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
				found = append(found, m[1])
			}
		}
		return found
	}
	out, stray = find(n.HeadComment+"\n"+n.LineComment), len(find(n.FootComment)) > 0
	inside := n.Content
	if n.Alias != nil {
		inside = []*yaml.Node{n.Alias}
	}
	for _, sub := range inside {
		more, s := comments(sub, form)
		out, stray = append(out, more...), stray || s
	}
	return out, stray
}

var profileName = regexp.MustCompile(`^([1-9][0-9]*c\.)?[1-9][0-9]*g\.`)

// exportable says why a layout that is there cannot be asked for again.
func exportable(l api.Layout) error {
	for _, in := range l.Instances {
		at := layoutLine(api.Layout{Enabled: true, Instances: []api.LayoutInstance{{Profile: in.Profile, Placement: in.Placement}}})
		if len(in.Compute) == 0 {
			return fmt.Errorf("instance %s has no compute instance, and what is asked for always has one: make one, or remove the instance", at)
		}
		if slices.ContainsFunc(append(slices.Clone(in.Compute), in.Profile), func(name string) bool { return !profileName.MatchString(name) }) {
			return fmt.Errorf("instance %s is of a profile that its driver does not list", at)
		}
	}
	return nil
}

// sameInstances reports whether what is there is what a file asks for: where it lies
// counts only where the file says it.
func sameInstances(is, want api.Layout) bool {
	left := slices.Clone(is.Instances)
	take := func(w api.LayoutInstance) bool {
		i := slices.IndexFunc(left, func(in api.LayoutInstance) bool {
			return in.Profile == w.Profile && (w.Placement == nil || in.Placement != nil && *in.Placement == *w.Placement) &&
				slices.Equal(slices.Sorted(slices.Values(in.Compute)), slices.Sorted(slices.Values(computeWish(w))))
		})
		if i >= 0 {
			left = slices.Delete(left, i, i+1)
		}
		return i >= 0
	}
	place := func(in api.LayoutInstance) int {
		if in.Placement == nil {
			return -1
		}
		return *in.Placement
	}
	// Those with a place have no choice, and come first.
	order := slices.SortedStableFunc(slices.Values(want.Instances), func(a, b api.LayoutInstance) int { return cmp.Compare(place(b), place(a)) })
	return is.Enabled == want.Enabled && !slices.ContainsFunc(order, func(w api.LayoutInstance) bool { return !take(w) }) && len(left) == 0
}

// exported makes the entries for GPUs that are cut as they are: those that are cut
// alike, to the place, share one.
func exported(numbers []int, gpus []api.MIG) ([]migSpec, error) {
	var specs []migSpec
	for i, m := range gpus {
		if err := exportable(m.Actual); err != nil {
			return nil, fmt.Errorf("cannot export gpu %s: %w", m.GPU, err)
		}
		at := slices.IndexFunc(specs, func(s migSpec) bool { return layoutLine(s.want) == layoutLine(m.Actual) })
		if at < 0 {
			specs, at = append(specs, migSpec{want: m.Actual}), len(specs)
		}
		specs[at].devices = append(specs[at].devices, numbers[i])
		specs[at].were = append(specs[at].were, m.GPU)
	}
	if len(specs) == 0 {
		return nil, errors.New("cannot export: this host has no gpu that MIG can cut")
	}
	return specs, nil
}
