package client

import (
	"context"
	"net/http"

	"gpuvirt/api"
)

// MIG returns how a GPU is cut by MIG, as asked for and as it is.
func (c *Client) MIG(ctx context.Context, gpu string) (api.MIG, error) {
	return one[api.MIG](ctx, c, get("gpus", gpu, "mig"))
}

// PutMIG asks for a layout. One of the results is set: the operation that cuts the GPU,
// or how it is cut where that is as asked for already.
func (c *Client) PutMIG(ctx context.Context, gpu string, want api.Layout) (*api.MIG, *api.Operation, error) {
	return either[api.MIG](ctx, c, write(http.MethodPut, want, "gpus", gpu, "mig"))
}

// PlanPutMIG returns what PutMIG would do.
func (c *Client) PlanPutMIG(ctx context.Context, gpu string, want api.Layout) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodPut, want, "gpus", gpu, "mig").dryRun())
}
