package main

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

func sleepCheckCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "sleep-check", Short: "Refuse the host's sleep while VMs use partitions", Args: takes(0),
		Long: `Refuse the host's sleep while VMs use partitions: exit status 3 if a partition
under management is in use, and 4 if that is not known. Its device would have lost
what it holds when the host wakes up. MIG instances that only programs of the host use
do not count.

systemd runs this before the host suspends or hibernates. Where no daemon runs
nothing is refused.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := c.limited(cmd.Context())
			defer cancel()
			parts, err := c.client().Partitions(ctx, client.ListOptions{Filter: map[string]string{"origin": "managed"}})
			if isUnreachable(err) && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)) {
				c.say("no daemon runs that could tell which partitions are in use: %v", err)
				return nil
			}
			if err != nil {
				return &notReadyError{message: "whether VMs use partitions is not known: " + err.Error()}
			}
			return mayLoseThem(parts)
		},
	}
}

// mayLoseThem refuses where a device that a VM can have is in use.
func mayLoseThem(parts []api.Partition) error {
	p := &api.Problem{Status: 409, Code: "gpu-busy", Hint: "shut down these VMs first"}
	unknown := ""
	for _, part := range parts {
		if part.Kind == "mig" {
			continue
		}
		used := false
		for _, h := range part.Holders {
			if h.Kind == "process" { // a VM that only names it in its definition loses nothing
				p.Blockers = append(p.Blockers, api.Blocker{Kind: h.Kind, ID: h.ID, Name: h.Name, Note: "has partition " + part.ID + " open"})
				used = true
			}
		}
		for _, cond := range part.Conditions {
			if cond.Status && cond.Type == "Unknown" && !used {
				unknown = fmt.Sprintf("partition %s: %s", part.ID, cond.Message)
			}
		}
	}
	switch {
	case len(p.Blockers) > 0:
		p.Detail = "the host must not sleep: partitions are in use, and would have lost what they hold when it wakes up"
		return p
	case unknown != "":
		return &notReadyError{message: "whether VMs use partitions is not known: " + unknown}
	}
	return nil
}
