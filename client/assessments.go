package client

import (
	"context"
	"crypto/rand"
	"net/http"

	"gpuvirt/api"
	"gpuvirt/p2v/report"
)

// Assessments lists the looks at physical servers.
func (c *Client) Assessments(ctx context.Context, o ListOptions) ([]api.Assessment, error) {
	return list[api.Assessment](ctx, c, o, "assessments")
}

// Assessment returns one by its name.
func (c *Client) Assessment(ctx context.Context, name string) (api.Assessment, error) {
	return one[api.Assessment](ctx, c, get("assessments", name))
}

// Inspection returns what was seen of an assessment's server.
func (c *Client) Inspection(ctx context.Context, name string) (report.Report, error) {
	return one[report.Report](ctx, c, get("assessments", name, "inspection"))
}

// CreateAssessment has a server looked at, and returns the operation that does; or has an
// inspection judged, and returns the assessment. However often the request has to be sent,
// there is one.
func (c *Client) CreateAssessment(ctx context.Context, want api.AssessmentRequest) (*api.Assessment, *api.Operation, error) {
	return either[api.Assessment](ctx, c, c.assess(want))
}

// PlanCreateAssessment returns what CreateAssessment would do.
func (c *Client) PlanCreateAssessment(ctx context.Context, want api.AssessmentRequest) (api.Plan, error) {
	return one[api.Plan](ctx, c, c.assess(want).dryRun())
}

func (c *Client) assess(want api.AssessmentRequest) *request {
	if want.Inspection != nil {
		clean := *want.Inspection
		clean.Clean() // lists are never null on the wire
		want.Inspection = &clean
	}
	r := write(http.MethodPost, want, "assessments")
	r.key = rand.Text()
	return r
}

// FinishAssessment ends the watching of a server early; what was seen is kept.
func (c *Client) FinishAssessment(ctx context.Context, name string) (api.Assessment, error) {
	return one[api.Assessment](ctx, c, finishing(name))
}

// PlanFinishAssessment returns what FinishAssessment would do.
func (c *Client) PlanFinishAssessment(ctx context.Context, name string) (api.Plan, error) {
	return one[api.Plan](ctx, c, finishing(name).dryRun())
}

func finishing(name string) *request {
	r := write(http.MethodPost, nil, "assessments", name, "finish")
	r.key = rand.Text() // it may be repeated
	return r
}

// DeleteAssessment forgets one and returns it.
func (c *Client) DeleteAssessment(ctx context.Context, name string) (api.Assessment, error) {
	return one[api.Assessment](ctx, c, write(http.MethodDelete, nil, "assessments", name))
}

// PlanDeleteAssessment returns what DeleteAssessment would do.
func (c *Client) PlanDeleteAssessment(ctx context.Context, name string) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodDelete, nil, "assessments", name).dryRun())
}
