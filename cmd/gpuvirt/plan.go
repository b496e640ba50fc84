package main

import (
	"strconv"
	"strings"

	"gpuvirt/api"
)

// showPlan writes the answer to a dry run. A request that would be refused fails
// with what would refuse it.
func (c *cli) showPlan(p api.Plan, err error) error {
	if err != nil {
		return err
	}
	var steps [][]string
	for i, s := range p.Steps {
		steps = append(steps, []string{strconv.Itoa(i + 1), s.Kind, s.Summary})
	}
	fields := []field{
		{name: "Plan", value: p.Summary},
		{name: "Changes", value: yesNo(p.Changes)},
		{name: "Steps", below: steps},
		{name: "Must be idle", value: strings.Join(p.MustBeIdle, ", ")},
	}
	if p.NeedsReset {
		fields = append(fields, field{name: "Needs", value: "a reset of the gpu"})
	}
	if p.NeedsReboot {
		fields = append(fields, field{name: "Needs", value: "a reboot of the host"})
	}
	if p.Problem == nil {
		for _, b := range p.Blockers {
			fields = append(fields, field{name: "Blocker", value: blockerLine(b)})
		}
	}
	if err := printOne(c, p, p.Summary, fields); err != nil {
		return err
	}
	if p.Problem != nil {
		return p.Problem
	}
	return nil
}
