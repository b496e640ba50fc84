package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"gpuvirt/config"
	rest "gpuvirt/daemon"
	"gpuvirt/gpu"
	"gpuvirt/host"
	programs "gpuvirt/internal/run"
	"gpuvirt/internal/version"
	"gpuvirt/metrics"
	"gpuvirt/operation"
	"gpuvirt/p2v"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/source"
	"gpuvirt/p2v/virtp2v"
	"gpuvirt/store"
	"gpuvirt/token"
	"gpuvirt/vmapi"
)

const (
	storeFile    = "gpuvirt.db"
	storeTimeout = 5 * time.Second // for another process to let go of the store
	keepAge      = 30 * 24 * time.Hour
	keepCount    = 10000
	pruneEvery   = time.Hour
)

func openStore(ctx context.Context, o options) (*store.Store, error) {
	return store.Open(ctx, filepath.Join(o.StateDir, storeFile), store.Options{Timeout: storeTimeout})
}

// serve is the daemon.
func serve(ctx context.Context, o options, level *slog.LevelVar, log *slog.Logger) (err error) {
	db, err := openStore(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	group, ctx := errgroup.WithContext(ctx)
	p, err := openParts(ctx, o, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()

	var h *host.Host
	var m *metrics.Metrics
	var migrations *p2v.Migrations
	engine := operation.New(operation.Config{
		Store: db, Log: log, Problem: host.Problem, KeepAge: keepAge, KeepCount: keepCount,
		Changed: func(op operation.Operation) {
			h.OperationChanged(op)
			m.OperationChanged(op)
			migrations.OperationChanged(op)
		},
	})
	h = host.New(host.Config{
		Store: db, Engine: engine, Inventory: p.inventory(log), VMs: p.vms, Log: log,
		Now: time.Now, NewUUID: uuid.NewString,
		HostID: p.hostID, BootID: p.bootID, Simulated: p.simulated,
		DetachTimeout: o.DetachTimeout, Placement: gpu.Placement(o.Placement),
	})
	var server *rest.Server
	tokens, err := token.Open(db, log, time.Now)
	if err != nil {
		return err
	}
	converts, err := converter(ctx, o.Config, p.simulated, programs.Booted(), log)
	if err != nil {
		return err
	}
	var lease atomic.Int64
	lease.Store(int64(o.Lease))
	var assumed assumptions
	if err := assumed.set(o.Config); err != nil {
		return err
	}
	moving := p2v.Config{
		Store: db, Engine: engine, Log: log, Now: time.Now, Open: inspector(o.Inspector),
		Dial: func(ctx context.Context, s report.Source) (p2v.Server, error) {
			return source.Dial(ctx, s, source.Options{Credentials: o.Credentials})
		},
		DialAtRest: diskReader(o.Config, log), Answers: virtp2v.Answers,
		Host: h, Facts: func() assess.HostState { return hostFacts(o.Mirrors, tools(p.simulated, converts), log) }, Storage: o.Mirrors, Converter: converts,
		VMs: p.vms, Mark: vmapi.Marked, Assignments: h, NewUUID: uuid.NewString, Guest: guestFiles(o.GuestFiles, o.Credentials),
		Policy: assumed.policy, Drivers: assumed.drivers, Lease: func() time.Duration { return time.Duration(lease.Load()) }, Tell: h.Tell, Secret: readSecret(o.Credentials),
	}
	if o.P2VListen != "" {
		moving.Arrivals = p2v.NewArrivals()
	}
	assessments := p2v.New(moving)
	migrations = p2v.NewMigrations(moving, assessments)
	m = metrics.New(metrics.Config{
		Host: h, Migrations: migrations, Version: version.String(), WriteTimeouts: p.writeTimeouts, Process: true,
		CertificateExpires: func() time.Time { return server.CertificateExpires() },
	})
	set := &settings{loaded: o.Loaded, load: o.reload, log: log}
	server = rest.New(rest.Config{
		Host: h, Operations: engine, Tokens: tokens, Assessments: assessments, Migrations: migrations, Metrics: m.Write, Log: log, Version: version.String(), Settings: set.list,
		SocketPath: o.SocketPath, SocketGroup: o.SocketGroup, TLSListen: o.TLSListen,
	})
	set.apply = func(c config.Config) error {
		level.Set(c.LogLevel)
		h.SetDetachTimeout(c.DetachTimeout)
		h.SetPlacement(gpu.Placement(c.Placement))
		lease.Store(int64(c.Lease))
		if p.setDetachTimeout != nil {
			p.setDetachTimeout(c.DetachTimeout)
		}
		return errors.Join(assumed.set(c), serveTLS(server, c))
	}
	if err := serveTLS(server, o.Config); err != nil {
		// The socket is where it can be mended.
		log.Error("the network is not served until this is mended and the daemon is told to reload", "err", err)
	}

	// libvirt is there for as long as steps are under way.
	served, unserved := context.WithCancel(context.WithoutCancel(ctx))
	defer unserved()
	if p.run != nil {
		group.Go(func() error { return p.run(served) })
	}
	group.Go(func() error { set.follow(ctx, server.Ready(), o.hup); return nil })
	group.Go(func() error { defer unserved(); return h.Run(ctx) })
	group.Go(func() error { migrations.Run(ctx); return nil })
	group.Go(func() error { tokens.Run(ctx); return nil })
	group.Go(func() error { return server.Run(ctx) })
	if o.P2VListen != "" {
		group.Go(func() error { receive(ctx, o.Config, migrations, log); return nil })
	}
	group.Go(func() error {
		select {
		case <-server.Ready():
		case <-ctx.Done():
			return nil
		}
		log.Info("gpuvirtd is ready", "version", version.String(), "socket", o.SocketPath, "simulated", p.simulated)
		return attend(ctx, db, engine, log)
	})
	err = group.Wait()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	return err
}

// serveTLS has the network served as a configuration says, if that is wanted.
func serveTLS(server *rest.Server, c config.Config) error {
	t, wanted, err := tlsOf(c)
	if err != nil || !wanted {
		return err
	}
	return server.SetTLS(t)
}

// attend tells systemd that the daemon is ready and then that it is alive, as
// long as the store answers; and prunes finished operations now and then.
func attend(ctx context.Context, db *store.Store, engine *operation.Engine, log *slog.Logger) error {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return fmt.Errorf("cannot tell systemd: %w", err)
	}
	defer func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }()
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("cannot read systemd's watchdog: %w", err)
	}
	var alive <-chan time.Time
	if every > 0 {
		tick := time.NewTicker(every / 3)
		defer tick.Stop()
		alive = tick.C
	}
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-alive:
			if _, err := db.GPURecords(); err != nil {
				log.Error("the store does not answer", "err", err)
				continue
			}
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		case <-prune.C:
			if _, err := engine.Prune(); err != nil {
				log.Warn("cannot prune operations", "err", err)
			}
		}
	}
}
