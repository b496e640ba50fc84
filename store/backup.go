package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// Backup writes a copy of the store to w, as it is at one moment, while the store
// is in use, and returns its size in bytes. The copy is a store: to restore, put it
// in the store's place while gpuvirtd is stopped.
//
// It is first written aside, next to the store, because a transaction that reads
// keeps the store from using its free pages again: a slow w would make it grow.
func (s *Store) Backup(ctx context.Context, w io.Writer) (n int64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot back up store %q: %w", s.path, err)
		}
	}()
	aside, err := os.CreateTemp(filepath.Dir(s.path), ".backup-store-*") // mode 0600
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, aside.Close()) }()
	// Without a name it is gone when it is closed, whatever happens to the process.
	if err := os.Remove(aside.Name()); err != nil {
		return 0, err
	}
	err = s.view(func(tx *bbolt.Tx) error {
		_, err := tx.WriteTo(aside)
		return err
	})
	if err != nil {
		return 0, err
	}
	if _, err := aside.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(w, &contextReader{ctx, aside})
}

// A contextReader reads until its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
