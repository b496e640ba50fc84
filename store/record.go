package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"go.etcd.io/bbolt"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// An entry is what an index has for a record.
type entry struct{ index, key string }

// A kind of record knows how to read a value: which id it has, and where it is
// indexed. Strict refuses fields that this version does not know: what is written
// must be understood whole, what is read may be a newer version's.
type kind func(value []byte, strict bool) (id string, entries []entry, err error)

// kinds returns the kinds of record.
func kinds() map[string]kind {
	return map[string]kind{
		gpu.RecordGPU: kindOf(func(r gpu.GPURecord) (string, []entry) { return string(r.ID), nil }),
		gpu.RecordPartition: kindOf(func(r gpu.PartitionRecord) (string, []entry) {
			return r.ID, []entry{{byGPUIndex, indexKey(string(r.GPU), r.ID)}}
		}),
		gpu.RecordAssignment: kindOf(func(r gpu.AssignmentRecord) (string, []entry) {
			return r.Name, []entry{{byVMIndex, indexKey(r.Wish.VM, r.Name)}}
		}),
		gpu.RecordIdempotency:   kindOf(func(r gpu.IdempotencyRecord) (string, []entry) { return r.Key, nil }),
		gpu.RecordToken:         kindOf(func(r gpu.TokenRecord) (string, []entry) { return r.ID, nil }),
		move.RecordMigration:    kindOf(func(r move.Record) (string, []entry) { return r.Name, nil }),
		report.RecordAssessment: kindOf(func(r report.AssessmentRecord) (string, []entry) { return r.Name, nil }),
	}
}

func kindOf[T any](describe func(T) (string, []entry)) kind {
	return func(value []byte, strict bool) (string, []entry, error) {
		r, err := decode[T](value, strict)
		if err != nil {
			return "", nil, err
		}
		id, entries := describe(r)
		return id, entries, nil
	}
}

// indexKey is the key of a record in an index. No id has a NUL in it.
func indexKey(what, id string) string { return what + "\x00" + id }

func decode[T any](value []byte, strict bool) (T, error) {
	var r T
	dec := json.NewDecoder(bytes.NewReader(value))
	if strict {
		dec.DisallowUnknownFields()
	}
	if err := dec.Decode(&r); err != nil {
		return r, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return r, errors.New("something follows the value")
	}
	return r, nil
}

// Apply writes rows in one transaction. Rows that say what the store says already
// are not written, and if none is left nothing is.
func (s *Store) Apply(rows ...operation.Row) error {
	err := s.update(func(tx *bbolt.Tx) error {
		changed, err := apply(tx, rows)
		if err == nil && !changed {
			return errNoChange
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot apply rows: %w", err)
	}
	return nil
}

// apply writes rows and reports whether that changed anything. One that is not
// understood refuses them all.
func apply(tx *bbolt.Tx, rows []operation.Row) (changed bool, err error) {
	known := kinds()
	for _, row := range rows {
		k, ok := known[row.Kind]
		if !ok {
			return false, fmt.Errorf("cannot write record %q: kind %q is unknown", row.Key, row.Kind)
		}
		did, err := applyRow(tx, k, row)
		if err != nil {
			return false, fmt.Errorf("cannot write %s record %q: %w", row.Kind, row.Key, err)
		}
		changed = changed || did
	}
	return changed, nil
}

func applyRow(tx *bbolt.Tx, k kind, row operation.Row) (bool, error) {
	if err := plain(row.Key); err != nil {
		return false, err
	}
	b, key := tx.Bucket([]byte(row.Kind)), []byte(row.Key)
	old := b.Get(key)
	if bytes.Equal(old, row.Value) && (old == nil) == (row.Value == nil) {
		return false, nil
	}
	if old != nil {
		_, entries, err := k(old, false)
		if err != nil {
			return false, fmt.Errorf("cannot read what it replaces: %w", err)
		}
		for _, e := range entries {
			if err := tx.Bucket([]byte(e.index)).Delete([]byte(e.key)); err != nil {
				return false, err
			}
		}
	}
	if row.Value == nil {
		return true, b.Delete(key)
	}
	id, entries, err := k(row.Value, true)
	if err != nil {
		return false, err
	}
	if id != row.Key {
		return false, fmt.Errorf("its value is of %q", id)
	}
	for _, e := range entries {
		if err := tx.Bucket([]byte(e.index)).Put([]byte(e.key), []byte{}); err != nil {
			return false, err
		}
	}
	return true, b.Put(key, row.Value)
}

// plain refuses keys that would not keep apart in an index.
func plain(key string) error {
	if key == "" || bytes.IndexByte([]byte(key), 0) >= 0 {
		return fmt.Errorf("%q cannot be a key", key)
	}
	return nil
}
