package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

var gpuTable = table[api.GPU]{
	things: "gpus",
	name:   func(g api.GPU) string { return g.ID },
	columns: []column[api.GPU]{
		{title: "ID", value: func(g api.GPU) string { return g.ID }},
		{title: "VENDOR", value: func(g api.GPU) string { return g.Vendor }},
		{title: "MODEL", value: func(g api.GPU) string { return g.Model }},
		{title: "MEMORY", value: func(g api.GPU) string { return size(g.MemoryBytes) }},
		{title: "DRIVER", value: driver},
		{title: "KINDS", value: func(g api.GPU) string { return strings.Join(g.Kinds, ",") }},
		{title: "MANAGED", value: func(g api.GPU) string { return yesNo(g.Managed) }},
		{title: "HEALTH", value: gpuHealth},
		{title: "NUMA", wide: true, value: numa},
		{title: "IOMMU", wide: true, value: func(g api.GPU) string { return g.IOMMUGroup }},
		{title: "UUID", wide: true, value: func(g api.GPU) string { return g.UUID }},
		{title: "LABELS", wide: true, value: func(g api.GPU) string { return pairs(g.Labels) }},
	},
}

func gpuCommand(c *cli) *cobra.Command {
	yes, no := true, false
	repair, report := "repair", "report"
	return group("gpu", "The GPUs of this host",
		listCommand(c, gpuTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.GPU, error) {
			return cl.GPUs(ctx, o)
		}),
		gpuShow(c),
		gpuSet(c, "manage", "Put GPUs under management: only then are they cut", api.GPUPatch{Managed: &yes}),
		gpuSet(c, "unmanage", "Leave GPUs alone from now on", api.GPUPatch{Managed: &no}),
		gpuSet(c, "quarantine", "Make nothing new on GPUs; what is there stays", api.GPUPatch{Quarantined: &yes}),
		gpuSet(c, "unquarantine", "Use quarantined GPUs again", api.GPUPatch{Quarantined: &no}),
		gpuSet(c, "repair", "Put back layouts that differ from what was asked, if nobody is on them", api.GPUPatch{Policy: &repair}),
		gpuSet(c, "report", "Only tell of layouts that differ from what was asked", api.GPUPatch{Policy: &report}),
		gpuPlacement(c),
		gpuLabel(c),
	)
}

func gpuShow(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "show GPU", Short: "Show one GPU", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := c.client().GPU(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(c, g, g.ID, gpuFields(g))
		},
	}, 1, gpuIDs)
}

func gpuFields(g api.GPU) []field {
	fields := []field{
		{name: "ID", value: g.ID},
		{name: "Vendor", value: g.Vendor},
		{name: "Model", value: g.Model},
		{name: "PCI address", value: g.PCIAddress},
		{name: "PCI id", value: g.PCIID},
		{name: "Subsystem", value: g.PCISubsystem},
		{name: "UUID", value: g.UUID},
		{name: "Serial", value: g.Serial},
		{name: "Memory", value: size(g.MemoryBytes)},
		{name: "NUMA node", value: numa(g)},
		{name: "IOMMU group", value: g.IOMMUGroup},
		{name: "Driver", value: driver(g)},
		{name: "Kinds", value: strings.Join(g.Kinds, ", ")},
		{name: "Managed", value: yesNo(g.Managed)},
		{name: "Quarantined", value: yesNo(g.Quarantined)},
		{name: "Policy", value: g.Policy},
		{name: "Placement", value: g.Placement},
	}
	if g.MIG.Capable {
		fields = append(fields, field{name: "MIG", value: onOff(g.MIG.Current, g.MIG.Pending)})
	}
	if g.SRIOV.TotalVFs > 0 {
		fields = append(fields, field{name: "SR-IOV", value: fmt.Sprintf("%d of %d functions", g.SRIOV.NumVFs, g.SRIOV.TotalVFs)})
	}
	return append(fields,
		field{name: "ECC", value: ecc(g.ECC)},
		field{name: "Compute mode", value: g.ComputeMode},
		field{name: "Labels", value: pairs(g.Labels)},
		field{name: "Conditions", below: conditionRows(g.Conditions)},
	)
}

