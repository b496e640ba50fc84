package store

import (
	"bytes"
	"fmt"

	"go.etcd.io/bbolt"

	"gpuvirt/gpu"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// GPURecords returns the records of all GPUs, sorted by id.
func (s *Store) GPURecords() ([]gpu.GPURecord, error) { return all[gpu.GPURecord](s, gpu.RecordGPU) }

// GPURecord returns one; without one the error has gpu.CodeNotFound.
func (s *Store) GPURecord(id gpu.ID) (gpu.GPURecord, error) {
	return one[gpu.GPURecord](s, gpu.RecordGPU, string(id))
}

// PartitionRecords returns the records of all partitions, sorted by id.
func (s *Store) PartitionRecords() ([]gpu.PartitionRecord, error) {
	return all[gpu.PartitionRecord](s, gpu.RecordPartition)
}

// PartitionRecord returns one; without one the error has gpu.CodeNotFound.
func (s *Store) PartitionRecord(id string) (gpu.PartitionRecord, error) {
	return one[gpu.PartitionRecord](s, gpu.RecordPartition, id)
}

// PartitionRecordsOf returns the records of a GPU's partitions, sorted by id.
func (s *Store) PartitionRecordsOf(id gpu.ID) ([]gpu.PartitionRecord, error) {
	return indexed[gpu.PartitionRecord](s, gpu.RecordPartition, byGPUIndex, string(id))
}

// AssignmentRecords returns the records of all assignments, sorted by name.
func (s *Store) AssignmentRecords() ([]gpu.AssignmentRecord, error) {
	return all[gpu.AssignmentRecord](s, gpu.RecordAssignment)
}

// AssignmentRecord returns one; without one the error has gpu.CodeNotFound.
func (s *Store) AssignmentRecord(name string) (gpu.AssignmentRecord, error) {
	return one[gpu.AssignmentRecord](s, gpu.RecordAssignment, name)
}

// AssignmentRecordsOf returns the records of a VM's assignments, sorted by name.
func (s *Store) AssignmentRecordsOf(vmUUID string) ([]gpu.AssignmentRecord, error) {
	return indexed[gpu.AssignmentRecord](s, gpu.RecordAssignment, byVMIndex, vmUUID)
}

// IdempotencyRecords returns the records of all idempotency keys, sorted by key.
func (s *Store) IdempotencyRecords() ([]gpu.IdempotencyRecord, error) {
	return all[gpu.IdempotencyRecord](s, gpu.RecordIdempotency)
}

// IdempotencyRecord returns one; without one the error has gpu.CodeNotFound.
func (s *Store) IdempotencyRecord(key string) (gpu.IdempotencyRecord, error) {
	return one[gpu.IdempotencyRecord](s, gpu.RecordIdempotency, key)
}

// TokenRecords returns the records of all tokens, sorted by id.
func (s *Store) TokenRecords() ([]gpu.TokenRecord, error) {
	return all[gpu.TokenRecord](s, gpu.RecordToken)
}

// AssessmentRecords returns the records of all assessments, sorted by name.
func (s *Store) AssessmentRecords() ([]report.AssessmentRecord, error) {
	return all[report.AssessmentRecord](s, report.RecordAssessment)
}

// AssessmentRecord returns one; without one the error has gpu.CodeNotFound.
func (s *Store) AssessmentRecord(name string) (report.AssessmentRecord, error) {
	return one[report.AssessmentRecord](s, report.RecordAssessment, name)
}

// MigrationRecords returns the records of all moves, sorted by name.
func (s *Store) MigrationRecords() ([]move.Record, error) {
	return all[move.Record](s, move.RecordMigration)
}

// MigrationRecord returns one; without one the error has gpu.CodeNotFound.
func (s *Store) MigrationRecord(name string) (move.Record, error) {
	return one[move.Record](s, move.RecordMigration, name)
}

// all reads the records of a kind. One that cannot be read fails them all: a list
// that lacks what it cannot read would have things look free.
func all[T any](s *Store, kind string) ([]T, error) {
	records := []T{}
	err := s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(kind)).ForEach(func(key, value []byte) error {
			r, err := decode[T](value, false)
			if err != nil {
				return fmt.Errorf("%q: %w", key, err)
			}
			records = append(records, r)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read %s records: %w", kind, err)
	}
	return records, nil
}

func one[T any](s *Store, kind, key string) (r T, err error) {
	err = s.view(func(tx *bbolt.Tx) (err error) {
		r, err = get[T](tx, kind, key)
		return err
	})
	return r, err
}

func get[T any](tx *bbolt.Tx, kind, key string) (T, error) {
	value := tx.Bucket([]byte(kind)).Get([]byte(key))
	if value == nil {
		var none T
		return none, gpu.Errorf(gpu.CodeNotFound, "cannot find %s %q: there is no record of it", kind, key)
	}
	r, err := decode[T](value, false)
	if err != nil {
		return r, fmt.Errorf("cannot read %s record %q: %w", kind, key, err)
	}
	return r, nil
}

// indexed reads the records that an index has under what.
func indexed[T any](s *Store, kind, index, what string) ([]T, error) {
	records := []T{}
	err := s.view(func(tx *bbolt.Tx) error {
		prefix := []byte(indexKey(what, ""))
		c := tx.Bucket([]byte(index)).Cursor()
		for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = c.Next() {
			r, err := get[T](tx, kind, string(key[len(prefix):]))
			if err != nil {
				return err
			}
			records = append(records, r)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read %s records of %q: %w", kind, what, err)
	}
	return records, nil
}
