package client

import (
	"context"
	"crypto/rand"
	"net/http"
	"time"

	"gpuvirt/api"
)

// Migrations lists the moves of servers into VMs.
func (c *Client) Migrations(ctx context.Context, o ListOptions) ([]api.Migration, error) {
	return list[api.Migration](ctx, c, o, "migrations")
}

// Migration returns one by its name.
func (c *Client) Migration(ctx context.Context, name string) (api.Migration, error) {
	return one[api.Migration](ctx, c, get("migrations", name))
}

// WaitMigration asks for a migration once a second, until it is as wanted. A daemon that restarts meanwhile is
// waited for, as by WaitOperation.
func (c *Client) WaitMigration(ctx context.Context, name string, wanted func(api.Migration) bool) (api.Migration, error) {
	again := time.NewTicker(time.Second)
	defer again.Stop()
	last := api.Migration{Name: name}
	p := c.newPatience()
	for {
		m, err := c.Migration(ctx, name)
		switch {
		case err == nil:
			if last = m; wanted(m) {
				return m, nil
			}
			p = c.newPatience()
			select {
			case <-again.C:
			case <-ctx.Done():
				return last, ctx.Err()
			}
		case !passes(err) || p.pause(ctx) != nil:
			return last, err
		}
	}
}

// MigrationPlan plans a migration anew, on the host as it is now.
func (c *Client) MigrationPlan(ctx context.Context, name string) (api.MigrationPlan, error) {
	return one[api.MigrationPlan](ctx, c, get("migrations", name, "plan"))
}

// CreateMigration begins to move a server, and returns the operation that does. However often
// the request has to be sent, it is moved once.
func (c *Client) CreateMigration(ctx context.Context, want api.MigrationRequest) (api.Operation, error) {
	r := write(http.MethodPost, want, "migrations")
	r.key = rand.Text()
	return one[api.Operation](ctx, c, r)
}

// PlanCreateMigration returns how a server would be moved. A plan that is blocked is no error.
func (c *Client) PlanCreateMigration(ctx context.Context, want api.MigrationRequest) (api.MigrationPlan, error) {
	r := write(http.MethodPost, want, "migrations").dryRun()
	r.key = rand.Text() // it may be repeated
	return one[api.MigrationPlan](ctx, c, r)
}

// PatchMigration changes how a migration copies.
func (c *Client) PatchMigration(ctx context.Context, name string, p api.MigrationPatch) (api.Migration, error) {
	return one[api.Migration](ctx, c, write(http.MethodPatch, p, "migrations", name))
}

// PlanPatchMigration returns what PatchMigration would do.
func (c *Client) PlanPatchMigration(ctx context.Context, name string, p api.MigrationPatch) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodPatch, p, "migrations", name).dryRun())
}

// SyncMigration has the disks passed over at once.
func (c *Client) SyncMigration(ctx context.Context, name string) (api.Migration, error) {
	return one[api.Migration](ctx, c, acting(name, "sync"))
}

// RetryMigration goes on with one that waits for a person.
func (c *Client) RetryMigration(ctx context.Context, name string) (api.Migration, error) {
	return one[api.Migration](ctx, c, acting(name, "retry"))
}

// RollbackMigration takes one back.
func (c *Client) RollbackMigration(ctx context.Context, name string) (api.Migration, error) {
	return one[api.Migration](ctx, c, acting(name, "rollback"))
}

// RehearseMigration has the VM of one tried on a copy.
func (c *Client) RehearseMigration(ctx context.Context, name string, how api.TryRequest) (api.Migration, error) {
	return one[api.Migration](ctx, c, asking(name, "rehearse", how))
}

// CutOverMigration has a server become its VM.
func (c *Client) CutOverMigration(ctx context.Context, name string, how api.TryRequest) (api.Migration, error) {
	return one[api.Migration](ctx, c, asking(name, "cutover", how))
}

// PlanTryMigration returns what a rehearsal or a cut-over, by its verb, would do.
func (c *Client) PlanTryMigration(ctx context.Context, name, verb string, how api.TryRequest) (api.Plan, error) {
	return one[api.Plan](ctx, c, asking(name, verb, how).dryRun())
}

// ReserveMigration keeps the partitions of one for longer, or reserves them again.
func (c *Client) ReserveMigration(ctx context.Context, name string, how api.ReserveRequest) (api.Migration, error) {
	return one[api.Migration](ctx, c, asking(name, "reserve", how))
}

// PlanReserveMigration returns what ReserveMigration would do.
func (c *Client) PlanReserveMigration(ctx context.Context, name string, how api.ReserveRequest) (api.Plan, error) {
	return one[api.Plan](ctx, c, asking(name, "reserve", how).dryRun())
}

// WithdrawMigration ends what was asked for of one, or is under way.
func (c *Client) WithdrawMigration(ctx context.Context, name string) (api.Migration, error) {
	return one[api.Migration](ctx, c, acting(name, "withdraw"))
}

// FencedMigration says that the server of one is off.
func (c *Client) FencedMigration(ctx context.Context, name string) (api.Migration, error) {
	return one[api.Migration](ctx, c, acting(name, "fenced"))
}

// AcceptMigration takes the VM of one as it is, though a check of it has failed.
func (c *Client) AcceptMigration(ctx context.Context, name, reason string) (api.Migration, error) {
	return one[api.Migration](ctx, c, asking(name, "accept", api.AcceptRequest{Reason: reason}))
}

// PlanAcceptMigration returns what AcceptMigration would do.
func (c *Client) PlanAcceptMigration(ctx context.Context, name, reason string) (api.Plan, error) {
	return one[api.Plan](ctx, c, asking(name, "accept", api.AcceptRequest{Reason: reason}).dryRun())
}

// PlanMigration returns what sync, retry, rollback, withdraw or fenced would do.
func (c *Client) PlanMigration(ctx context.Context, name, verb string) (api.Plan, error) {
	return one[api.Plan](ctx, c, acting(name, verb).dryRun())
}

func acting(name, verb string) *request { return asking(name, verb, nil) }

func asking(name, verb string, body any) *request {
	r := write(http.MethodPost, body, "migrations", name, verb)
	r.key = rand.Text() // twice is as once
	return r
}

// DeleteMigration forgets one that has ended, and returns it.
func (c *Client) DeleteMigration(ctx context.Context, name string) (api.Migration, error) {
	return one[api.Migration](ctx, c, write(http.MethodDelete, nil, "migrations", name))
}

// PlanDeleteMigration returns what DeleteMigration would do.
func (c *Client) PlanDeleteMigration(ctx context.Context, name string) (api.Plan, error) {
	return one[api.Plan](ctx, c, write(http.MethodDelete, nil, "migrations", name).dryRun())
}
