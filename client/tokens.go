package client

import (
	"context"
	"net/http"

	"gpuvirt/api"
)

// Tokens lists the tokens, those that have expired too.
func (c *Client) Tokens(ctx context.Context, o ListOptions) ([]api.Token, error) {
	return list[api.Token](ctx, c, o, "tokens")
}

// Token returns one token by its id.
func (c *Client) Token(ctx context.Context, id string) (api.Token, error) {
	return one[api.Token](ctx, c, get("tokens", id))
}

// CreateToken makes a token, and returns it with its secret. It is asked for once: where the
// answer is lost there is a token of this name that nobody has.
func (c *Client) CreateToken(ctx context.Context, want api.TokenRequest) (api.TokenCreated, error) {
	return one[api.TokenCreated](ctx, c, write(http.MethodPost, want, "tokens"))
}

// PlanCreateToken returns what CreateToken would do.
func (c *Client) PlanCreateToken(ctx context.Context, want api.TokenRequest) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodPost, want, "tokens").dryRun())
}

// DeleteToken ends a token and returns it.
func (c *Client) DeleteToken(ctx context.Context, id string) (api.Token, error) {
	return one[api.Token](ctx, c, write(http.MethodDelete, nil, "tokens", id))
}

// PlanDeleteToken returns what DeleteToken would do.
func (c *Client) PlanDeleteToken(ctx context.Context, id string) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodDelete, nil, "tokens", id).dryRun())
}
