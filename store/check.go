package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/bbolt"

	"gpuvirt/operation"
)

// Check reads every record and compares the indexes and keys with what the records
// say. It returns all that is wrong.
func (s *Store) Check() error {
	return s.view(func(tx *bbolt.Tx) error {
		for _, name := range buckets() {
			if tx.Bucket([]byte(name)) == nil {
				return fmt.Errorf("bucket %q is missing", name)
			}
		}
		want := map[entry]string{} // index entries and keys to their values
		errs := append(checkRecords(tx, want), checkOperations(tx, want)...)
		return errors.Join(append(errs, checkIndexes(tx, want)...)...)
	})
}

// checkRecords reads the records and notes what the indexes should have.
func checkRecords(tx *bbolt.Tx, want map[entry]string) (errs []error) {
	known := kinds()
	for _, name := range slices.Sorted(maps.Keys(known)) {
		_ = tx.Bucket([]byte(name)).ForEach(func(key, value []byte) error {
			id, entries, err := known[name](value, false)
			switch {
			case err != nil:
				errs = append(errs, fmt.Errorf("%s record %q: %w", name, key, err))
			case id != string(key):
				errs = append(errs, fmt.Errorf("%s record %q is of %q", name, key, id))
			}
			for _, e := range entries {
				want[e] = ""
			}
			return nil
		})
	}
	return errs
}

func checkOperations(tx *bbolt.Tx, want map[entry]string) (errs []error) {
	_ = tx.Bucket([]byte(operationBucket)).ForEach(func(id, value []byte) error {
		op, err := decode[operation.Operation](value, false)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("operation %q: %w", id, err))
		case op.ID != string(id):
			errs = append(errs, fmt.Errorf("operation %q is %q", id, op.ID))
		case op.Holds():
			want[entry{unfinishedName, op.ID}] = ""
			for _, key := range op.Keys {
				if other, held := want[entry{keyBucket, key}]; held && other != op.ID {
					errs = append(errs, fmt.Errorf("key %q is of operations %q and %q", key, other, op.ID))
				}
				want[entry{keyBucket, key}] = op.ID
			}
		}
		return nil
	})
	return errs
}

// checkIndexes compares what the indexes have with what they should have.
func checkIndexes(tx *bbolt.Tx, want map[entry]string) (errs []error) {
	for _, name := range []string{byVMIndex, byGPUIndex, unfinishedName, keyBucket} {
		_ = tx.Bucket([]byte(name)).ForEach(func(key, value []byte) error {
			e := entry{name, string(key)}
			if holder, ok := want[e]; !ok || holder != string(value) {
				errs = append(errs, fmt.Errorf("%s has %q with %q, which no record says", name, key, value))
			}
			delete(want, e)
			return nil
		})
	}
	for e := range want {
		errs = append(errs, fmt.Errorf("%s lacks %q", e.index, e.key))
	}
	return errs
}