// onOff is a mode that a GPU has now and after a reset.
func onOff(current, pending bool) string {
	word := map[bool]string{true: "on", false: "off"}
	if pending != current {
		return word[current] + ", " + word[pending] + " after a reset"
	}
	return word[current]
}

func ecc(e *api.ECC) string {
	if e == nil {
		return ""
	}
	return onOff(e.Current, e.Pending)
}

// gpuSet makes a command that changes one thing about GPUs.
func gpuSet(c *cli, verb, short string, patch api.GPUPatch) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: verb + " GPU...", Short: short, Args: takesAtLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var done []api.GPU
			for _, id := range args {
				if c.dryRun {
					if err := c.showPlan(c.client().PlanPatchGPU(cmd.Context(), id, patch)); err != nil {
						return err
					}
					continue
				}
				g, err := c.client().PatchGPU(cmd.Context(), id, patch)
				if err != nil {
					if len(done) > 0 {
						c.say("done before that: %s", strings.Join(names(done, gpuTable.name), ", "))
					}
					return err
				}
				done = append(done, g)
			}
			switch {
			case c.dryRun:
				return nil
			case len(args) == 1:
				return printRow(c, gpuTable, done[0])
			}
			return printList(c, gpuTable, done)
		},
	}, 0, gpuIDs)
}

// gpuPlacement says how vGPUs that share MIG instances are placed on GPUs.
func gpuPlacement(c *cli) *cobra.Command {
	pack, spread, host := "pack", "spread", "host"
	return group("placement", "How vGPUs that share MIG instances are placed on a GPU",
		gpuSet(c, pack, "Put them on an instance that has room", api.GPUPatch{Placement: &pack}),
		gpuSet(c, spread, "Make an instance for each as long as that fits", api.GPUPatch{Placement: &spread}),
		gpuSet(c, host, "As the daemon's configuration says", api.GPUPatch{Placement: &host}),
	)
}

func gpuLabel(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "label GPU KEY=VALUE... KEY-...", Short: "Set labels of a GPU, and remove those followed by a minus",
		Args: takesAtLeast(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			change, err := labelChange(args[1:])
			if err != nil {
				return err
			}
			edit := func(g api.GPU) api.GPUPatch {
				labels := map[string]string{}
				for k, v := range g.Labels {
					labels[k] = v
				}
				change(labels)
				return api.GPUPatch{Labels: &labels}
			}
			if c.dryRun {
				g, err := c.client().GPU(cmd.Context(), id)
				if err != nil {
					return err
				}
				return c.showPlan(c.client().PlanPatchGPU(cmd.Context(), id, edit(g)))
			}
			g, err := c.client().EditGPU(cmd.Context(), id, edit)
			if err != nil {
				return err
			}
			return printOne(c, g, g.ID, []field{{name: "Labels", value: orDash(pairs(g.Labels))}})
		},
	}, 1, gpuIDs)
}

// labelChange reads what to do with labels.
func labelChange(args []string) (func(map[string]string), error) {
	set, remove := map[string]string{}, []string{}
	for _, arg := range args {
		if key, value, found := strings.Cut(arg, "="); found && key != "" {
			set[key] = value
		} else if key, found := strings.CutSuffix(arg, "-"); found && key != "" {
			remove = append(remove, key)
		} else {
			return nil, &usageError{message: fmt.Sprintf("%q is neither KEY=VALUE nor KEY-", arg), command: "gpuvirt gpu label"}
		}
	}
	return func(labels map[string]string) {
		for _, key := range remove {
			delete(labels, key)
		}
		for key, value := range set {
			labels[key] = value
		}
	}, nil
}

func gpuHealth(g api.GPU) string {
	h := health(g.Conditions)
	switch {
	case !g.Quarantined || strings.Contains(h, "quarantined"):
		return h
	case h == "ok":
		return "quarantined"
	}
	return h + ", quarantined"
}

func driver(g api.GPU) string { return strings.TrimSpace(g.Driver.Name + " " + g.Driver.Version) }

func numa(g api.GPU) string {
	if g.NUMANode == nil || *g.NUMANode < 0 {
		return ""
	}
	return strconv.Itoa(*g.NUMANode)
}
