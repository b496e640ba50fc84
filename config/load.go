package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"gpuvirt/p2v/assess"
)

// Loaded is a configuration with where it comes from.
type Loaded struct {
	Config

	Files []string // that were read, in their order
	// Origin says where a setting was said, by its key: "file:line", or "command line";
	// nothing of those that nobody has said.
	Origin map[string]string
	// StoreUnknown says that a file names a state_dir, or may, that cannot be used.
	StoreUnknown bool
}

// stateDir is the key of the setting without which nothing is known of what was asked for.
const stateDir = "state_dir"

var namesStateDir = regexp.MustCompile(`(?m)^[^#\n]*\b` + stateDir + `\b`)

// Load reads a file and those of the folder beside it. A file that is not there is an
// error, unless it is optional; the folder need not be there.
func Load(path string, optional bool) (Loaded, error) {
	out := Loaded{Config: Default(), Origin: map[string]string{}}
	files := []string{path}
	if _, err := os.Stat(path); optional && errors.Is(err, fs.ErrNotExist) {
		files = nil
	}
	more, err := filepath.Glob(filepath.Join(escaped(strings.TrimSuffix(path, ".yaml")+".d"), "*.yaml"))
	if err != nil {
		return out, fmt.Errorf("cannot list what is beside %q: %w", path, err)
	}
	// Editors leave such files, and links that lead nowhere, beside what they work on.
	more = slices.DeleteFunc(more, func(file string) bool { return strings.HasPrefix(filepath.Base(file), ".") })
	slices.Sort(more)
	var errs []error
	for _, file := range append(files, more...) {
		if err := out.read(file); err != nil {
			errs = append(errs, err)
			continue
		}
		out.Files = append(out.Files, file)
	}
	return out, errors.Join(errs...)
}

// escaped is a path as filepath.Glob takes it to the letter.
func escaped(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// Override says something on the command line.
func (l *Loaded) Override(s Setting, values ...string) error {
	if err := s.Set(&l.Config, values...); err != nil {
		return err
	}
	l.said(s.Key, "command line")
	return nil
}

// Check says what settings that can be, each by itself, cannot be together.
func (l *Loaded) Check() error {
	var errs []error
	fail := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s %s", cmp.Or(l.Origin[key], "settings"), key, fmt.Sprintf(format, args...)))
	}
	switch {
	case l.TLSCertificate != "" && l.TLSKey == "":
		fail("tls.certificate", "takes tls.key")
	case l.TLSKey != "" && l.TLSCertificate == "":
		fail("tls.key", "takes tls.certificate")
	case l.TLSListen != "" && l.TLSCertificate == "":
		fail("tls.listen", "takes tls.certificate and tls.key: nothing is served over the network in the clear")
	}
	lists := map[string][]string{"tls.admins": l.TLSAdmins, "tls.operators": l.TLSOperators, "tls.viewers": l.TLSViewers}
	named := 0
	for _, key := range slices.Sorted(maps.Keys(lists)) {
		named += len(lists[key])
		if len(lists[key]) > 0 && l.TLSClientCA == "" {
			fail(key, "takes tls.client_ca: without it no certificate is known")
		}
	}
	if _, err := assess.BuiltInDrivers().Extend(l.Drivers...); err != nil {
		fail("p2v.drivers", "%s", strings.TrimPrefix(err.Error(), "the table of drivers "))
	}
	const policy, least, most = "p2v.policy.", "bandwidth_min_bytes_per_second", "bandwidth_max_bytes_per_second"
	if l.Policy.BandwidthMinBytes > l.Policy.BandwidthMaxBytes {
		if l.Origin[policy+least] != "" {
			fail(policy+least, "is more than %s", most)
		} else {
			fail(policy+most, "is less than %s", least)
		}
	}
	if l.TLSClientCA != "" && named == 0 {
		fail("tls.client_ca", "lets nobody in: tls.admins, tls.operators or tls.viewers says whom")
	}
	return errors.Join(errs...)
}

func (l *Loaded) said(key, by string) {
	l.Origin[key] = by
	if key == stateDir {
		l.StoreUnknown = false
	}
}

