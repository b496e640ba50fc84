package main

import (
	"cmp"
	"strings"

	"github.com/spf13/cobra"
)

func healthCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "health", Short: "Tell whether the daemon is ready", Args: takes(0),
		Long: `Tell whether the daemon is ready: exit status 0 if it is, 4 if not. With --wait
given, wait until it is there and ready, for as long as --timeout says.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := c.limited(cmd.Context())
			defer cancel()
			ask := c.client().Health
			if cmd.Flags().Changed("wait") && c.waits() {
				ask = c.client().WaitReady
			}
			h, err := ask(ctx)
			if err != nil {
				return err
			}
			if err := printOne(c, h, h.Status, []field{
				{name: "Status", value: h.Status},
				{name: "Reasons", value: strings.Join(h.Reasons, "; ")},
			}); err != nil {
				return err
			}
			if h.Status != "ok" {
				return &notReadyError{message: "the daemon is not ready: " + cmp.Or(strings.Join(h.Reasons, "; "), "it does not say why")}
			}
			return nil
		},
	}
}
