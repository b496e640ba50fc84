package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"gpuvirt/api"
)

// Info describes the daemon and its host.
func (c *Client) Info(ctx context.Context) (api.Info, error) {
	return one[api.Info](ctx, c, get())
}

// Settings tells the configuration that the daemon works with.
func (c *Client) Settings(ctx context.Context) (api.Settings, error) {
	return one[api.Settings](ctx, c, get("config"))
}

// CheckStart asks what speaks against the start of a VM, by its UUID, with the devices of
// the host that its definition names.
func (c *Client) CheckStart(ctx context.Context, vmUUID string, devices []api.Handle) (api.StartCheck, error) {
	return one[api.StartCheck](ctx, c, write(http.MethodPost, api.StartCheckRequest{Devices: devices}, "vms", vmUUID, "check-start"))
}

// Capacity says how many more partitions fit: of one profile, or of all if
// profile is empty.
func (c *Client) Capacity(ctx context.Context, profile string) (api.Capacity, error) {
	r := get("capacity")
	if profile != "" {
		r.query = url.Values{"profile": {profile}}
	}
	return one[api.Capacity](ctx, c, r)
}

// Health says whether the daemon is ready, and why not. A daemon that answers
// that it is not ready is no error.
func (c *Client) Health(ctx context.Context) (api.Health, error) {
	r := get("health", "ready")
	r.also = http.StatusServiceUnavailable
	h, err := one[api.Health](ctx, c, r)
	var p *api.Problem
	if errors.As(err, &p) && p.Status == http.StatusServiceUnavailable {
		return api.Health{Status: "not-ready", Reasons: []string{p.Detail}}, nil
	}
	return h, err
}

// WaitReady waits until the daemon is there and ready. It gives up with ctx, and
// then says what the daemon lacked last.
func (c *Client) WaitReady(ctx context.Context) (api.Health, error) {
	p := patience{next: firstPause} // as long as ctx allows
	var last api.Health
	var lastErr error
	for {
		h, err := c.Health(ctx)
		if ctx.Err() == nil {
			last, lastErr = h, err
		}
		if err == nil && h.Status == "ok" || err != nil && !isUnreachable(err) && ctx.Err() == nil {
			return h, err
		}
		if stop := p.pause(ctx); stop != nil {
			if lastErr == nil && last.Status == "" {
				lastErr = stop
			}
			return last, lastErr
		}
	}
}

// Backup writes a copy of the daemon's store to w.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	r := get("backup")
	r.within = 0
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read from
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("cannot copy the store: %w", err)
	}
	return nil
}
