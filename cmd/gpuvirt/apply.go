package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

// A wishFile says which VMs are to have what.
type wishFile struct {
	Assignments []wishEntry `yaml:"assignments"`
}

type wishEntry struct {
	Name       string `yaml:"name"`
	VM         string `yaml:"vm"`
	Profile    string `yaml:"profile"`
	GPU        string `yaml:"gpu"`
	Placement  string `yaml:"placement"`
	Hotplug    string `yaml:"hotplug"`
	Display    bool   `yaml:"display"`
	RamFB      bool   `yaml:"ramfb"`
	VGPUParams string `yaml:"vgpu_params"`
}

func applyCommand(c *cli) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Carry out a file of assignments: all of them or none", Args: takes(0),
		Long: `Carry out a file of assignments in one operation. One that is impossible is a
reason to do nothing, and what fails on the way is undone whole. Those that are as
asked for already stay as they are, and so do assignments that the file does not
name.

The file is YAML, or JSON, of this form; what attach takes as flags are further
fields:

  assignments:
    - {name: web1-gpu, vm: web1, profile: L40S-8Q}
    - {name: web2-gpu, vm: web2, profile: L40S-8Q, placement: spread}`,
		Example: `  gpuvirt apply -f wishes.yaml --dry-run
  gpuvirt apply -f - < wishes.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := readFrom(c, file, readWishes)
			if err != nil {
				return err
			}
			return c.apply(cmd.Context(), want)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the `file` of assignments; - for standard input (required)")
	must(cmd.MarkFlagRequired("file"))
	return cmd
}

func readWishes(r io.Reader) (api.ApplyRequest, error) {
	var f wishFile
	var out api.ApplyRequest
	if err := readStrictly(r, &f); err != nil {
		return out, err
	}
	if len(f.Assignments) == 0 {
		return out, errors.New("it has no assignments")
	}
	for _, a := range f.Assignments {
		out.Assignments = append(out.Assignments, api.NamedAssignmentRequest(a))
	}
	return out, nil
}

func (c *cli) apply(ctx context.Context, want api.ApplyRequest) error {
	if c.dryRun {
		return c.showPlan(c.client().PlanApplyAssignments(ctx, want))
	}
	there, op, err := c.client().ApplyAssignments(ctx, want)
	if err != nil {
		return err
	}
	if op == nil {
		c.say("all is already as asked for")
		return printList(c, assignmentTable, there.Items)
	}
	if !c.waits() {
		return c.printStarted(*op)
	}
	if _, err := c.await(ctx, *op); err != nil {
		return err
	}
	all, err := c.client().Assignments(ctx, client.ListOptions{})
	if err != nil {
		return err
	}
	byName := map[string]api.Assignment{}
	for _, a := range all {
		byName[a.Name] = a
	}
	done := make([]api.Assignment, 0, len(want.Assignments))
	for _, w := range want.Assignments {
		a, ok := byName[w.Name]
		if !ok {
			return fmt.Errorf("assignment %q has gone since it was carried out", w.Name)
		}
		if a.RestartRequired {
			c.say("%s sees it after its next start", a.VMName)
		}
		done = append(done, a)
	}
	return printList(c, assignmentTable, done)
}