// read adds what a file says.
func (l *Loaded) read(file string) error {
	text, err := os.ReadFile(file) //nolint:gosec // the file that root named
	if err != nil {
		l.StoreUnknown = true
		return err // which names the file
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	err = dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil // nothing but comments
	}
	if err == nil {
		if err = dec.Decode(new(yaml.Node)); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("it holds more than one document")
		}
	}
	if err != nil {
		l.StoreUnknown = l.StoreUnknown || namesStateDir.Match(text)
		return fmt.Errorf("%s: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	r := reader{file: file, to: l, settings: Settings()}
	r.mapping("", doc.Content[0])
	return errors.Join(r.errs...)
}

// A reader goes through one file, and on after what is wrong.
type reader struct {
	file     string
	to       *Loaded
	settings []Setting
	errs     []error
}

func (r *reader) fail(n *yaml.Node, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s:%d: %s", r.file, n.Line, fmt.Sprintf(format, args...)))
}

// mapping reads the keys below a prefix.
func (r *reader) mapping(prefix string, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a section that is all comments
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n, "%s must be a list of keys with values", cmp.Or(strings.TrimSuffix(prefix, "."), "the file"))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		full := prefix + key.Value
		if line, twice := seen[full]; twice {
			r.fail(key, "%s stands there twice, first in line %d", full, line)
			r.to.StoreUnknown = r.to.StoreUnknown || full == stateDir
			continue
		}
		seen[full] = key.Line
		switch at := slices.IndexFunc(r.settings, func(s Setting) bool { return s.Key == full }); {
		case key.Kind != yaml.ScalarNode:
			r.fail(key, "a key must be a word")
		case at >= 0:
			r.setting(r.settings[at], value)
		case slices.ContainsFunc(r.settings, func(s Setting) bool { return strings.HasPrefix(s.Key, full+".") }):
			r.mapping(full+".", value)
		default:
			r.fail(key, "there is no setting %q%s", full, r.instead(prefix))
		}
	}
}

// instead lists what could stand below a prefix.
func (r *reader) instead(prefix string) string {
	var names []string
	for _, s := range r.settings {
		rest, ok := strings.CutPrefix(s.Key, prefix)
		name, _, _ := strings.Cut(rest, ".")
		if ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return ": there are " + strings.Join(names, ", ")
}

func (r *reader) setting(s Setting, n *yaml.Node) {
	r.to.StoreUnknown = r.to.StoreUnknown || s.Key == stateDir // until it is said
	nodes := []*yaml.Node{n}
	if s.IsList() {
		if n.Kind != yaml.SequenceNode {
			r.fail(n, "%s must be a list", s.Key)
			return
		}
		nodes = n.Content
	}
	if s.rows {
		r.rows(s, nodes, n.Line)
		return
	}
	values := make([]string, len(nodes))
	for i, v := range nodes {
		// Anything in one piece is the text that stands there: 0640 and 1:2 are no numbers here.
		if v.Kind != yaml.ScalarNode || v.Tag == "!!null" {
			r.fail(v, "%s must be a text", s.Key)
			return
		}
		values[i] = v.Value
	}
	if err := s.Set(&r.to.Config, values...); err != nil {
		r.fail(n, "%s: %s", s.Key, err)
		return
	}
	r.to.said(s.Key, fmt.Sprintf("%s:%d", r.file, n.Line))
}

// rows reads a list of rows, each of keys with values in one piece.
func (r *reader) rows(s Setting, nodes []*yaml.Node, line int) {
	var values []string
	wrong := len(r.errs)
	for _, n := range nodes {
		if text, ok := r.row(s, n); ok {
			values = append(values, text)
		}
	}
	if len(r.errs) > wrong {
		return
	}
	if err := s.Set(&r.to.Config, values...); err != nil {
		r.fail(&yaml.Node{Line: line}, "%s: %s", s.Key, err)
		return
	}
	r.to.said(s.Key, fmt.Sprintf("%s:%d", r.file, line))
}

// row reads one, as words. What is wrong with a value is told with its own line.
func (r *reader) row(s Setting, n *yaml.Node) (text string, ok bool) {
	if n.Kind != yaml.MappingNode {
		r.fail(n, "%s must be a list of rows, each of keys with values", s.Key)
		return "", false
	}
	var words []string
	at := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || value.Kind != yaml.ScalarNode || value.Tag == "!!null":
			r.fail(key, "%s must be a list of rows, each of keys with values", s.Key)
			return "", false
		case at[key.Value] != nil:
			r.fail(key, "%s: %s stands there twice", s.Key, key.Value)
			return "", false
		}
		for _, word := range []string{key.Value, value.Value} {
			if len(strings.Fields(word)) != 1 || strings.Contains(word, "=") {
				r.fail(key, "%s: %q is more than a word, or less", s.Key, word)
				return "", false
			}
		}
		at[key.Value] = key
		words = append(words, key.Value+"="+value.Value)
	}
	text, err := s.check(strings.Join(words, " "))
	if err != nil {
		where := n
		if e, is := errors.AsType[*assess.RowError](err); is && at[e.Key] != nil {
			where = at[e.Key]
		}
		r.fail(where, "%s: %s", s.Key, err)
	}
	return text, err == nil
}
