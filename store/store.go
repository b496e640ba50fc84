// Package store keeps on disk what was asked of gpuvirt and what it made: records
// of GPUs, partitions, assignments and idempotency keys, and the operations with
// the keys they hold. One record per thing, indexes written in the same
// transaction, every write durable before it returns.
//
// It knows nothing of what the machine looks like. It is the only package that
// imports bbolt.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Options are how a store is opened.
type Options struct {
	// Timeout is how long to wait for another process to let go of the store.
	// Zero: not at all.
	Timeout time.Duration
	// ReadOnly opens a store that must exist, together with other readers, and
	// refuses every write.
	ReadOnly bool
	// NoSync leaves it to the kernel when writes become durable. For tests only.
	NoSync bool
}

// A Store is an open store. Its methods may be called concurrently.
type Store struct {
	db     *bbolt.DB
	path   string
	spare  reserve // of writers
	writes atomic.Uint64
	broken atomic.Bool // a write may be lost: see update
}

// A LockedError says that another process has the store open.
type LockedError struct{ Path string }

func (e *LockedError) Error() string {
	return fmt.Sprintf("cannot open store %q: another process holds it (is gpuvirtd running?)", e.Path)
}

// A DamagedError says that a store is torn or corrupt. Nothing was changed.
type DamagedError struct {
	Path string
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("cannot open store %q: it is damaged: %v; move it aside and put the last backup in its place (running VMs are not affected)", e.Path, e.Err)
}

// Unwrap returns what is damaged.
func (e *DamagedError) Unwrap() error { return e.Err }

// A NewerError says that a store was written by a newer version. Nothing was
// changed.
type NewerError struct {
	Path        string
	Found, Ours uint64
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("cannot open store %q: its schema is %d, and this version knows none newer than %d: install the newer version again, or put %q back",
		e.Path, e.Found, e.Ours, backupPath(e.Path, e.Ours))
}

// Open opens the store at path, and creates it with its directory where there is
// none. It waits for its lock until Options.Timeout or the end of ctx.
//
// A store that is there is read through before it is trusted: a damaged one is a
// *DamagedError, never replaced and never changed. One of an older schema is copied
// to "<path>.v<schema>.bak" and migrated.
func Open(ctx context.Context, path string, o Options) (*Store, error) {
	return open(ctx, path, o, migrations())
}

func open(ctx context.Context, path string, o Options, steps []migration) (_ *Store, err error) {
	if !o.ReadOnly {
		if err := create(path, o, steps); err != nil {
			return nil, fmt.Errorf("cannot create store %q: %w", path, err)
		}
	}
	file, err := lock(ctx, path, o)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil {
		err = verify(file, info.Size())
	}
	if err != nil {
		_ = file.Close() // the damage is what matters
		return nil, &DamagedError{Path: path, Err: err}
	}
	s := &Store{path: path}
	if s.db, err = openFile(file, o); err != nil {
		return nil, fmt.Errorf("cannot open store %q: %w", path, err)
	}
	defer func() {
		if err == nil {
			return
		}
		if closeErr := s.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
	}()
	if err := s.migrate(file, o.ReadOnly, steps); err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, &DamagedError{Path: path, Err: err}
	}
	if !o.ReadOnly && !o.NoSync {
		s.spare.file = file
		if err := s.update(func(*bbolt.Tx) error { return errNoChange }); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// openFile gives bbolt the file that was locked and read through, so that nobody
// can put another in its place between. bbolt panics where it finds a file corrupt;
// verify should have found it first.
func openFile(file *os.File, o Options) (db *bbolt.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			_ = file.Close()
			db, err = nil, &DamagedError{Path: file.Name(), Err: fmt.Errorf("%v", p)}
		}
	}()
	return bbolt.Open(file.Name(), 0o600, &bbolt.Options{
		ReadOnly: o.ReadOnly,
		NoSync:   o.NoSync,
		Timeout:  time.Nanosecond, // the lock is ours already
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return file, nil },
	})
}

// Close waits for open transactions and closes the store.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("cannot close store %q: %w", s.path, err)
	}
	return nil
}

// Path returns where the store is.
func (s *Store) Path() string { return s.path }

// Writes returns how many transactions were committed since the store was opened.
func (s *Store) Writes() uint64 { return s.writes.Load() }

// errNoChange is returned by a transaction that found nothing to write.
var errNoChange = errors.New("no change")

// update runs a write transaction: all of it or nothing, durable when it returns.
func (s *Store) update(change func(*bbolt.Tx) error) error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return fmt.Errorf("cannot write store %q: %w", s.path, err)
	}
	defer tx.Rollback() //nolint:errcheck // does nothing after Commit, and cannot fail before
	if s.broken.Load() {
		return fmt.Errorf("cannot write store %q: an earlier write may be lost, because its disk failed: check the disk and restart gpuvirtd", s.path)
	}
	if err := s.spare.fill(tx); err != nil {
		s.broken.Store(unsynced(err))
		return fmt.Errorf("cannot write store %q: %w", s.path, err)
	}
	switch err := change(tx); {
	case errors.Is(err, errNoChange):
		return nil
	case err != nil:
		return err
	}
	if err := tx.Commit(); err != nil {
		if unsynced(err) {
			s.broken.Store(true)
		}
		return fmt.Errorf("cannot write store %q: %w", s.path, err)
	}
	s.writes.Add(1)
	return nil
}

// unsynced reports whether a commit failed because the kernel could not bring data
// to the disk. The kernel then forgets that the data was never written, and the
// next sync succeeds without it; so what is read back from now on may not be what
// is on the disk, and nothing may be built on it. A write that failed is not that
// bad: bbolt writes aside first, and has changed nothing.
func unsynced(err error) bool {
	_, isErrno := errors.AsType[syscall.Errno](err)
	_, isWrite := errors.AsType[*fs.PathError](err)
	return isErrno && !isWrite
}

// view runs a read transaction.
func (s *Store) view(read func(*bbolt.Tx) error) error {
	err := s.db.View(read)
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return fmt.Errorf("cannot read store %q: %w", s.path, err)
	}
	return err
}
