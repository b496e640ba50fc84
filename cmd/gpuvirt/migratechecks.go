package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"gpuvirt/api"
	"gpuvirt/p2v/verify"
)

// A checkEntry is one check of a file.
type checkEntry struct {
	Name    string   `yaml:"name"`
	Command []string `yaml:"command"`
	Seconds int      `yaml:"seconds"`
	Exit    int      `yaml:"exit"`
	Output  string   `yaml:"output"`
}

// readChecks reads a file of checks.
func readChecks(r io.Reader) ([]api.CheckRequest, error) {
	var entries []checkEntry
	if err := readStrictly(r, &entries); err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("it has no checks")
	}
	var out []api.CheckRequest
	for i, e := range entries {
		if err := verify.Check(e).Check(); err != nil {
			return nil, fmt.Errorf("check %d: %w", i+1, err)
		}
		out = append(out, api.CheckRequest(e))
	}
	return out, nil
}

// readCheck reads what --check says. What only a shell understands is refused, as there is none.
func readCheck(text string) (api.CheckRequest, error) {
	name, command, found := strings.Cut(text, "=")
	words := strings.Fields(command)
	if !found || name == "" || len(words) == 0 {
		return api.CheckRequest{}, fmt.Errorf("--check %q: it takes a name and a command, as name=command", text)
	}
	sign := ""
	if i := strings.IndexAny(command, "'\"`\\$|;<>()*\n"); i >= 0 {
		sign = command[i : i+1]
	}
	for _, w := range words {
		if strings.HasSuffix(w, "&") {
			sign = "&" // in a word it may be of a URL
		}
		if strings.HasPrefix(w, "~") {
			sign = "~"
		}
	}
	if sign != "" {
		return api.CheckRequest{}, fmt.Errorf("--check %q: no shell reads it, and %q would be a part of a word; write it into a file (--checks), where words are as they are and a shell can be called: command: [sh, -c, '…']", text, sign)
	}
	return api.CheckRequest{Name: name, Command: words}, nil
}

// given are all checks that flags say, which have names of their own.
func (f *vmFlags) given() ([]api.CheckRequest, error) {
	var out []api.CheckRequest
	for _, text := range f.checks {
		one, err := readCheck(text)
		if err != nil {
			return nil, f.wrong(err)
		}
		out = append(out, one)
	}
	if f.checksFile != "" {
		more, err := readFrom(f.c, f.checksFile, readChecks)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	all := make([]verify.Check, 0, len(out))
	for _, one := range out {
		all = append(all, verify.Check(one))
	}
	if err := verify.CheckAll(all); err != nil {
		return nil, f.wrong(err)
	}
	return out, nil
}
