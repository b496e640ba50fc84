package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gpuvirt/api"
	"gpuvirt/client"
)

// drawGPU writes the picture of one GPU, or why there is none.
func (c *cli) drawGPU(ctx context.Context, g api.GPU, m api.MIG) error {
	if why := unread(g); why != "" {
		fmt.Fprintln(c.out, clean(fmt.Sprintf("%s  %s  cannot be read: %s", g.ID, orDash(g.Model), why)))
		return nil
	}
	only := client.ListOptions{Filter: map[string]string{"kind": "mig"}}
	profiles, unknown, err := c.client().Profiles(ctx, g.ID, only)
	if err != nil {
		return err
	}
	c.sayUnknown(g.ID, unknown)
	only.Filter["gpu"] = g.ID
	partitions, err := c.client().Partitions(ctx, only)
	if err != nil {
		return err
	}
	return writePicture(c, g, m, profiles, partitions)
}

// A cell is a run of memory slices in the picture: an instance, or one free slice.
type cell struct {
	place, slices int
	label         string
}

func writePicture(c *cli, g api.GPU, m api.MIG, profiles []api.Profile, partitions []api.Partition) error {
	fmt.Fprintln(c.out, clean(fmt.Sprintf("%s  %s  %s", g.ID, g.Model, migLine(m))))
	size, width := map[string]int{}, 0
	for _, p := range profiles {
		size[p.Name] = number(p.Attributes["memory_slices"])
		for at := range strings.SplitSeq(p.Attributes["placements"], ",") {
			width = max(width, number(at)+size[p.Name])
		}
	}
	if m.Actual.Enabled {
		drawCells(c, cellsOf(m.Actual, size, width), width)
	}
	slices.SortFunc(partitions, func(a, b api.Partition) int { return number(a.Slot) - number(b.Slot) })
	rows := [][]string{{"SLICES", "PROFILE", "COMPUTE", "USED BY", "STATE", "ORIGIN", "UUID"}}
	if c.output != "wide" {
		rows[0] = rows[0][:6]
	}
	for _, p := range partitions {
		at := p.Slot
		if n, listed := size[p.Profile]; !listed {
			at += "-?"
		} else if n > 1 {
			at += "-" + strconv.Itoa(number(p.Slot)+n-1)
		}
		var compute, uuids []string
		for _, ci := range p.Compute {
			compute, uuids = append(compute, ci.Profile), append(uuids, ci.UUID)
		}
		row := []string{at, p.Profile, strings.Join(compute, ","), strings.Join(names(p.Holders, holder), ", "), p.State, p.Origin, strings.Join(uuids, ",")}
		for i, text := range row {
			row[i] = orDash(text)
		}
		rows = append(rows, row[:len(rows[0])])
	}
	if len(partitions) > 0 {
		if err := align(c.out, "  ", rows); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(partitions, func(p api.Partition) bool { return size[p.Profile] == 0 }) {
		fmt.Fprintln(c.out, "  ?: the driver lists no such profile, so how far it reaches is not known")
	}
	if line := fitLine(m.Actual.Enabled, profiles); line != "" {
		fmt.Fprintln(c.out, clean("  "+line))
	}
	if m.Wanted != nil && !m.Equal {
		fmt.Fprintln(c.out, clean("  asked for:  "+layoutLine(*m.Wanted)))
	}
	return nil
}

// fitLine says what fits beside what is there or, where MIG is off, what would.
func fitLine(on bool, profiles []api.Profile) string {
	var fits []string
	for _, p := range profiles {
		n := p.MaxInstances
		if on {
			n = p.Available
		}
		if n > 0 && (!on || p.NotCreatable == "") {
			fits = append(fits, fmt.Sprintf("%d %s", n, p.Name))
		}
	}
	switch {
	case len(profiles) == 0:
		return "" // they could not be read
	case len(fits) == 0:
		return "nothing else fits"
	case on:
		return "still fits: " + strings.Join(fits, " or ")
	}
	return "would fit:  " + strings.Join(fits, " or ")
}

func migLine(m api.MIG) string {
	word := map[bool]string{true: "on", false: "off"}
	line := "MIG " + word[m.Mode.Current]
	if m.Mode.Pending != m.Mode.Current {
		line += ", " + word[m.Mode.Pending] + " after a " + cmp.Or(m.Mode.Needs, "reset")
	}
	if !m.Equal {
		line += "; not as asked for"
	}
	return line
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// cellsOf says what lies where, from the first memory slice to the last.
func cellsOf(l api.Layout, size map[string]int, width int) []cell {
	var cells []cell
	there := slices.DeleteFunc(slices.Clone(l.Instances), func(in api.LayoutInstance) bool { return in.Placement == nil })
	slices.SortFunc(there, func(a, b api.LayoutInstance) int { return *a.Placement - *b.Placement })
	at := 0
	free := func(to int) {
		for ; at < to; at++ {
			cells = append(cells, cell{place: at, slices: 1, label: "."})
		}
	}
	for i, in := range there {
		free(*in.Placement)
		x := cell{place: *in.Placement, slices: size[in.Profile], label: clean(in.Profile)}
		if x.slices == 0 { // not listed: what is up to the next one cannot be called free
			end := max(width, x.place+1)
			if i+1 < len(there) {
				end = *there[i+1].Placement
			}
			x.slices, x.label = max(1, end-x.place), x.label+"?"
		}
		cells = append(cells, x)
		at = x.place + x.slices
	}
	free(width)
	return cells
}

// drawCells writes a ruler of memory slices and the instances below it. A slice is as
// wide as the longest name needs.
func drawCells(c *cli, cells []cell, width int) {
	unit := 4
	for _, x := range cells {
		unit = max(unit, (utf8.RuneCountInString(x.label)+3+x.slices-1)/x.slices)
		width = max(width, x.place+x.slices)
	}
	ruler, row := " ", " "
	for i := range width {
		ruler += fmt.Sprintf(" %-*d", unit-1, i)
	}
	for _, x := range cells {
		row += fmt.Sprintf("|%-*s", unit*x.slices-1, " "+x.label)
	}
	fmt.Fprintln(c.out, strings.TrimRight(ruler, " "))
	fmt.Fprintln(c.out, row+"|")
}
