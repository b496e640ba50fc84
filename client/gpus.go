package client

import (
	"context"
	"errors"
	"net/http"

	"gpuvirt/api"
)

// GPUs lists the host's GPUs.
func (c *Client) GPUs(ctx context.Context, o ListOptions) ([]api.GPU, error) {
	return list[api.GPU](ctx, c, o, "gpus")
}

// GPU returns one GPU.
func (c *Client) GPU(ctx context.Context, id string) (api.GPU, error) {
	return one[api.GPU](ctx, c, get("gpus", id))
}

// PatchGPU changes what was decided about a GPU, and returns it as it is then.
func (c *Client) PatchGPU(ctx context.Context, id string, p api.GPUPatch) (api.GPU, error) {
	return one[api.GPU](ctx, c, write(http.MethodPatch, p, "gpus", id))
}

// EditGPU changes a GPU by what edit makes of its present state. Should somebody
// else change it meanwhile, edit is called again.
func (c *Client) EditGPU(ctx context.Context, id string, edit func(api.GPU) api.GPUPatch) (api.GPU, error) {
	const tries = 5
	for try := 1; ; try++ {
		var now api.GPU
		answer, err := c.do(ctx, get("gpus", id), &now)
		if err != nil {
			return now, err
		}
		r := write(http.MethodPatch, edit(now), "gpus", id)
		r.match = answer.etag
		changed, err := one[api.GPU](ctx, c, r)
		var p *api.Problem
		if try < tries && errors.As(err, &p) && p.Status == http.StatusPreconditionFailed {
			continue
		}
		return changed, err
	}
}

// PlanPatchGPU returns what PatchGPU would do.
func (c *Client) PlanPatchGPU(ctx context.Context, id string, p api.GPUPatch) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodPatch, p, "gpus", id).dryRun())
}

// Profiles lists the sizes of partition that a GPU can make. Unknown is why some may be
// missing, or are not known wholly; empty if all are known.
func (c *Client) Profiles(ctx context.Context, gpu string, o ListOptions) (profiles []api.Profile, unknown string, err error) {
	return listKnown[api.Profile](ctx, c, o, "gpus", gpu, "profiles")
}

// VMs lists the host's libvirt domains.
func (c *Client) VMs(ctx context.Context, o ListOptions) ([]api.VM, error) {
	return list[api.VM](ctx, c, o, "vms")
}

// VM returns one domain by its UUID or name.
func (c *Client) VM(ctx context.Context, nameOrUUID string) (api.VM, error) {
	return one[api.VM](ctx, c, get("vms", nameOrUUID))
}
