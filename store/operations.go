package store

import (
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// AddOperation writes an operation, its keys and rows in one transaction. Where a
// key is held the error is an *operation.ConflictError and nothing is written.
func (s *Store) AddOperation(op operation.Operation, rows []operation.Row) error {
	err := s.update(func(tx *bbolt.Tx) error {
		if err := plain(op.ID); err != nil {
			return err
		}
		if tx.Bucket([]byte(operationBucket)).Get([]byte(op.ID)) != nil {
			return errors.New("it is there already")
		}
		if err := free(tx, op); err != nil {
			return err
		}
		return putOperation(tx, op, rows)
	})
	if conflict, ok := errors.AsType[*operation.ConflictError](err); ok {
		return conflict
	}
	if err != nil {
		return fmt.Errorf("cannot add operation %q: %w", op.ID, err)
	}
	return nil
}

// SaveOperation writes an operation and rows in one transaction. Keys that it does
// not hold any more are free with it.
func (s *Store) SaveOperation(op operation.Operation, rows []operation.Row) error {
	err := s.update(func(tx *bbolt.Tx) error {
		if tx.Bucket([]byte(operationBucket)).Get([]byte(op.ID)) == nil {
			return operation.ErrNotFound
		}
		return putOperation(tx, op, rows)
	})
	if err != nil {
		return fmt.Errorf("cannot save operation %q: %w", op.ID, err)
	}
	return nil
}

func putOperation(tx *bbolt.Tx, op operation.Operation, rows []operation.Row) error {
	if err := putKeys(tx, op); err != nil {
		return err
	}
	if _, err := apply(tx, rows); err != nil {
		return err
	}
	value, err := json.Marshal(op)
	if err != nil {
		return err
	}
	if err := tx.Bucket([]byte(operationBucket)).Put([]byte(op.ID), value); err != nil {
		return err
	}
	unfinished := tx.Bucket([]byte(unfinishedName))
	if op.Holds() {
		return unfinished.Put([]byte(op.ID), []byte{})
	}
	return unfinished.Delete([]byte(op.ID))
}

// putKeys has the operation hold its keys, or let go of those it held.
func putKeys(tx *bbolt.Tx, op operation.Operation) error {
	if op.Holds() {
		if err := free(tx, op); err != nil {
			return err
		}
	}
	b := tx.Bucket([]byte(keyBucket))
	for _, key := range op.Keys {
		var err error
		switch {
		case plain(key) != nil:
			err = plain(key)
		case op.Holds():
			err = b.Put([]byte(key), []byte(op.ID))
		case string(b.Get([]byte(key))) == op.ID:
			err = b.Delete([]byte(key))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// free checks that no other operation holds a key of this one.
func free(tx *bbolt.Tx, op operation.Operation) error {
	for _, key := range op.Keys {
		holder := string(tx.Bucket([]byte(keyBucket)).Get([]byte(key)))
		if holder == "" || holder == op.ID {
			continue
		}
		other, err := getOperation(tx, holder)
		if err != nil {
			return err
		}
		return &operation.ConflictError{Key: key, Holder: holder, Summary: other.Summary}
	}
	return nil
}

func getOperation(tx *bbolt.Tx, id string) (operation.Operation, error) {
	value := tx.Bucket([]byte(operationBucket)).Get([]byte(id))
	if value == nil {
		return operation.Operation{}, operation.ErrNotFound
	}
	return decode[operation.Operation](value, false)
}

// Operation returns one operation, or an error that wraps operation.ErrNotFound.
func (s *Store) Operation(id string) (op operation.Operation, err error) {
	err = s.view(func(tx *bbolt.Tx) (err error) {
		op, err = getOperation(tx, id)
		return err
	})
	if err != nil {
		return operation.Operation{}, fmt.Errorf("cannot read operation %q: %w", id, err)
	}
	return op, nil
}

// Operations returns all operations, oldest first.
func (s *Store) Operations() ([]operation.Operation, error) { return s.operations(operationBucket) }

// UnfinishedOperations returns the operations that hold their keys, oldest first:
// those that are not final, and failed ones that nobody has resolved.
func (s *Store) UnfinishedOperations() ([]operation.Operation, error) {
	return s.operations(unfinishedName)
}

// operations reads the operations whose ids are the keys of a bucket.
func (s *Store) operations(bucket string) ([]operation.Operation, error) {
	ops := []operation.Operation{}
	err := s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucket)).ForEach(func(id, _ []byte) error {
			op, err := getOperation(tx, string(id))
			if err != nil {
				return fmt.Errorf("%q: %w", id, err)
			}
			ops = append(ops, op)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read operations: %w", err)
	}
	return ops, nil
}

// forgetKeys deletes the idempotency records that lead to operations that are gone:
// a request repeated under such a key is a new one.
func forgetKeys(tx *bbolt.Tx, gone map[string]bool) error {
	var rows []operation.Row
	err := tx.Bucket([]byte(gpu.RecordIdempotency)).ForEach(func(key, value []byte) error {
		r, err := decode[gpu.IdempotencyRecord](value, false)
		if err != nil {
			return fmt.Errorf("idempotency key %q: %w", key, err)
		}
		if gone[r.Operation] {
			rows = append(rows, operation.Delete(gpu.RecordIdempotency, r.Key))
		}
		return nil
	})
	if err == nil {
		_, err = apply(tx, rows)
	}
	return err
}

// DeleteOperations removes operations from the record, and the idempotency keys
// that led to them. One that holds keys refuses them all; ids that are not there
// are fine.
func (s *Store) DeleteOperations(ids []string) error {
	err := s.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(operationBucket))
		gone := map[string]bool{}
		for _, id := range ids {
			switch op, err := getOperation(tx, id); {
			case errors.Is(err, operation.ErrNotFound):
				continue
			case err != nil:
				return fmt.Errorf("%q: %w", id, err)
			case op.Holds():
				return fmt.Errorf("%q is %s and holds its keys", id, op.Status)
			}
			if err := b.Delete([]byte(id)); err != nil {
				return err
			}
			gone[id] = true
		}
		if len(gone) == 0 {
			return errNoChange
		}
		return forgetKeys(tx, gone)
	})
	if err != nil {
		return fmt.Errorf("cannot delete operations: %w", err)
	}
	return nil
}
