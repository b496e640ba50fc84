package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

func migApply(c *cli) *cobra.Command {
	var file, config string
	cmd := &cobra.Command{
		Use: "apply -f FILE [-c CONFIG]", Short: "Cut GPUs as a file of mig-parted says", Args: takes(0),
		Long: `Cut GPUs as a file of mig-parted says, each with the smallest change: what is
there as wanted stays, and so does what is in use. All are planned first: where one
GPU cannot be cut so, or is not under management, none is changed.

NVIDIA's GPUs are numbered by PCI address, as mig-parted does; "devices: all" are all
that MIG can cut. Where mig-parted would count otherwise, as it passes over a card
that a VM is given whole, the file is refused if it does not say which GPUs it means.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			targets, err := c.targets(ctx, file, config)
			if err != nil {
				return err
			}
			lost, err := c.planAll(ctx, targets)
			if err != nil || c.dryRun {
				return err
			}
			if err := c.confirmMIG(ctx, lost); err != nil {
				return err
			}
			for i, t := range targets {
				if err := c.putMIG(ctx, t.gpu.ID, t.want); err != nil {
					if i > 0 {
						c.say("done before that: %s", strings.Join(names(targets[:i], migTarget.id), ", "))
					}
					return err
				}
			}
			return nil
		},
	}
	migFlags(cmd, &file, &config)
	return cmd
}

// planAll asks for every GPU what would be done, before the first is changed, and
// returns what would be lost. A dry run shows it.
func (c *cli) planAll(ctx context.Context, targets []migTarget) (lost []string, err error) {
	var refused []refusal
	for _, t := range targets {
		p, err := c.client().PlanPutMIG(ctx, t.gpu.ID, t.want)
		switch {
		case c.dryRun:
			err = c.showPlan(p, err)
		case err == nil && p.Problem != nil:
			err = p.Problem
		}
		var problem *api.Problem
		if errors.As(err, &problem) {
			refused = append(refused, refusal{t.gpu.ID, problem})
		} else if err != nil {
			return nil, err
		}
		lost = append(lost, losses(t.gpu.ID, p)...)
	}
	if len(refused) > 0 {
		return nil, refuseAll("cut", refused, len(targets))
	}
	return lost, nil
}

// A refusal says why a GPU cannot be changed as wanted.
type refusal struct {
	gpu     string
	problem *api.Problem
}

// refuseAll is one problem for those of several GPUs.
func refuseAll(what string, refused []refusal, of int) *api.Problem {
	all := *refused[0].problem
	var unmanaged []string
	for _, r := range refused {
		if r.problem.Code == "gpu-unmanaged" {
			unmanaged = append(unmanaged, r.gpu)
		}
		all.Hint = cmp.Or(all.Hint, r.problem.Hint)
	}
	if len(unmanaged) > 0 {
		all.Hint = "put it under management: gpuvirt gpu manage " + strings.Join(unmanaged, " ") +
			"; or name the others in the file, with \"devices\" or \"device-filter\""
	}
	if len(refused) == 1 {
		return &all
	}
	all.Detail = fmt.Sprintf("cannot %s %d of %d gpus: nothing was changed", what, len(refused), of)
	all.Blockers = nil
	for _, r := range refused {
		all.Blockers = slices.Concat(all.Blockers, []api.Blocker{{Kind: "gpu", ID: r.gpu, Note: r.problem.Detail}}, r.problem.Blockers)
	}
	return &all
}
