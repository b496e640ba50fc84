package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

func migCommand(c *cli) *cobra.Command {
	return group("mig", "Cut GPUs into MIG instances, one at a time",
		migShow(c), migSet(c), migOff(c), migCapacity(c), migApply(c), migAssert(c), migExport(c))
}

// migIDs are the GPUs that MIG can cut.
func migIDs(ctx context.Context, c *cli) ([]string, error) {
	gpus, err := c.client().GPUs(ctx, client.ListOptions{})
	return names(slices.DeleteFunc(gpus, func(g api.GPU) bool { return !g.MIG.Capable }), gpuTable.name), err
}

func migShow(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "show [GPU]...", Short: "Draw how GPUs are cut, by whom they are used, and what still fits",
		RunE: func(cmd *cobra.Command, args []string) error {
			gpus, err := c.migGPUs(cmd.Context(), args)
			if err != nil {
				return err
			}
			all := []api.MIG{}
			var lost []api.GPU
			for i, g := range gpus {
				m, err := c.readMIG(cmd.Context(), &g)
				if err != nil {
					return err
				}
				if unread(g) != "" {
					lost = append(lost, g)
				} else {
					all = append(all, m)
				}
				if !c.draws() {
					continue
				}
				if i > 0 {
					fmt.Fprintln(c.out)
				}
				if err := c.drawGPU(cmd.Context(), g, m); err != nil {
					return err
				}
			}
			if c.draws() && len(gpus) > 0 {
				return nil
			}
			err = printList(c, table[api.MIG]{things: "gpus that MIG can cut", name: func(m api.MIG) string { return m.GPU }}, all)
			if err == nil && len(lost) > 0 {
				err = notReadable("cannot show all", lost)
			}
			return err
		},
	}, 0, migIDs)
}

// migGPUs returns the GPUs that are named, or all that MIG can cut or may be able to.
func (c *cli) migGPUs(ctx context.Context, ids []string) ([]api.GPU, error) {
	var out []api.GPU
	for _, id := range ids {
		g, err := c.client().GPU(ctx, id)
		if err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	if len(ids) > 0 {
		return out, nil
	}
	all, err := c.client().GPUs(ctx, client.ListOptions{})
	return slices.DeleteFunc(all, func(g api.GPU) bool { return !g.MIG.Capable && (unread(g) == "" || !maybeNVIDIA(g)) }), err
}

// draws reports whether a picture is asked for.
func (c *cli) draws() bool { return c.output == "table" || c.output == "wide" }

// readMIG returns how a GPU is cut. Where that cannot be read the GPU says why.
func (c *cli) readMIG(ctx context.Context, g *api.GPU) (m api.MIG, err error) {
	if unread(*g) != "" {
		return m, nil
	}
	m, err = c.client().MIG(ctx, g.ID)
	if why := unreadProblem(err); why != "" {
		g.Conditions = append(g.Conditions, api.Condition{Type: "Unknown", Status: true, Message: why})
		return m, nil
	}
	return m, err
}

// layoutLine writes a layout as "mig set" takes it.
func layoutLine(l api.Layout) string {
	if !l.Enabled {
		return "MIG off"
	}
	if len(l.Instances) == 0 {
		return "MIG on, no instances"
	}
	var out []string
	for _, in := range l.Instances {
		text := in.Profile
		if in.Placement != nil {
			text += "@" + strconv.Itoa(*in.Placement)
		}
		if len(in.Compute) > 0 && !slices.Equal(in.Compute, []string{in.Profile}) {
			text += "=" + strings.Join(in.Compute, ",")
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// actualLine is layoutLine of what is there: an instance may have no compute instance.
func actualLine(l api.Layout) string {
	l.Instances = slices.Clone(l.Instances)
	for i := range l.Instances {
		if len(l.Instances[i].Compute) == 0 {
			l.Instances[i].Compute = []string{"-"}
		}
	}
	return layoutLine(l)
}

func migSet(c *cli) *cobra.Command {
	var empty bool
	cmd := &cobra.Command{
		Use:   "set GPU PROFILE[@PLACE][=COMPUTE,...]...",
		Short: "Cut a GPU into just these instances, with the smallest change",
		Long: `Cut a GPU into just the instances that are named. Those that are there already
stay as they are; an instance in use always stays, and where it is in the way
nothing is changed.

PLACE is the first memory slice; without it the instance is placed where most room
is left for large ones. COMPUTE are the profiles of its compute instances; without
them there is one that fills it.`,
		Example: `  gpuvirt mig set 0000:41:00.0 3g.40gb 2g.20gb 1g.10gb 1g.10gb
  gpuvirt mig set 0000:41:00.0 3g.40gb@4 4g.40gb=2c.4g.40gb,2c.4g.40gb --dry-run`,
		Args: takesAtLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := layoutArgs(args[1:])
			if err == nil && empty != (len(args) == 1) {
				err = errors.New("name the instances, or say --empty for none")
			}
			if err != nil {
				return &usageError{message: err.Error(), command: cmd.CommandPath()}
			}
			return c.setMIG(cmd.Context(), args[0], l)
		},
	}
	cmd.Flags().BoolVar(&empty, "empty", false, "turn MIG on with no instances")
	return completeArgs(c, cmd, 1, migIDs)
}

// layoutArgs reads what layoutLine writes.
func layoutArgs(args []string) (api.Layout, error) {
	l := api.Layout{Enabled: true, Instances: []api.LayoutInstance{}}
	for _, arg := range args {
		text, compute, shared := strings.Cut(arg, "=")
		profile, place, placed := strings.Cut(text, "@")
		in := api.LayoutInstance{Profile: profile}
		if shared {
			in.Compute = strings.Split(compute, ",")
		}
		if placed {
			n, err := strconv.Atoi(place)
			if err != nil {
				return l, fmt.Errorf("%q is no memory slice in %q", place, arg)
			}
			in.Placement = &n
		}
		if profile == "" || slices.Contains(in.Compute, "") {
			return l, fmt.Errorf("a profile is missing in %q", arg)
		}
		l.Instances = append(l.Instances, in)
	}
	return l, nil
}

func migOff(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "off GPU", Short: "Remove all instances of a GPU that nobody uses, and turn MIG off", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.setMIG(cmd.Context(), args[0], api.Layout{Instances: []api.LayoutInstance{}})
		},
	}, 1, migIDs)
}

