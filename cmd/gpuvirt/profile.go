package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

var profileTable = table[api.Profile]{
	things: "profiles",
	name:   func(p api.Profile) string { return p.Name },
	columns: []column[api.Profile]{
		{title: "PROFILE", value: func(p api.Profile) string { return p.Name }},
		{title: "GPU", value: func(p api.Profile) string { return p.GPU }},
		{title: "KIND", value: func(p api.Profile) string { return p.Kind }},
		{title: "MEMORY", value: func(p api.Profile) string { return size(p.MemoryBytes) }},
		{title: "MAX", value: func(p api.Profile) string { return count(p.MaxInstances) }},
		{title: "AVAILABLE", value: func(p api.Profile) string { return strconv.Itoa(p.Available) }},
		{title: "NOT CREATABLE", value: func(p api.Profile) string { return p.NotCreatable }},
		{title: "NATIVE", wide: true, value: func(p api.Profile) string { return p.NativeID }},
		{title: "ON", wide: true, value: func(p api.Profile) string { return p.On }},
		{title: "DEVICE API", wide: true, value: func(p api.Profile) string { return p.DeviceAPI }},
		{title: "ATTRIBUTES", wide: true, value: func(p api.Profile) string { return pairs(p.Attributes) }},
	},
}

func profileCommand(c *cli) *cobra.Command {
	var gpu string
	list := listCommand(c, profileTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.Profile, error) {
		if gpu != "" {
			profiles, unknown, err := cl.Profiles(ctx, gpu, o)
			c.sayUnknown(gpu, unknown)
			return profiles, err
		}
		gpus, err := cl.GPUs(ctx, client.ListOptions{})
		if err != nil {
			return nil, err
		}
		all := []api.Profile{}
		for _, g := range gpus {
			profiles, unknown, err := cl.Profiles(ctx, g.ID, o)
			if err != nil {
				return nil, err
			}
			c.sayUnknown(g.ID, unknown)
			all = append(all, profiles...)
		}
		return all, nil
	})
	list.Long = "List the sizes of partition that the GPUs can make: those of one GPU, or of all."
	list.Flags().StringVar(&gpu, "gpu", "", "only those of this `gpu`")
	completeFlag(c, list, "gpu", gpuIDs)
	return group("profile", "The sizes of partition that the GPUs can make", list)
}

// sayUnknown warns that a list of profiles may not be whole.
func (c *cli) sayUnknown(gpu, why string) {
	if why != "" {
		c.say("warning: not all profiles of gpu %s are known: %s", gpu, why)
	}
}

// count writes a number of which 0 means that it is not known.
func count(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
