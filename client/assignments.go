package client

import (
	"context"
	"net/http"

	"gpuvirt/api"
)

// Assignments lists the assignments.
func (c *Client) Assignments(ctx context.Context, o ListOptions) ([]api.Assignment, error) {
	return list[api.Assignment](ctx, c, o, "assignments")
}

// Assignment returns one assignment.
func (c *Client) Assignment(ctx context.Context, name string) (api.Assignment, error) {
	return one[api.Assignment](ctx, c, get("assignments", name))
}

// PutAssignment asks for an assignment. One of the results is set: the operation
// that carries the wish out, or the assignment where the wish is already
// fulfilled.
func (c *Client) PutAssignment(
	ctx context.Context, name string, want api.AssignmentRequest,
) (*api.Assignment, *api.Operation, error) {
	return either[api.Assignment](ctx, c, write(http.MethodPut, want, "assignments", name))
}

// PlanPutAssignment returns what PutAssignment would do.
func (c *Client) PlanPutAssignment(ctx context.Context, name string, want api.AssignmentRequest) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodPut, want, "assignments", name).dryRun())
}

// DeleteAssignment starts the detaching of an assignment.
func (c *Client) DeleteAssignment(ctx context.Context, name string) (api.Operation, error) {
	return one[api.Operation](ctx, c, write(http.MethodDelete, nil, "assignments", name))
}

// PlanDeleteAssignment returns what DeleteAssignment would do.
func (c *Client) PlanDeleteAssignment(ctx context.Context, name string) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodDelete, nil, "assignments", name).dryRun())
}
