package client

import (
	"context"
	"net/http"

	"gpuvirt/api"
)

// VGPUSettings returns how the vGPUs of a GPU should share it, and how they do.
func (c *Client) VGPUSettings(ctx context.Context, gpu string) (api.VGPUSettings, error) {
	return one[api.VGPUSettings](ctx, c, get("gpus", gpu, "vgpu"))
}

// PutVGPUSettings asks for settings; what the request leaves out stays as it was asked for.
// One of the results is set: the operation that sets them, or what is there where all is so
// already.
func (c *Client) PutVGPUSettings(ctx context.Context, gpu string, want api.VGPUSettingsRequest) (*api.VGPUSettings, *api.Operation, error) {
	return either[api.VGPUSettings](ctx, c, write(http.MethodPut, want, "gpus", gpu, "vgpu"))
}

// PlanPutVGPUSettings returns what PutVGPUSettings would do.
func (c *Client) PlanPutVGPUSettings(ctx context.Context, gpu string, want api.VGPUSettingsRequest) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodPut, want, "gpus", gpu, "vgpu").dryRun())
}
