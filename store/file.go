package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// lockRetry is the time between two tries to lock the store.
const lockRetry = 50 * time.Millisecond

// create makes an empty store where there is nothing at path. It is made aside and
// linked to its place when it is whole: so a file that is there, even an empty one,
// was never merely begun by us, and is never taken for a new store.
func create(path string, o Options, steps []migration) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	aside, err := os.CreateTemp(dir, ".new-store-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(aside.Name()) //nolint:errcheck // linked or not, its own name is of no use
	if err := aside.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(aside.Name(), 0o600, &bbolt.Options{NoSync: o.NoSync})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if err := layOut(tx); err != nil {
			return err
		}
		return setSchema(tx, schemaOf(steps))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(aside.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if o.NoSync {
		return nil
	}
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lock opens the store's file and locks it, shared for a reader. The lock is the
// one that bbolt takes, too.
func lock(ctx context.Context, path string, o Options) (*os.File, error) {
	flag, how := os.O_RDWR, syscall.LOCK_EX
	if o.ReadOnly {
		flag, how = os.O_RDONLY, syscall.LOCK_SH
	}
	// Not to hang at a pipe that somebody put in the store's place.
	file, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open store %q: %w", path, err)
	}
	if err := waitForLock(ctx, file, how, o.Timeout); err != nil {
		_ = file.Close()
		if errors.Is(err, errHeld) {
			return nil, &LockedError{Path: path}
		}
		return nil, fmt.Errorf("cannot open store %q: %w", path, err)
	}
	return file, nil
}

// errHeld says that another process has the lock.
var errHeld = errors.New("it is held")

func waitForLock(ctx context.Context, file *os.File, how int, timeout time.Duration) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is not a regular file")
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	again := time.NewTicker(lockRetry)
	defer again.Stop()
	for {
		err := syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			if err != nil {
				return fmt.Errorf("cannot lock it: %w", err)
			}
			return nil
		}
		select {
		case <-again.C:
		case <-deadline.C:
			return errHeld
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
