package client

import (
	"context"
	"crypto/rand"
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

// ApplyAssignments asks for several assignments in one operation: all of them or none.
// One of the results is set: the operation that carries them out, or the assignments
// where all are fulfilled. However often the request has to be sent, it is one operation.
func (c *Client) ApplyAssignments(ctx context.Context, want api.ApplyRequest) (*api.List[api.Assignment], *api.Operation, error) {
	r := write(http.MethodPost, want, "assignments:apply")
	r.key = rand.Text()
	return either[api.List[api.Assignment]](ctx, c, r)
}

// PlanApplyAssignments returns what ApplyAssignments would do.
func (c *Client) PlanApplyAssignments(ctx context.Context, want api.ApplyRequest) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodPost, want, "assignments:apply").dryRun())
}
