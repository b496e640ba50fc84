package config

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Reference is a file with every setting as it is where nobody says anything, and what it
// means. All of it is commented out.
func Reference() string {
	return `# Configuration of gpuvirtd; see gpuvirtd(8). What is commented out is what holds
# without it. Files in gpuvirtd.d beside this one (*.yaml, by name) come after it, and
# the last to say something counts. Whether all is well: gpuvirtd check-config.
# After a change: systemctl reload gpuvirtd takes over what is marked [reload], a
# restart takes all and touches no device.
` + format(func(s Setting, lines []string, section bool) string {
		var out strings.Builder
		if section {
			return "\n" + lines[0] + "\n" // a section without keys is empty, and fine
		}
		doc := s.Doc
		if s.Live {
			doc += " [reload]"
		}
		indent := lines[0][:len(lines[0])-len(strings.TrimLeft(lines[0], " "))]
		if indent == "" {
			out.WriteString("\n")
		}
		for line := range strings.Lines(doc) {
			out.WriteString(indent + "# " + strings.TrimRight(line, "\n") + "\n")
		}
		for _, line := range lines {
			out.WriteString(indent + "#" + strings.TrimPrefix(line, indent) + "\n")
		}
		return out.String()
	}, Default())
}

// Format is a configuration as a file, each setting with where it comes from.
func Format(l Loaded) string {
	return format(func(s Setting, lines []string, section bool) string {
		if from := l.Origin[s.Key]; from != "" && !section {
			lines[0] += "  # " + from
		}
		return strings.Join(lines, "\n") + "\n"
	}, l.Config)
}

// format writes the settings of a configuration, in sections; each of them, and each
// beginning of a section, passes through write.
func format(write func(s Setting, lines []string, section bool) string, c Config) string {
	var out strings.Builder
	var in []string
	for _, s := range Settings() {
		path := strings.Split(s.Key, ".")
		sections, name := path[:len(path)-1], path[len(path)-1]
		for n, section := range sections {
			if n >= len(in) || !slices.Equal(in[:n+1], sections[:n+1]) {
				out.WriteString(write(s, []string{strings.Repeat("  ", n) + section + ":"}, true))
			}
		}
		in = sections
		indent := strings.Repeat("  ", len(sections))
		out.WriteString(write(s, lines(indent+name+":", indent, s, s.Values(c)), false))
	}
	return out.String()
}

func lines(head, indent string, s Setting, values []string) []string {
	switch {
	case !s.IsList():
		return []string{head + " " + s.written(values[0])}
	case len(values) == 0:
		return []string{head + " []"}
	}
	out := []string{head}
	for _, v := range values {
		out = append(out, fmt.Sprintf("%s  - %s", indent, s.written(v)))
	}
	return out
}

// written is a value as a file has it.
func (s Setting) written(text string) string {
	switch s.at(new(Config)).(type) {
	case *float64, *uint64, *bool:
		return text
	}
	if !s.rows {
		return quoted(text)
	}
	var pairs []string
	for word := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(word, "=")
		pairs = append(pairs, key+": "+quoted(value))
	}
	return "{" + strings.Join(pairs, ", ") + "}"
}

// quoted is a text as a file has it.
func quoted(text string) string {
	out, err := yaml.Marshal(text)
	if err != nil {
		return fmt.Sprintf("%q", text) // which YAML reads as well
	}
	return strings.TrimRight(string(out), "\n")
}
