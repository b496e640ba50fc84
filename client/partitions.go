package client

import (
	"context"
	"crypto/rand"
	"net/http"

	"gpuvirt/api"
)

// Partitions lists the partitions, foreign ones too.
func (c *Client) Partitions(ctx context.Context, o ListOptions) ([]api.Partition, error) {
	return list[api.Partition](ctx, c, o, "partitions")
}

// Partition returns one partition.
func (c *Client) Partition(ctx context.Context, id string) (api.Partition, error) {
	return one[api.Partition](ctx, c, get("partitions", id))
}

// CreatePartition starts the making of a partition. However often the request
// has to be sent, one partition is made.
func (c *Client) CreatePartition(ctx context.Context, want api.PartitionRequest) (api.Operation, error) {
	r := write(http.MethodPost, want, "partitions")
	r.key = rand.Text()
	return one[api.Operation](ctx, c, r)
}

// PlanCreatePartition returns what CreatePartition would do.
func (c *Client) PlanCreatePartition(ctx context.Context, want api.PartitionRequest) (api.Plan, error) {
	r := write(http.MethodPost, want, "partitions").dryRun()
	r.key = rand.Text()
	return one[api.Plan](ctx, c, r)
}

// DeletePartition starts the removal of a partition.
func (c *Client) DeletePartition(ctx context.Context, id string) (api.Operation, error) {
	return one[api.Operation](ctx, c, write(http.MethodDelete, nil, "partitions", id))
}

// PlanDeletePartition returns what DeletePartition would do.
func (c *Client) PlanDeletePartition(ctx context.Context, id string) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodDelete, nil, "partitions", id).dryRun())
}

// AdoptPartition takes a partition that somebody else made under management.
func (c *Client) AdoptPartition(ctx context.Context, id string) (api.Partition, error) {
	return one[api.Partition](ctx, c, write(http.MethodPost, nil, "partitions", id, "adopt"))
}

// PlanAdoptPartition returns what AdoptPartition would do.
func (c *Client) PlanAdoptPartition(ctx context.Context, id string) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodPost, nil, "partitions", id, "adopt").dryRun())
}
