package main

import (
	"regexp"
	"strings"
	"testing"

	"gpuvirt/p2v/assess"
)

// What helps against a concern can be done: the commands and flags that a remedy names are there,
// and nothing is to be said in a plan by what is no flag. Flags are those that a migration is planned
// with, or of the command before them; settings are looked for by the tests of config.
func TestRemedies(t *testing.T) {
	code := regexp.MustCompile("`gpuvirt ([^`]+)`")
	flag := regexp.MustCompile(`(?:^|[\s(])--([a-z][a-z-]*)`)
	nowhere := regexp.MustCompile(`(?i)\b(?:in|to|out of|with) the (?:plan|wish)\b`)
	others := map[string]string{"config": "virsh", "allow-rpcs": "qemu-ga"} // flags of other programs
	seen := 0
	for _, r := range assess.Catalogue() {
		for _, said := range code.FindAllStringSubmatch(r.Remedy, -1) {
			cmd, rest, err := newRoot(&cli{}).Find(strings.Fields(said[1]))
			if err == nil {
				err = cmd.ParseFlags(rest)
			}
			if err != nil || cmd.HasSubCommands() {
				t.Errorf("%s: %s: %v", r.ID, said[0], err)
			}
			seen++
		}
		start, _, err := newRoot(&cli{}).Find([]string{"migrate", "start"})
		if err != nil {
			t.Fatal(err)
		}
		for _, said := range flag.FindAllStringSubmatch(code.ReplaceAllString(r.Remedy, ""), -1) {
			if of := others[said[1]]; start.Flag(said[1]) == nil && (of == "" || !strings.Contains(r.Remedy, of)) {
				t.Errorf("%s: no migration is planned with --%s: %s", r.ID, said[1], r.Remedy)
			}
			seen++
		}
		if nowhere.MatchString(r.Remedy) {
			t.Errorf("%s: a person cannot write into a plan; which flag is it? %s", r.ID, r.Remedy)
		}
	}
	if seen < 20 {
		t.Errorf("%d commands and flags were found", seen)
	}
}
