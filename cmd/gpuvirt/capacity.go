package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

func capacityCommand(c *cli) *cobra.Command {
	var profile string
	cmd := &cobra.Command{
		Use: "capacity", Short: "Tell how many more partitions fit, and why not more", Args: takes(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			capacity, err := c.client().Capacity(cmd.Context(), profile)
			if err != nil {
				return err
			}
			return c.showCapacity(capacity)
		},
	}
	cmd.Flags().StringVar(&profile, "profile", "", "only of this `profile`")
	completeFlag(c, cmd, "profile", profileNames)
	return cmd
}

// showCapacity writes how many more fit, GPU by GPU; by name, the profiles that do.
func (c *cli) showCapacity(capacity api.Capacity) error {
	var rows []capacityRow
	for _, p := range capacity.Profiles {
		for _, g := range p.GPUs {
			rows = append(rows, capacityRow{p.Profile, p.Kind, g.GPU, p.Available, g.Available, g.Reasons})
		}
	}
	switch c.output {
	case "json", "yaml":
		return c.encode(capacity)
	case "name":
		rows = nil
		for _, p := range capacity.Profiles {
			if p.Available > 0 {
				rows = append(rows, capacityRow{profile: p.Profile})
			}
		}
	}
	return printList(c, capacityTable, rows)
}

// A capacityRow is how many more of a profile fit in all and on one GPU.
type capacityRow struct {
	profile, kind, gpu string
	inAll, here        int
	reasons            []string
}

var capacityTable = table[capacityRow]{
	things: "profiles",
	name:   func(r capacityRow) string { return r.profile },
	columns: []column[capacityRow]{
		{title: "PROFILE", value: func(r capacityRow) string { return r.profile }},
		{title: "KIND", wide: true, value: func(r capacityRow) string { return r.kind }},
		{title: "IN ALL", value: func(r capacityRow) string { return strconv.Itoa(r.inAll) }},
		{title: "GPU", value: func(r capacityRow) string { return r.gpu }},
		{title: "HERE", value: func(r capacityRow) string { return strconv.Itoa(r.here) }},
		{title: "WHY NOT MORE", value: func(r capacityRow) string { return strings.Join(r.reasons, "; ") }},
	},
}
