package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/assess"
)

// mostNames is how many of those that fit are named, where not all are wanted.
const mostNames = 8

// namedProfiles are those that somebody has named, by the source's GPU they are named for; "": for none of them.
type namedProfiles map[string][]string

// askedFor reads the profiles of --profile. Naming none for a GPU is to name no profile.
func askedFor(texts []string) namedProfiles {
	out := namedProfiles{}
	for _, text := range texts {
		source, profile, found := strings.Cut(text, "=")
		if !found {
			source, profile = "", text
		}
		if profile != "none" {
			out[source] = append(out[source], profile)
		}
	}
	return out
}

// candidateRows tell of what was looked at for one GPU of the source, all in wide, or else what a person has to know:
// which fit by name, and why the others do not, each reason once. Where profiles are named for that GPU only these
// are told of, of those that do not fit.
func candidateRows(f assess.Fitting, named namedProfiles, wide bool) (rows [][]string) {
	var fit []string
	var out []assess.Candidate
	others := 0
	only := named[f.Need.Source.PCI]
	for _, k := range f.Candidates {
		switch {
		case wide && k.Fits:
			rows = append(rows, []string{"fits", withReasons(k)})
		case wide:
			rows = append(rows, []string{"rejected", withReasons(k)})
		case k.Fits:
			fit = append(fit, k.Profile+" on "+string(k.GPU))
		case len(only) > 0 && !slices.Contains(only, k.Profile):
			others++
		default:
			out = append(out, k)
		}
	}
	if wide {
		return rows
	}
	if f.Choice != nil && len(f.Choice.Cautions) > 0 {
		rows = append(rows, []string{"caution", strings.Join(f.Choice.Cautions, "; ")})
	}
	if n := len(fit) - mostNames; n > 0 {
		fit = append(fit[:mostNames], assess.Count(n, "other", "others"))
	}
	if len(fit) > 0 {
		rows = append(rows, []string{"fits", strings.Join(fit, ", ")})
	}
	rows = append(rows, rejectedRows(out)...)
	if others > 0 {
		rows = append(rows, []string{"rejected", assess.Count(others, "other, which was not asked for", "others, which were not asked for")})
	}
	if len(f.Candidates) > 0 {
		rows = append(rows, []string{"", "-o wide lists all of them, each with its reasons"})
	}
	return rows
}

// rejectedRows tell why candidates do not fit. Those whose reasons differ in figures alone are told of together.
func rejectedRows(all []assess.Candidate) (rows [][]string) {
	var order []string
	alike := map[string][]assess.Candidate{}
	for _, k := range all {
		key := figure.ReplaceAllString(strings.Join(k.Reasons, "; "), "#")
		if len(alike[key]) == 0 {
			order = append(order, key)
		}
		alike[key] = append(alike[key], k)
	}
	for _, key := range order {
		first := alike[key][0]
		text := fmt.Sprintf("%s on %s: %s", first.Profile, first.GPU, strings.Join(first.Reasons, "; "))
		if n := len(alike[key]); n > 1 {
			text = fmt.Sprintf("%d, such as %s", n, text)
		}
		rows = append(rows, []string{"rejected", text})
	}
	return rows
}

// figure is a number with its unit, where that is one of bytes.
var figure = regexp.MustCompile(`[0-9]+(\.[0-9]+)?( ([KMGTP]i)?B\b)?`)

func withReasons(k assess.Candidate) string {
	return fmt.Sprintf("%s on %s: %s", k.Profile, k.GPU, strings.Join(append(slices.Clone(k.Reasons), k.Cautions...), "; "))
}
