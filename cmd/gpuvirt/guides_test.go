package main

import (
	"cmp"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"gpuvirt/test/guides"
)

// What people are told to write into a file of checks can be read.
func TestGuidesHaveChecks(t *testing.T) {
	seen := 0
	for _, b := range guides.Blocks(t) {
		if b.Language != "yaml" || !strings.HasPrefix(b.Text, "- name: health\n") {
			continue
		}
		seen++
		if _, err := readChecks(strings.NewReader(b.Text)); err != nil {
			t.Errorf("%s:%d: %v", b.Page, b.Line, err)
		}
	}
	if seen == 0 {
		t.Error("there is no file of checks")
	}
}

// What people are told to type is there: commands, flags with their values, and the number of
// arguments.
func TestGuides(t *testing.T) {
	for _, said := range guides.Commands(t, "gpuvirt") {
		if last := said.Words[len(said.Words)-1]; said.Inline && strings.HasPrefix(last, "-") {
			said.Words = append(said.Words, "what is left out")
		}
		cmd, rest, err := newRoot(&cli{}).Find(said.Words[1:])
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if errors.Is(err, pflag.ErrHelp) {
			continue
		}
		args := cmd.Flags().Args()
		if err == nil && (!said.Inline || cmd.HasSubCommands() && len(args) > 0) {
			err = cmp.Or(cmd.ValidateArgs(args), cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups())
		}
		if err != nil {
			t.Errorf("%s: %q: %v", said.Where, said.Words, err)
		}
	}
}
