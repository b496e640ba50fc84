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
	"gpuvirt/p2v/assess"
)

// needForm is what --need takes.
const needForm = "as gpu=memory:20GiB,sms:30,class:compute,on:0000:43:00.0, of which one is enough"

// addNeeds lays what --need says over what --profile asks for, for the same GPUs of the source.
func addNeeds(all []api.PlanPartitionRequest, texts []string) ([]api.PlanPartitionRequest, error) {
	var said []string
	for _, text := range texts {
		source, words, found := strings.Cut(text, "=")
		if !found || source == "" || words == "" {
			return nil, fmt.Errorf("--need %q: it takes a GPU of the server by its address, and what it needs, %s", text, needForm)
		}
		if slices.Contains(said, source) {
			return nil, fmt.Errorf("--need %q: it is said twice what %s needs", text, source)
		}
		said = append(said, source)
		i := slices.IndexFunc(all, func(p api.PlanPartitionRequest) bool { return p.Source == source })
		switch {
		case i < 0:
			all, i = append(all, api.PlanPartitionRequest{Source: source}), len(all)
		case all[i].None:
			return nil, fmt.Errorf("--need %q: --profile %s=none asks for no partition for it", text, source)
		}
		if err := readNeed(&all[i], words); err != nil {
			return nil, fmt.Errorf("--need %q: %w", text, err)
		}
	}
	return all, nil
}

// readNeed reads what one GPU needs.
func readNeed(p *api.PlanPartitionRequest, words string) error {
	var said []string
	for word := range strings.SplitSeq(words, ",") {
		key, value, found := strings.Cut(word, ":")
		if !found || value == "" {
			return fmt.Errorf("%q is none of memory:…, sms:…, class:… and on:…", word)
		}
		if slices.Contains(said, key) {
			return fmt.Errorf("%s is said twice", key)
		}
		said = append(said, key)
		var err error
		switch key {
		case "memory":
			if p.MemoryBytes, err = parseBytes(value); err == nil && p.MemoryBytes == 0 {
				err = errors.New("memory: nothing is no need: leave it out, or ask for no partition (--profile gpu=none)")
			}
		case "sms":
			if p.SMs, err = strconv.Atoi(value); err != nil || p.SMs < 1 {
				err = fmt.Errorf("sms: %q is no number of multiprocessors, 1 or more", value)
			}
		case "class":
			if p.Class = value; !slices.Contains(needClasses, value) {
				err = fmt.Errorf("class: %q is none of %s", value, strings.Join(needClasses, ", "))
			}
		case "on":
			p.GPU = value
		default:
			err = fmt.Errorf("%q is none of memory, sms, class and on", key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var needClasses = []string{string(assess.Compute), string(assess.Graphics)}

// parseBytes reads a size: bytes, and k, M, G or Ki, Mi, Gi, with a B behind it or without.
func parseBytes(text string) (uint64, error) {
	n, err := parseRate(strings.TrimSuffix(text, "B"))
	if err != nil {
		return 0, fmt.Errorf("%q is no size: bytes, such as 64Gi", text)
	}
	return n, nil
}

// completeNeed lets a shell complete --need: GPUs of the assessment's server, and then what may be said of one.
func completeNeed(c *cli, cmd *cobra.Command) {
	must(cmd.RegisterFlagCompletionFunc("need", func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		source, said, found := strings.Cut(begun, "=")
		found = found && source != ""
		all, directive := complete(cmd, c, func(ctx context.Context, c *cli) ([]string, error) {
			if !found {
				return sourceGPUs(ctx, c, cmd.Flag("assessment").Value.String())
			}
			out := []string{"memory:", "sms:"}
			for _, class := range needClasses {
				out = append(out, "class:"+class)
			}
			gpus, err := gpuIDs(ctx, c)
			for _, id := range gpus {
				out = append(out, "on:"+id)
			}
			return out, err
		})
		before := ""
		if found {
			before = source + "=" + said[:strings.LastIndex(said, ",")+1]
		}
		for i := range all {
			all[i] = before + all[i]
		}
		return all, directive | cobra.ShellCompDirectiveNoSpace
	}))
}

// sourceGPUs are those of an assessment's server, each with what stands before its need.
func sourceGPUs(ctx context.Context, c *cli, assessment string) (out []string, err error) {
	if assessment == "" {
		return nil, nil
	}
	a, err := c.client().Assessment(ctx, assessment)
	if err != nil || a.Findings == nil {
		return nil, err
	}
	for _, n := range a.Findings.Needs {
		out = append(out, n.Source.PCI+"=")
	}
	return out, nil
}
