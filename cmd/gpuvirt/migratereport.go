package main

import (
	"slices"
	"strings"
	"unicode/utf8"

	"gpuvirt/p2v/move"
	"gpuvirt/p2v/verify"
)

// besideWidth is of a column of what was seen, where there are two of them beside each other.
const besideWidth = 48

// reportFields show what was found in the VM, beside what was seen on the server before, and what a person
// has to change in the VM.
func reportFields(a move.Attempt) []field {
	var fields []field
	var rows [][]string
	for _, l := range a.Left {
		if l.By == "person" {
			rows = append(rows, []string{l.What, l.Why})
		}
	}
	if len(rows) > 0 {
		fields = append(fields, field{name: "Left to do", below: rows})
	}
	if a.Report != nil {
		fields = append(fields, field{name: "Verdict", value: string(a.Report.Verdict)})
	}
	if rows = lookedAt(a); len(rows) > 0 {
		fields = append(fields, field{name: "Looked at", below: rows})
	}
	return fields
}

// lookedAt are the rows of what was found.
func lookedAt(a move.Attempt) [][]string {
	var found []verify.Result
	if a.Report != nil {
		found = a.Report.Results
	}
	var rows [][]string
	if a.Before == nil || len(a.Before.Results) == 0 {
		for _, r := range found {
			rows = append(rows, []string{string(r.State), r.Title, r.Text})
		}
		return rows
	}
	rows = [][]string{{"", "", "IN THE VM", "ON THE SERVER BEFORE"}}
	for _, r := range found {
		before := orDash(r.Before)
		if i := indexOf(a.Before.Results, r.ID); i >= 0 {
			before = said(a.Before.Results[i])
		}
		rows = append(rows, beside(string(r.State), r.Title, r.Text, before)...)
	}
	for _, r := range a.Before.Results { // the VM may not have come so far
		if indexOf(found, r.ID) < 0 {
			rows = append(rows, beside("-", r.Title, "-", said(r))...)
		}
	}
	return rows
}

func indexOf(results []verify.Result, id string) int {
	return slices.IndexFunc(results, func(r verify.Result) bool { return r.ID == id })
}

func said(r verify.Result) string { return strings.TrimSuffix(string(r.State)+": "+r.Text, ": ") }

// beside are the rows of one thing, with its long texts on several lines.
func beside(state, title, vm, before string) [][]string {
	left, right := wrap(vm, besideWidth), wrap(before, besideWidth)
	rows := [][]string{{state, title, left[0], right[0]}}
	for i := 1; i < max(len(left), len(right)); i++ {
		row := []string{"", "", "", ""}
		if i < len(left) {
			row[2] = left[i]
		}
		if i < len(right) {
			row[3] = right[i]
		}
		rows = append(rows, row)
	}
	return rows
}

// wrap breaks a text between its words into lines of at most so many characters, where they are no longer
// themselves. There is one at least.
func wrap(text string, width int) []string {
	lines := []string{""}
	for _, word := range strings.Fields(text) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case utf8.RuneCountInString(*last)+1+utf8.RuneCountInString(word) <= width:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
	}
	return lines
}
