package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"
)

var formats = []string{"table", "wide", "json", "yaml", "name"}

// A column is one property of a thing in a table.
type column[T any] struct {
	title string
	wide  bool // only shown by -o wide
	value func(T) string
}

// A table says how to show things of one kind: what they are called together,
// their names, and their columns.
type table[T any] struct {
	things  string
	name    func(T) string
	columns []column[T]
}

// printList writes things as -o says.
func printList[T any](c *cli, t table[T], items []T) error {
	switch c.output {
	case "json", "yaml":
		return c.encode(items)
	case "name":
		for _, item := range items {
			fmt.Fprintln(c.out, clean(t.name(item)))
		}
		return nil
	}
	if len(items) == 0 {
		c.say("no %s", t.things)
		return nil
	}
	var rows [][]string
	var head []string
	for _, col := range t.columns {
		if !col.wide || c.output == "wide" {
			head = append(head, col.title)
		}
	}
	rows = append(rows, head)
	for _, item := range items {
		var row []string
		for _, col := range t.columns {
			if !col.wide || c.output == "wide" {
				row = append(row, orDash(col.value(item)))
			}
		}
		rows = append(rows, row)
	}
	return align(c.out, "", rows)
}

// printRow writes one thing: as in a list, but as an object in JSON and YAML.
func printRow[T any](c *cli, t table[T], item T) error {
	if c.output == "json" || c.output == "yaml" {
		return c.encode(item)
	}
	return printList(c, t, []T{item})
}

// A field is one line of a thing that is shown alone. It may have lines below it.
type field struct {
	name  string
	value string
	below [][]string
}

// printOne writes one thing with all that is known of it. Empty fields are left
// out.
func printOne(c *cli, thing any, name string, fields []field) error {
	switch c.output {
	case "json", "yaml":
		return c.encode(thing)
	case "name":
		fmt.Fprintln(c.out, clean(name))
		return nil
	}
	var rows [][]string
	flush := func() error {
		err := align(c.out, "", rows)
		rows = nil
		return err
	}
	for _, f := range fields {
		if len(f.below) > 0 {
			if err := flush(); err != nil {
				return err
			}
			fmt.Fprintln(c.out, f.name+":")
			if err := align(c.out, "  ", f.below); err != nil {
				return err
			}
			continue
		}
		if f.value != "" {
			rows = append(rows, []string{f.name + ":", f.value})
		}
	}
	return flush()
}

// align writes rows with their columns below each other.
func align(w io.Writer, indent string, rows [][]string) error {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, clean(cell))
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, indent+strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// encode writes v as JSON or YAML: the fields of the REST interface, sizes in
// bytes.
func (c *cli) encode(v any) error { return encodeTo(c.out, c.output, v) }

func encodeTo(w io.Writer, format string, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("cannot write json: %w", err)
	}
	if format == "yaml" {
		return writeYAML(w, b.Bytes())
	}
	_, err := b.WriteTo(w)
	return err
}

// What every reader of YAML takes for a string without quotes. "0000:41:00.0" is
// a number of base 60 to some.
var (
	plainYAML = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9 ._/,-]*$`)
	oldBool   = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null)$`)
)

// writeYAML writes JSON, which is YAML, in YAML's usual style: so both have the
// same fields in the same order.
func writeYAML(w io.Writer, data []byte) error {
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil {
		return fmt.Errorf("cannot write yaml: %w", err)
	}
	var plain func(n *yaml.Node)
	plain = func(n *yaml.Node) {
		switch {
		case n.Kind == yaml.ScalarNode && n.Style == yaml.DoubleQuotedStyle:
			if plainYAML.MatchString(n.Value) && !oldBool.MatchString(n.Value) {
				n.Style = 0
			}
		case len(n.Content) > 0:
			n.Style = 0
		}
		for _, sub := range n.Content {
			plain(sub)
		}
	}
	plain(&node)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return fmt.Errorf("cannot write yaml: %w", err)
	}
	return enc.Close()
}
