package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"gpuvirt/api"
)

// A migTarget is a GPU and the layout that a file has for it.
type migTarget struct {
	gpu  api.GPU
	want api.Layout
}

func (t migTarget) id() string { return t.gpu.ID }

// migFlags adds the flags that name a layout in a file, as mig-parted has them.
func migFlags(cmd *cobra.Command, file, config *string) {
	cmd.Flags().StringVarP(file, "config-file", "f", "", "`file` of mig-parted; - reads the standard input (required)")
	cmd.Flags().StringVarP(config, "selected-config", "c", "", "which of its mig-configs; not needed where there is one")
	must(cmd.MarkFlagRequired("config-file"))
}

// targets reads a file and says what it wants of which GPU.
func (c *cli) targets(ctx context.Context, file, config string) ([]migTarget, error) {
	parsed, err := readFrom(c, file, readMIGFile)
	if err != nil {
		return nil, err
	}
	config, all, err := choose(ctx, c, file, config, parsed.Configs, func(s migSpec) cards { return s.cards })
	if err != nil {
		return nil, err
	}
	var out []migTarget
	for _, t := range all {
		switch {
		case t.gpu.MIG.Capable:
			out = append(out, migTarget{t.gpu, t.spec.want})
		case t.spec.want.Enabled && t.spec.devices != nil: // "all" are all that can be cut
			return nil, fmt.Errorf("cannot cut gpu %s (%s): MIG cannot, and %s wants it", t.gpu.ID, t.gpu.Model, config)
		}
	}
	if len(out) == 0 {
		c.say("%s is for no gpu of this host", config)
	}
	return out, nil
}

func migAssert(c *cli) *cobra.Command {
	var file, config string
	cmd := &cobra.Command{
		Use: "assert -f FILE [-c CONFIG]", Short: "Tell whether GPUs are cut as a file of mig-parted says", Args: takes(0),
		Long: `Tell whether GPUs are cut as a file of mig-parted says: the exit status is 0 if
they are and 1 if not. Places count where the file has them, as one of "mig export".`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			targets, err := c.targets(cmd.Context(), file, config)
			if err != nil {
				return err
			}
			var differ []string
			for _, t := range targets {
				m, err := c.client().MIG(cmd.Context(), t.gpu.ID)
				if err != nil {
					return err
				}
				if !sameInstances(m.Actual, t.want) {
					differ = append(differ, t.gpu.ID)
					c.say("%s is %s, and should be %s", t.gpu.ID, actualLine(m.Actual), layoutLine(t.want))
				}
			}
			if len(differ) > 0 {
				return fmt.Errorf("not cut as %s says: %s", file, strings.Join(differ, ", "))
			}
			return nil
		},
	}
	migFlags(cmd, &file, &config)
	return cmd
}

func migExport(c *cli) *cobra.Command {
	label := "current"
	cmd := &cobra.Command{
		Use: "export [GPU]...", Short: "Write how GPUs are cut as a file of mig-parted",
		Long: `Write how GPUs are cut as a file of mig-parted, which "mig apply" and mig-parted
read; without GPU all that MIG can cut. Such a file only counts compute instances:
the places of the GPU instances, and which compute instances share one, are in
comments "# gpuvirt: ...", which "mig apply" and "mig assert" read and mig-parted
does not. Comments "# gpuvirt-gpus: ..." have the GPUs that had the numbers: where they
are others now the file is refused. Remove them to use it on another host.`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			gpus, err := c.nvidiaGPUs(cmd.Context())
			if err != nil {
				return err
			}
			if lost := slices.DeleteFunc(slices.Clone(gpus), func(g api.GPU) bool { return unread(g) == "" }); len(lost) > 0 {
				return notReadable("cannot export", lost)
			}
			numbers, err := c.numbersOf(cmd.Context(), ids, gpus)
			if err != nil {
				return err
			}
			var all []api.MIG
			for _, n := range numbers {
				m, err := c.client().MIG(cmd.Context(), gpus[n].ID)
				if err != nil {
					return err
				}
				all = append(all, m)
			}
			specs, err := exported(numbers, all)
			if err != nil {
				return err
			}
			if i := uncounted(gpus); i >= 0 && i < slices.Max(numbers) {
				c.say("mig-parted does not count gpu %s, as NVIDIA's driver does not have it: it would take numbers above %d for other gpus", gpus[i].ID, i)
			}
			var b bytes.Buffer
			enc := yaml.NewEncoder(&b)
			enc.SetIndent(2)
			if err := errors.Join(enc.Encode(migFile{"v1", map[string][]migSpec{label: specs}}), enc.Close()); err != nil {
				return fmt.Errorf("cannot write yaml: %w", err)
			}
			_, err = b.WriteTo(c.out)
			return err
		},
	}
	cmd.Flags().StringVarP(&label, "config-label", "l", label, "`name` of the config in the file")
	return completeArgs(c, cmd, 0, migIDs)
}

// numbersOf finds those of NVIDIA's GPUs that are named, or all that MIG can cut.
func (c *cli) numbersOf(ctx context.Context, ids []string, gpus []api.GPU) ([]int, error) {
	var out []int
	for i, g := range gpus {
		if g.MIG.Capable && (len(ids) == 0 || slices.Contains(ids, g.ID)) {
			out = append(out, i)
		}
	}
	for _, id := range ids {
		if slices.ContainsFunc(out, func(n int) bool { return gpus[n].ID == id }) {
			continue
		}
		g, err := c.client().GPU(ctx, id)
		return nil, cmp.Or(err, fmt.Errorf("cannot export gpu %s (%s): MIG cannot cut it", id, g.Model))
	}
	return out, nil
}
