package client

import (
	"context"
	"net/http"

	"gpuvirt/api"
)

// VFs returns how many virtual functions a GPU should have, and which it has.
func (c *Client) VFs(ctx context.Context, gpu string) (api.VFs, error) {
	return one[api.VFs](ctx, c, get("gpus", gpu, "sriov"))
}

// PutVFs asks for n virtual functions. One of the results is set: the operation that
// turns them on or off, or those that are there where they are as many already.
func (c *Client) PutVFs(ctx context.Context, gpu string, n int) (*api.VFs, *api.Operation, error) {
	return either[api.VFs](ctx, c, write(http.MethodPut, api.VFsRequest{NumVFs: &n}, "gpus", gpu, "sriov"))
}

// PlanPutVFs returns what PutVFs would do.
func (c *Client) PlanPutVFs(ctx context.Context, gpu string, n int) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodPut, api.VFsRequest{NumVFs: &n}, "gpus", gpu, "sriov").dryRun())
}
