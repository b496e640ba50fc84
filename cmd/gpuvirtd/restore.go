package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"gpuvirt/host"
	"gpuvirt/store"
)

// errDaemonRuns says that nothing was restored, as another process has the store: what
// has gone missing then is for a person to judge.
var errDaemonRuns = errors.New("nothing is restored beside a daemon")

// restore puts back, before libvirt starts its guests, what the store says was
// made. On a host where gpuvirt has never stored anything there is nothing to do.
//
// A configuration with something wrong in it does not keep guests from their devices:
// restore goes on with what can be used of it, and fails in the end. Only a store that may
// not be the right one is left alone: what it says may have been asked for long ago.
func restore(ctx context.Context, o options, log *slog.Logger) (err error) {
	if o.wrong != nil {
		log.Error("the configuration is wrong, and restore goes on with what can be used of it", "err", o.wrong)
		defer func() { err = errors.Join(err, o.wrong) }()
	}
	if o.StoreUnknown {
		return errors.New("nothing is restored, as the mistake may hide which store holds what was asked for")
	}
	if _, err := os.Stat(filepath.Join(o.StateDir, storeFile)); errors.Is(err, fs.ErrNotExist) {
		log.Info("nothing to restore: there is no store yet", "folder", o.StateDir)
		return nil
	}
	db, err := openStore(ctx, o)
	if locked, ok := errors.AsType[*store.LockedError](err); ok && o.wrong == nil { // else it is not well
		return fmt.Errorf("%w: %w", errDaemonRuns, locked)
	}
	if err != nil {
		return err
	}
	// Held to the end: no daemon is to work on what is being restored.
	defer func() { err = errors.Join(err, db.Close()) }()
	gpus, err := db.GPURecords()
	if err != nil {
		return err
	}
	records, err := db.PartitionRecords()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.RestoreTimeout)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	p, err := openParts(ctx, o, log)
	if err != nil {
		return err
	}
	defer func() { cancel(); err = errors.Join(err, p.close()) }()

	// Whatever changes may be the parent that is waited for; many changes at once
	// are one.
	changed := make(chan struct{}, 1)
	work.Go(func() {
		for {
			select {
			case _, ok := <-p.devices:
				if !ok {
					return
				}
				select {
				case changed <- struct{}{}:
				default:
				}
			case <-ctx.Done():
				return
			}
		}
	})
	done, err := host.Restore(ctx, gpus, records, p.inventory(log), changed, log)
	made := 0
	for _, d := range done {
		if d.Made {
			made++
		}
	}
	log.Info("restore ended", "partitions", len(done), "made", made)
	return err
}
