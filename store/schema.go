package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"

	"gpuvirt/gpu"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// Buckets that are no kind of record.
const (
	metaBucket = "meta"
	schemaKey  = "schema"

	operationBucket = "operation" // id to operation.Operation
	keyBucket       = "key"       // key to the id of the operation that holds it

	// Indexes: "<what>\x00<id>" to nothing.
	byVMIndex      = "index/assignment-by-vm"
	byGPUIndex     = "index/partition-by-gpu"
	unfinishedName = "index/operation-unfinished" // id to nothing: it holds keys, or could
)

func buckets() []string {
	return []string{
		metaBucket, gpu.RecordGPU, gpu.RecordPartition, gpu.RecordAssignment, gpu.RecordIdempotency, gpu.RecordToken,
		report.RecordAssessment, move.RecordMigration,
		operationBucket, keyBucket, byVMIndex, byGPUIndex, unfinishedName,
	}
}

// A migration brings a store from one schema to the next.
type migration func(*bbolt.Tx) error

// migrations are all there ever were, in order: the first brings schema 1 to 2.
// Never change one that was released. A new kind of record needs none if layOut
// makes its bucket, but then an old version would not know that it is there.
func migrations() []migration { return append([]migration{addTokens, addAssessments}, next()...) }

// addTokens brings schema 1 to 2: an older version would not find the bucket missing, nor
// keep who has a token out.
func addTokens(tx *bbolt.Tx) error {
	_, err := tx.CreateBucketIfNotExists([]byte(gpu.RecordToken))
	return err
}

// addAssessments brings schema 2 to 3: assessments and moves.
func addAssessments(tx *bbolt.Tx) error {
	for _, name := range []string{report.RecordAssessment, move.RecordMigration} {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	return nil
}

// schemaOf is the schema that migrations lead to.
func schemaOf(steps []migration) uint64 { return uint64(len(steps)) + 1 }

// layOut makes the buckets of an empty store.
func layOut(tx *bbolt.Tx) error {
	for _, name := range buckets() {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return fmt.Errorf("cannot make bucket %q: %w", name, err)
		}
	}
	return nil
}

func setSchema(tx *bbolt.Tx, n uint64) error {
	return tx.Bucket([]byte(metaBucket)).Put([]byte(schemaKey), binary.BigEndian.AppendUint64(nil, n))
}

func schema(tx *bbolt.Tx) (uint64, error) {
	b := tx.Bucket([]byte(metaBucket))
	if b == nil {
		return 0, errors.New("it is no store of gpuvirt")
	}
	value := b.Get([]byte(schemaKey))
	if len(value) != 8 {
		return 0, errors.New("it does not tell its schema")
	}
	return binary.BigEndian.Uint64(value), nil
}

// migrate brings the store to the newest schema, in one transaction, having put a
// copy of the old one aside.
func (s *Store) migrate(file *os.File, readOnly bool, steps []migration) error {
	var found uint64
	err := s.view(func(tx *bbolt.Tx) (err error) {
		found, err = schema(tx)
		return err
	})
	ours := schemaOf(steps)
	switch {
	case err != nil:
		return &DamagedError{Path: s.path, Err: err}
	case found == ours:
		return nil
	case found > ours:
		return &NewerError{Path: s.path, Found: found, Ours: ours}
	case found == 0:
		return &DamagedError{Path: s.path, Err: errors.New("schema 0 never was")}
	case readOnly:
		return fmt.Errorf("cannot open store %q: its schema is %d and must be migrated to %d: start gpuvirtd once", s.path, found, ours)
	}
	if err := copyAside(file, backupPath(s.path, found)); err != nil {
		return fmt.Errorf("cannot copy store %q before migrating it: %w", s.path, err)
	}
	err = s.update(func(tx *bbolt.Tx) error {
		for i := found; i < ours; i++ {
			if err := steps[i-1](tx); err != nil {
				return fmt.Errorf("schema %d to %d: %w", i, i+1, err)
			}
		}
		return setSchema(tx, ours)
	})
	if err != nil {
		return fmt.Errorf("cannot migrate store %q: %w", s.path, err)
	}
	return nil
}

// backupPath is where the copy of a store before a migration lies.
func backupPath(path string, schema uint64) string { return fmt.Sprintf("%s.v%d.bak", path, schema) }

// copyAside copies the store's file, which is locked and rests, so that the copy is
// whole and durable or not there.
func copyAside(file *os.File, to string) (err error) {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	aside, err := os.CreateTemp(filepath.Dir(to), ".copy-store-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(aside.Name())
		}
	}()
	_, err = io.Copy(aside, io.NewSectionReader(file, 0, info.Size()))
	if err == nil {
		err = aside.Sync()
	}
	if err := errors.Join(err, aside.Close()); err != nil {
		return err
	}
	if err := os.Rename(aside.Name(), to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}
