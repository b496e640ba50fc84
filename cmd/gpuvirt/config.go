package main

import (
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

var settingTable = table[api.Setting]{
	things: "settings",
	name:   func(s api.Setting) string { return s.Key },
	columns: []column[api.Setting]{
		{title: "SETTING", value: func(s api.Setting) string { return s.Key }},
		{title: "VALUE", value: func(s api.Setting) string { return strings.Join(s.Values, ", ") }},
		{title: "FROM", value: func(s api.Setting) string { return s.Origin }},
		{title: "AFTER A RESTART", value: func(s api.Setting) string { return strings.Join(s.AfterRestart, ", ") }},
		{title: "RELOAD", wide: true, value: func(s api.Setting) string { return yesNo(s.Reload) }},
		{title: "MEANING", wide: true, value: func(s api.Setting) string { return s.Description }},
	},
}

func configCommand(c *cli) *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "Show what the daemon is configured to do, and who said so", Args: takes(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.client().Settings(cmd.Context())
			if err != nil {
				return err
			}
			return printList(c, settingTable, s.Items)
		},
	}
	return group("config", "The daemon's configuration", show)
}
