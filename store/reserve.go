package store

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"syscall"

	"go.etcd.io/bbolt"
)

const (
	reserveLow  = 256 << 10 // bytes past those in use at which more are reserved
	reserveStep = 4 << 20   // bytes past those in use that there are then
)

// A reserve is the part of the store's file that is written and not yet in use.
// bbolt makes its file longer without writing it, so that the first use of each page
// has the file system find it a place: fdatasync must then bring that to the disk,
// too, which takes several times as long as the data. So zeros are written there
// ahead of use, many pages at a time.
type reserve struct {
	file *os.File
	size int64 // of the file, as far as is known
}

// fill sees that there is a reserve; tx is a write transaction, which keeps others
// off. A disk without room for it is no error: bbolt asks for what it needs.
func (r *reserve) fill(tx *bbolt.Tx) error {
	used := tx.Size()
	if r.file == nil || used+reserveLow <= r.size {
		return nil
	}
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	if used+reserveLow <= info.Size() {
		r.size = info.Size()
		return nil
	}
	begin, end := max(used, r.size), used+reserveStep // what bbolt has added itself is not written
	_, err = io.Copy(io.NewOffsetWriter(r.file, begin), io.LimitReader(zeros{}, end-begin))
	full := err != nil
	if !full {
		err = r.file.Sync()
		full = errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) // some find out late
	}
	switch {
	case full:
		_ = r.file.Truncate(max(used, info.Size())) // what is left is for bbolt
		r.size = math.MaxInt64                      // until the store is opened again
		return nil
	case err != nil:
		return fmt.Errorf("cannot sync what was reserved: %w", errors.Unwrap(err)) // an errno: see unsynced
	}
	r.size = end
	return nil
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
