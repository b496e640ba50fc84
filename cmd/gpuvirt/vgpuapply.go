package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

// A vgpuTarget is a GPU, the vGPUs that it has, and those that a file has for it.
type vgpuTarget struct {
	gpu     api.GPU
	want    map[string]int
	have    map[string]int
	removes []api.Partition // those to be removed
	makes   []string        // profiles to be made, the largest first
	room    map[string]api.Profile
}

func (t vgpuTarget) id() string { return t.gpu.ID }

func (t vgpuTarget) changes() bool { return len(t.removes)+len(t.makes) > 0 }

func vgpuFileFlags(cmd *cobra.Command, file, config *string) {
	cmd.Flags().StringVarP(file, "config-file", "f", "", "`file` of vgpu-device-manager; - reads the standard input (required)")
	cmd.Flags().StringVarP(config, "selected-config", "c", "", "which of its vgpu-configs; not needed where there is one")
	must(cmd.MarkFlagRequired("config-file"))
}

func vgpuApply(c *cli) *cobra.Command {
	var file, config string
	cmd := &cobra.Command{
		Use: "apply -f FILE [-c CONFIG]", Short: "Give GPUs the vGPUs that a file of vgpu-device-manager says", Args: takes(0),
		Long: `Give GPUs as many vGPUs of each type as a file of vgpu-device-manager says. They are
partitions that are not for a VM of gpuvirt's; those that assignments have count, too.

Each GPU is changed as little as possible: vGPUs that are wanted stay, and only those
that are not are removed, where gpuvirt has made them and nobody has them. All GPUs are
planned first: where one cannot be changed so, or is not under management, none is. The
vGPUs of a GPU are changed one after the other, so one that the driver refuses on the way
leaves those before it.

On cards with SR-IOV the virtual functions have to be on: see "gpuvirt sriov". Types that
stand on MIG instances bring these; MIG has to be on for them: see "gpuvirt mig".`,
		Example: `  gpuvirt vgpu apply -f config.yaml -c L40S-8Q --dry-run
  gpuvirt vgpu apply -f config.yaml -c L40S-8Q`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !c.dryRun && !c.waits() {
				return &usageError{message: "--no-wait is not for this: each change of a gpu waits for the one before it", command: cmd.CommandPath()}
			}
			ctx := cmd.Context()
			targets, err := c.vgpuTargets(ctx, file, config)
			if err != nil {
				return err
			}
			if err := c.planVGPUs(ctx, targets); err != nil || c.dryRun {
				return err
			}
			return c.applyVGPUs(ctx, targets)
		},
	}
	vgpuFileFlags(cmd, &file, &config)
	return cmd
}

