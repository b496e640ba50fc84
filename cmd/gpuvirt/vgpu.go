package main

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

func vgpuCommand(c *cli) *cobra.Command {
	return group("vgpu", "Set how the vGPUs of a GPU share it, and make them by a file", vgpuShow(c), vgpuSet(c), vgpuApply(c), vgpuAssert(c))
}

// nvidiaIDs are the GPUs that may have such settings.
func nvidiaIDs(ctx context.Context, c *cli) ([]string, error) {
	gpus, err := c.client().GPUs(ctx, client.ListOptions{Filter: map[string]string{"vendor": "NVIDIA"}})
	return names(gpus, gpuTable.name), err
}

func vgpuShow(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "show GPU", Short: "Show how the vGPUs of a GPU share it, and how they should", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := c.client().VGPUSettings(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.printVGPU(v)
		},
	}, 1, nvidiaIDs)
}

// vgpuFlags are what a command line asks for.
type vgpuFlags struct {
	mixed     string
	scheduler string
	slice     time.Duration
}

func vgpuSet(c *cli) *cobra.Command {
	var f vgpuFlags
	cmd := completeArgs(c, &cobra.Command{
		Use: "set GPU", Short: "Set how the vGPUs of a GPU share it",
		Long: `Set how the vGPUs of a GPU share it. What is not named stays as it was asked for.
It is kept, and set again after a reboot and whenever gpuvirt has turned the GPU's
virtual functions on.

The driver changes none of it while there is a vGPU on the GPU, or MIG is on.

With mixed sizes vGPUs of the GPU may differ in size. Its virtual functions have to be
on. Each vGPU begins at certain slots of the memory then, so fewer of some sizes fit;
the largest are best made first, as "gpuvirt apply" does. It goes with the schedulers
best-effort and equal-share.

Schedulers: best-effort gives time to whoever has work, equal-share as much to all
that run, fixed-share to each the share of its size, whoever else runs. A time slice
is the length of a turn; without one the driver's own.`,
		Example: `  gpuvirt vgpu set 0000:41:00.0 --mixed-size on --scheduler equal-share
  gpuvirt vgpu set 0000:41:00.0 --scheduler fixed-share --time-slice 2ms
  gpuvirt vgpu set 0000:41:00.0 --scheduler best-effort --dry-run`,
		Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := f.request(cmd)
			if err != nil {
				return err
			}
			return c.setVGPU(cmd.Context(), args[0], want)
		},
	}, 1, nvidiaIDs)
	cmd.Flags().StringVar(&f.mixed, "mixed-size", "", "whether vGPUs may differ in size: `on or off`")
	cmd.Flags().StringVar(&f.scheduler, "scheduler", "", "the `policy`: best-effort, equal-share or fixed-share")
	cmd.Flags().DurationVar(&f.slice, "time-slice", 0, "how long a turn is, such as 2ms; with --scheduler")
	fixed(cmd, "mixed-size", "on", "off")
	fixed(cmd, "scheduler", "best-effort", "equal-share", "fixed-share")
	return cmd
}

func (f vgpuFlags) request(cmd *cobra.Command) (api.VGPUSettingsRequest, error) {
	var out api.VGPUSettingsRequest
	wrong := func(message string) (api.VGPUSettingsRequest, error) {
		return out, &usageError{message: message, command: cmd.CommandPath()}
	}
	flags := cmd.Flags()
	if flags.Changed("mixed-size") {
		on := f.mixed == "on"
		if !on && f.mixed != "off" {
			return wrong("--mixed-size is on or off")
		}
		out.MixedSize = &on
	}
	if flags.Changed("scheduler") {
		out.Scheduler = &api.SchedulerRequest{Policy: f.scheduler}
	}
	if flags.Changed("time-slice") {
		if out.Scheduler == nil {
			return wrong("--time-slice is for --scheduler")
		}
		if f.slice < 1 || f.slice > math.MaxUint32 {
			return wrong("--time-slice is not from 1ns to 4s")
		}
		n := int(f.slice)
		out.Scheduler.TimeSliceNS = &n
	}
	if out == (api.VGPUSettingsRequest{}) {
		return wrong("nothing is asked for: name --mixed-size or --scheduler")
	}
	return out, nil
}

func (c *cli) setVGPU(ctx context.Context, gpu string, want api.VGPUSettingsRequest) error {
	if c.dryRun {
		return c.showPlan(c.client().PlanPutVGPUSettings(ctx, gpu, want))
	}
	v, op, err := c.client().PutVGPUSettings(ctx, gpu, want)
	if err != nil {
		return err
	}
	v, err = settle(ctx, c, v, op, "the vGPUs of "+gpu+" share it so already", func() (api.VGPUSettings, error) {
		return c.client().VGPUSettings(ctx, gpu)
	})
	if v == nil || err != nil {
		return err
	}
	return c.printVGPU(*v)
}

func (c *cli) printVGPU(v api.VGPUSettings) error {
	s, m := v.Scheduler, v.MixedSize
	slices := ""
	if s.MaxTimeSliceNS > 0 {
		slices = time.Duration(s.MinTimeSliceNS).String() + " to " + time.Duration(s.MaxTimeSliceNS).String()
	}
	return printOne(c, v, v.GPU, []field{
		{name: "GPU", value: v.GPU},
		{name: "Mixed sizes", value: besides(asAsked(m.Actual), asAsked(m.Wanted), m.Unavailable)},
		{name: "Scheduler", value: besides(scheduler(s.Actual), scheduler(s.Wanted), s.Unavailable)},
		{name: "Policies", value: strings.Join(s.Policies, ", ")},
		{name: "Time slices", value: slices},
	})
}

// besides is what is, with what is wanted where that is something else.
func besides(is, wanted, why string) string {
	if is == "" {
		is = "unknown"
		if why != "" {
			is += ": " + why
		}
	}
	if wanted == "" || is == wanted || strings.HasPrefix(is, wanted+",") {
		return is
	}
	return is + "; wanted: " + wanted
}

func asAsked(on *bool) string {
	switch {
	case on == nil:
		return ""
	case *on:
		return "on"
	default:
		return "off"
	}
}

func scheduler(s *api.Scheduler) string {
	if s == nil {
		return ""
	}
	out := s.Policy
	if s.TimeSliceNS > 0 {
		out += ", " + time.Duration(s.TimeSliceNS).String()
	}
	if s.Adaptive {
		out += ", adaptive"
	}
	return out
}
