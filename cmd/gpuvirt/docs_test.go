package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const (
	manDir  = "../../packaging/man"
	cliPage = "../../docs/cli/README.md"
)

// The manual pages and the reference are made from the commands, and checked in.
func TestDocs(t *testing.T) {
	root := newRoot(&cli{})
	want := map[string]string{cliPage: markdown(root)}
	want[filepath.Join(manDir, "gpuvirt.1")] = manPage(root)
	for _, cmd := range documented(root) {
		if cmd.Name() != "completion" {
			want[filepath.Join(manDir, "gpuvirt-"+cmd.Name()+".1")] = manPage(cmd)
		}
	}
	there, err := filepath.Glob(filepath.Join(manDir, "gpuvirt*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range there {
		if _, found := want[path]; !found {
			t.Errorf("%s belongs to no command", path)
		}
	}
	for path, text := range want {
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(text, string(got)); diff != "" {
			t.Errorf("%s is stale (go test ./cmd/gpuvirt -update)\n%s", path, diff)
		}
	}
}

// Every command says what it does, in one line that ends without a period.
func TestHelp(t *testing.T) {
	for _, cmd := range tree(newRoot(&cli{})) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || len(cmd.Short) > 72 {
			t.Errorf("%s: %q", cmd.CommandPath(), cmd.Short)
		}
	}
}

// documented returns a command's subcommands, without help.
func documented(cmd *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(cmd.Commands()), func(c *cobra.Command) bool {
		return c.Hidden || c.Name() == "help"
	})
}

// tree returns a command and all below it, except the shells of completion.
func tree(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	if cmd.Name() == "completion" {
		return all
	}
	for _, sub := range documented(cmd) {
		all = append(all, tree(sub)...)
	}
	return all
}

func describe(cmd *cobra.Command) string {
	if cmd.Long != "" && cmd.Name() != "completion" {
		return cmd.Long
	}
	return cmd.Short + "."
}

func synopsis(cmd *cobra.Command) string {
	line := cmd.CommandPath() + strings.TrimPrefix(cmd.Use, cmd.Name())
	if cmd.HasAvailableSubCommands() {
		return line + " COMMAND"
	}
	if cmd.HasAvailableLocalFlags() {
		line += " [flags]"
	}
	return line
}

func flagLine(f *pflag.Flag) (name, usage string) {
	value, usage := pflag.UnquoteUsage(f)
	name = "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", " + name
	}
	if value != "" {
		name += " " + value
	}
	return name, usage
}

func flagsOf(cmd *cobra.Command) *pflag.FlagSet {
	if cmd.HasParent() {
		return cmd.LocalNonPersistentFlags()
	}
	return cmd.PersistentFlags()
}

// roff escapes text for a manual page.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	var out []string
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			line = `\&` + line
		}
		out = append(out, line)
	}
	return strings.Join(out, "")
}

func manPage(top *cobra.Command) string {
	var b strings.Builder
	title := strings.ReplaceAll(top.CommandPath(), " ", "-")
	fmt.Fprintf(&b, ".\\\" Made from the commands: go test ./cmd/gpuvirt -update\n")
	fmt.Fprintf(&b, ".TH %s 1 \"\" gpuvirt \"User Commands\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(roff(title)), roff(title), roff(lowerFirst(top.Short)))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n.SH DESCRIPTION\n%s\n", roff(synopsis(top)), manText(describe(top)))
	switch {
	case !top.HasParent():
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range documented(top) {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(sub.Name()), roff(sub.Short))
		}
	case top.HasAvailableSubCommands():
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range documented(top) {
			fmt.Fprintf(&b, ".SS %s\n%s\n", roff(strings.TrimPrefix(synopsis(sub), "gpuvirt ")), manText(describe(sub)))
			manFlags(&b, sub)
		}
	}
	if flagsOf(top).HasAvailableFlags() {
		b.WriteString(".SH OPTIONS\n")
		manFlags(&b, top)
	}
	if top.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(top.Example))
	}
	b.WriteString(".SH SEE ALSO\n")
	if top.HasParent() {
		b.WriteString(".BR gpuvirt (1),\nwhich has the options of all commands and the exit status\n")
	} else {
		for i, sub := range documented(top) {
			if sub.Name() != "completion" {
				if i > 0 {
					b.WriteString(",\n")
				}
				fmt.Fprintf(&b, ".BR gpuvirt\\-%s (1)", roff(sub.Name()))
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// manText writes paragraphs; indented lines stay as they are.
func manText(s string) string {
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		switch {
		case line == "":
			out = append(out, ".PP")
		case strings.HasPrefix(line, "  "):
			out = append(out, ".br", roff(strings.TrimPrefix(line, "  ")))
		default:
			out = append(out, roff(line))
		}
	}
	return strings.Join(out, "\n")
}

func manFlags(b *strings.Builder, cmd *cobra.Command) {
	flagsOf(cmd).VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		name, usage := flagLine(f)
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(name), roff(usage))
	})
}

func markdown(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("<!-- Made from the commands: go test ./cmd/gpuvirt -update -->\n# The command line\n")
	for _, cmd := range tree(root) {
		if cmd.HasParent() {
			level := "##"
			if cmd.Parent().HasParent() {
				level = "###"
			}
			fmt.Fprintf(&b, "\n%s %s\n", level, cmd.CommandPath())
		}
		if !cmd.HasAvailableSubCommands() {
			fmt.Fprintf(&b, "\n```\n%s\n```\n", synopsis(cmd))
		}
		fmt.Fprintf(&b, "\n%s\n", markdownText(describe(cmd)))
		var rows []string
		flagsOf(cmd).VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !f.Hidden {
				name, usage := flagLine(f)
				rows = append(rows, fmt.Sprintf("| `%s` | %s |", name, strings.ReplaceAll(usage, "|", `\|`)))
			}
		})
		if len(rows) > 0 {
			fmt.Fprintf(&b, "\n| flag | |\n|---|---|\n%s\n", strings.Join(rows, "\n"))
		}
		if cmd.Example != "" {
			fmt.Fprintf(&b, "\n```\n%s\n```\n", strings.ReplaceAll(strings.TrimSpace(cmd.Example), "\n  ", "\n"))
		}
	}
	return b.String()
}

// markdownText makes a list of indented lines.
func markdownText(s string) string {
	var out []string
	for line := range strings.SplitSeq(s, "\n") {
		if rest, found := strings.CutPrefix(line, "  "); found {
			if len(out) > 0 && !strings.HasPrefix(out[len(out)-1], "- ") {
				out = append(out, "")
			}
			line = "- " + rest
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