func vgpuAssert(c *cli) *cobra.Command {
	var file, config string
	cmd := &cobra.Command{
		Use: "assert -f FILE [-c CONFIG]", Short: "Tell whether GPUs have the vGPUs that a file of vgpu-device-manager says", Args: takes(0),
		Long: `Tell whether GPUs have as many vGPUs of each type as a file of vgpu-device-manager
says, and no others, whoever made them: the exit status is 0 if they have and 1 if not.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			targets, err := c.vgpuTargets(cmd.Context(), file, config)
			if err != nil {
				return err
			}
			var differ []string
			for _, t := range targets {
				if !maps.Equal(t.have, t.want) {
					differ = append(differ, t.gpu.ID)
					c.say("%s has %s, and should have %s", t.gpu.ID, countsLine(t.have), countsLine(t.want))
				}
			}
			if len(differ) > 0 {
				return fmt.Errorf("not as %s says: %s", file, strings.Join(differ, ", "))
			}
			return nil
		},
	}
	vgpuFileFlags(cmd, &file, &config)
	return cmd
}

// countsLine writes how many there are of each type: "L40S-8Q=6".
func countsLine(counts map[string]int) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%s=%d", name, counts[name]))
	}
	return cmp.Or(strings.Join(words, " "), "no vGPUs")
}

// vgpuTargets reads a file, and says what of which GPU is otherwise than it wants.
func (c *cli) vgpuTargets(ctx context.Context, file, config string) ([]vgpuTarget, error) {
	parsed, err := readFrom(c, file, readVGPUFile)
	if err != nil {
		return nil, err
	}
	config, all, err := choose(ctx, c, file, config, parsed.Configs, func(s vgpuSpec) cards { return s.cards })
	if err != nil {
		return nil, err
	}
	var out []vgpuTarget
	for _, s := range all {
		t, err := c.vgpuTarget(ctx, s.gpu, s.spec.want)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	if len(out) == 0 {
		c.say("%s is for no gpu of this host", config)
	}
	return out, nil
}

func (c *cli) vgpuTarget(ctx context.Context, g api.GPU, want map[string]int) (vgpuTarget, error) {
	t := vgpuTarget{gpu: g, want: want, have: map[string]int{}, room: map[string]api.Profile{}}
	there, err := c.client().Partitions(ctx, client.ListOptions{Filter: map[string]string{"gpu": g.ID}})
	if err != nil {
		return t, err
	}
	there = slices.DeleteFunc(there, func(p api.Partition) bool { return p.Kind != "mdev" && p.Kind != "vgpu" })
	for _, p := range there {
		if p.State == "missing" { // its place is its own: another in it would keep it away for good
			return t, fmt.Errorf("vGPU %s (%s) of gpu %s is missing: put it back, or delete it, first", p.ID, p.Profile, g.ID)
		}
	}
	// Those that can go come first.
	slices.SortStableFunc(there, func(a, b api.Partition) int { return cmp.Compare(bound(a), bound(b)) })
	for _, p := range there {
		t.have[p.Profile]++
	}
	left := maps.Clone(t.have)
	for _, p := range there {
		if left[p.Profile] > want[p.Profile] {
			left[p.Profile]--
			t.removes = append(t.removes, p)
		}
	}
	profiles, unknown, err := c.client().Profiles(ctx, g.ID, client.ListOptions{})
	if err != nil {
		return t, err
	}
	c.sayUnknown(g.ID, unknown)
	for _, p := range profiles {
		if p.Kind == "mdev" || p.Kind == "vgpu" {
			t.room[p.Name] = p
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(want), func(a, b string) int {
		return cmp.Or(cmp.Compare(t.room[b].MemoryBytes, t.room[a].MemoryBytes), cmp.Compare(a, b))
	}) {
		for range want[name] - left[name] {
			t.makes = append(t.makes, name)
		}
	}
	return t, nil
}

// bound is how much somebody has a vGPU: one that nobody has is removed first.
func bound(p api.Partition) int {
	switch {
	case p.Origin != "managed":
		return 2
	case p.Assignment != "" || len(p.Holders) > 0:
		return 1
	default:
		return 0
	}
}

// planVGPUs asks what would be done, before the first GPU is changed. A dry run shows it.
func (c *cli) planVGPUs(ctx context.Context, targets []vgpuTarget) error {
	var refused []refusal
	var lost []string
	for _, t := range targets {
		p, err := c.planVGPUsOf(ctx, t)
		if err != nil {
			return err
		}
		err = nil
		if c.dryRun {
			err = c.showPlan(p, nil)
		} else if p.Problem != nil {
			err = p.Problem
		}
		var problem *api.Problem
		if errors.As(err, &problem) {
			refused = append(refused, refusal{t.gpu.ID, problem})
		} else if err != nil {
			return err
		}
		lost = append(lost, losses(t.gpu.ID, p)...)
	}
	if len(refused) > 0 {
		return refuseAll("change the vGPUs of", refused, len(targets))
	}
	if c.dryRun {
		return nil
	}
	return c.confirmMIG(ctx, lost)
}

// planVGPUsOf is one plan for a GPU. Whether one of another size fits when those before it
// have gone is known only then.
func (c *cli) planVGPUsOf(ctx context.Context, t vgpuTarget) (api.Plan, error) {
	out := api.Plan{
		Summary: fmt.Sprintf("have on gpu %s %s", t.gpu.ID, countsLine(t.want)),
		Steps:   []api.PlanStep{}, MustBeIdle: []string{}, Blockers: []api.Blocker{}, Changes: t.changes(),
	}
	add := func(p api.Plan, err error) error {
		if p.Problem != nil && out.Problem == nil {
			out.Problem, out.Changes = p.Problem, false
		}
		return err
	}
	for _, p := range t.removes {
		plan, err := c.client().PlanDeletePartition(ctx, p.ID)
		if err := add(plan, err); err != nil {
			return out, err
		}
		out.Steps = append(out.Steps, plan.Steps...)
	}
	for _, name := range slices.Compact(slices.Clone(t.makes)) {
		plan, err := c.client().PlanCreatePartition(ctx, api.PartitionRequest{GPU: t.gpu.ID, Profile: name})
		if p := plan.Problem; len(t.removes) > 0 && p != nil && p.Code == "no-capacity" {
			plan.Problem = nil
		}
		if err := add(plan, err); err != nil {
			return out, err
		}
		n := t.want[name] - min(t.have[name], t.want[name])
		out.Steps = append(out.Steps, api.PlanStep{Kind: "partition.make", Summary: fmt.Sprintf("make %d of %s on %s", n, name, t.gpu.ID)})
		if room, ok := t.room[name]; ok && out.Problem == nil && len(t.removes) == 0 && room.Available < n {
			out.Problem, out.Changes = &api.Problem{
				Status: 507, Code: "no-capacity", Title: "No capacity",
				Detail: fmt.Sprintf("cannot make %d of %s on gpu %s: %d fit", n, name, t.gpu.ID, room.Available),
			}, false
		}
	}
	return out, nil
}

// applyVGPUs changes the GPUs, one after the other.
func (c *cli) applyVGPUs(ctx context.Context, targets []vgpuTarget) error {
	for i, t := range targets {
		if !t.changes() {
			c.say("%s is already as asked for", t.gpu.ID)
			continue
		}
		if err := c.changeVGPUs(ctx, t); err != nil {
			if i > 0 {
				c.say("done before that: %s", strings.Join(names(targets[:i], vgpuTarget.id), ", "))
			}
			return err
		}
	}
	var all []api.Partition
	for _, t := range targets {
		ps, err := c.client().Partitions(ctx, client.ListOptions{Filter: map[string]string{"gpu": t.gpu.ID}})
		if err != nil {
			return err
		}
		all = append(all, slices.DeleteFunc(ps, func(p api.Partition) bool { return p.Kind != "mdev" && p.Kind != "vgpu" })...)
	}
	return printList(c, partitionTable, all)
}

func (c *cli) changeVGPUs(ctx context.Context, t vgpuTarget) error {
	done := 0
	carry := func(op api.Operation, err error) error {
		if err == nil {
			_, err = c.await(ctx, op)
		}
		if err != nil && done > 0 {
			c.say("%d of the %d changes of gpu %s were done before that", done, len(t.removes)+len(t.makes), t.gpu.ID)
		}
		done++
		return err
	}
	for _, p := range t.removes {
		if err := carry(c.client().DeletePartition(ctx, p.ID)); err != nil {
			return err
		}
	}
	for _, name := range t.makes {
		if err := carry(c.client().CreatePartition(ctx, api.PartitionRequest{GPU: t.gpu.ID, Profile: name})); err != nil {
			return err
		}
	}
	return nil
}
