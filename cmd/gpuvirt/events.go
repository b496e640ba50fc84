package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

func eventsCommand(c *cli) *cobra.Command {
	var after string
	cmd := &cobra.Command{
		Use: "events", Short: "Follow what happens, a line for each event", Args: takes(0),
		Long: `Follow what happens on the host: a line for each event, until you stop it or
--timeout has passed. With -o json, each line is an object.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := c.limited(cmd.Context())
			defer cancel()
			for e, err := range c.client().Events(ctx, after) {
				if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
					return nil // it was to end now
				}
				if err != nil {
					return err
				}
				if err := c.printEvent(e); err != nil {
					return err
				}
			}
			return context.Cause(ctx)
		},
	}
	cmd.Flags().StringVar(&after, "after", "", "begin after the event with this `id`, if it is still kept")
	return cmd
}

func (c *cli) printEvent(e api.Event) error {
	var err error
	switch c.output {
	case "json":
		err = json.NewEncoder(c.out).Encode(e)
	case "yaml":
		fmt.Fprintln(c.out, "---")
		err = c.encode(e)
	case "name":
		_, err = fmt.Fprintln(c.out, clean(e.ID))
	default:
		line := fmt.Sprintf("%s  %-22s  %s  %s", when(e.Time), e.Type, e.Object, pairs(e.Detail))
		if c.output == "wide" {
			line = e.ID + "  " + line
		}
		_, err = fmt.Fprintln(c.out, strings.TrimRight(clean(line), " "))
	}
	return err
}
