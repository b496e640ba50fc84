package main

import (
	"github.com/spf13/cobra"

	"gpuvirt/internal/version"
)

func versionCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Tell the versions of this program and of the daemon", Args: takes(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Client string `json:"client"`
				Daemon string `json:"daemon,omitempty"`
				API    string `json:"api,omitempty"`
				State  string `json:"state,omitempty"`
			}{Client: version.String()}
			info, err := c.client().Info(cmd.Context())
			if err == nil {
				v.Daemon, v.API, v.State = info.Version, info.APIVersion, info.State
			}
			if err := printOne(c, v, v.Client, []field{
				{name: "Client", value: v.Client},
				{name: "Daemon", value: v.Daemon},
				{name: "API", value: v.API},
				{name: "State", value: v.State},
			}); err != nil {
				return err
			}
			if err != nil {
				c.say("the daemon's version is not known: %s", err)
			}
			return nil
		},
	}
}