func migCapacity(c *cli) *cobra.Command {
	var profile string
	cmd := &cobra.Command{
		Use: "capacity", Short: "Tell how many more instances fit beside those that are there", Args: takes(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := c.migCapacity(cmd.Context(), profile)
			if err != nil {
				return err
			}
			return c.showCapacity(all)
		},
	}
	cmd.Flags().StringVar(&profile, "profile", "", "only of this `profile`")
	completeFlag(c, cmd, "profile", migProfiles)
	return cmd
}

// migCapacity is the capacity for MIG instances, of one profile or of all.
func (c *cli) migCapacity(ctx context.Context, profile string) (api.Capacity, error) {
	all, err := c.client().Capacity(ctx, profile)
	all.Profiles = slices.DeleteFunc(all.Profiles, func(p api.ProfileCapacity) bool { return p.Kind != "mig" })
	return all, err
}

func migProfiles(ctx context.Context, c *cli) ([]string, error) {
	all, err := c.migCapacity(ctx, "")
	return names(all.Profiles, func(p api.ProfileCapacity) string { return p.Profile }), err
}

// setMIG cuts one GPU. Somebody at a terminal is asked before anything is lost.
func (c *cli) setMIG(ctx context.Context, gpu string, l api.Layout) error {
	if c.dryRun {
		return c.showPlan(c.client().PlanPutMIG(ctx, gpu, l))
	}
	if c.asks() {
		p, err := c.client().PlanPutMIG(ctx, gpu, l)
		if err != nil {
			return err
		}
		if p.Problem != nil {
			return p.Problem
		}
		if err := c.confirmMIG(ctx, losses(gpu, p)); err != nil {
			return err
		}
	}
	return c.putMIG(ctx, gpu, l)
}

// losses are what a plan takes away: instances, and with a reset what runs on the GPU.
func losses(gpu string, p api.Plan) (out []string) {
	for _, s := range p.Steps {
		if s.Kind == "partition.remove" {
			out = append(out, s.Summary)
		}
	}
	if p.NeedsReset {
		out = append(out, "reset gpu "+gpu)
	}
	return out
}

func (c *cli) confirmMIG(ctx context.Context, losses []string) error {
	if len(losses) == 0 {
		return nil
	}
	return c.confirm(ctx, "this will %s: go on?", strings.Join(losses, ", "))
}

// putMIG cuts one GPU and draws it.
func (c *cli) putMIG(ctx context.Context, gpu string, l api.Layout) error {
	m, op, err := c.client().PutMIG(ctx, gpu, l)
	if err != nil {
		return err
	}
	m, err = settle(ctx, c, m, op, gpu+" is already as asked for", func() (api.MIG, error) { return c.client().MIG(ctx, gpu) })
	if m == nil || err != nil {
		return err
	}
	if !c.draws() {
		return printOne(c, *m, gpu, nil)
	}
	g, err := c.client().GPU(ctx, gpu)
	if err != nil {
		return err
	}
	return c.drawGPU(ctx, g, *m)
}
