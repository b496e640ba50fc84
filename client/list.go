package client

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"gpuvirt/api"
)

// ListOptions choose what a list holds. The zero value means everything.
type ListOptions struct {
	// Filter holds fields and the value that they must have, such as
	// "vendor": "NVIDIA". The daemon refuses a field that it does not know.
	Filter map[string]string
	// PageSize is how many items one request asks for; the daemon's choice if
	// zero. All pages are read in any case.
	PageSize int
}

func (o ListOptions) query() url.Values {
	q := url.Values{}
	for field, value := range o.Filter {
		q.Set(field, value)
	}
	if o.PageSize > 0 {
		q.Set("limit", strconv.Itoa(o.PageSize))
	}
	return q
}

// list reads all pages of a list. It never returns nil without an error.
func list[T any](ctx context.Context, c *Client, o ListOptions, path ...string) ([]T, error) {
	items, _, err := listKnown[T](ctx, c, o, path...)
	return items, err
}

// listKnown is list for what may not be known wholly, and why.
func listKnown[T any](ctx context.Context, c *Client, o ListOptions, path ...string) (items []T, unknown string, err error) {
	items = []T{}
	seen := map[string]bool{}
	query := o.query()
	for {
		r := get(path...)
		r.query = query
		var page struct {
			api.List[T]

			Unknown string `json:"unknown"`
		}
		if _, err := c.do(ctx, r, &page); err != nil {
			return nil, "", err
		}
		unknown = cmp.Or(unknown, page.Unknown)
		items = append(items, page.Items...)
		if page.Next == "" {
			return items, unknown, nil
		}
		if seen[page.Next] {
			return nil, "", fmt.Errorf("cannot list %s: gpuvirtd gave the page %q twice", path[len(path)-1], page.Next)
		}
		seen[page.Next] = true
		query.Set("cursor", page.Next)
	}
}

// one reads one object.
func one[T any](ctx context.Context, c *Client, r *request) (T, error) {
	var v T
	_, err := c.do(ctx, r, &v)
	return v, err
}

// either sends a wish and returns the operation that carries it out, or the thing where
// it is as wished already.
func either[T any](ctx context.Context, c *Client, r *request) (*T, *api.Operation, error) {
	var body json.RawMessage
	answer, err := c.do(ctx, r, &body)
	if err != nil {
		return nil, nil, err
	}
	thing, op := new(T), new(api.Operation)
	if answer.status == http.StatusAccepted {
		if err := json.Unmarshal(body, op); err != nil {
			return nil, nil, fmt.Errorf("cannot read the answer to %s: %w", r, err)
		}
		return nil, op, nil
	}
	if err := json.Unmarshal(body, thing); err != nil {
		return nil, nil, fmt.Errorf("cannot read the answer to %s: %w", r, err)
	}
	return thing, nil, nil
}
