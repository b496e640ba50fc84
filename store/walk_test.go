package store

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/operation/operationtest"
)

// subject is the store as the walk of package operationtest wants it.
func subject(t *testing.T) operationtest.Subject {
	return operationtest.Subject{
		Open: func(dir string) (operationtest.Store, error) {
			return Open(t.Context(), filepath.Join(dir, "store.db"), Options{NoSync: true})
		},
		Row: func(key, value string) operation.Row {
			if value == "" {
				return operation.Delete(gpu.RecordAssignment, key)
			}
			return assignment(key, value)
		},
		Rows: func(s operationtest.Store) (map[string]string, error) {
			records, err := s.(*Store).AssignmentRecords()
			rows := map[string]string{}
			for _, r := range records {
				rows[r.Name] = r.Wish.VM
			}
			return rows, err
		},
		Check: func(s operationtest.Store) error { return s.(*Store).Check() },
	}
}

// T01: the process dies at every store write and every half move of hardware.
// T02: what an undo needs is stored before anything is touched.
func TestWalkT01T02(t *testing.T) {
	t.Parallel()
	operationtest.Walk(t, subject(t), 1)
}

func TestExhaustT01T02(t *testing.T) {
	t.Parallel()
	operationtest.Exhaust(t, subject(t), []string{
		"success", "do error at step 3", "abort obeyed at step 2", "abort too late at step 2",
		"wait aborted at step 2", "undo error at step 1", "undo error forgotten at step 2",
	}, nil)
}

// After any writes the indexes say what the records say, and a store that is opened
// again has the same.
func TestIndexes(t *testing.T) {
	base, n := t.TempDir(), 0
	names := rapid.SampledFrom([]string{"a", "a1", "b", "b/c", "ü"})
	rapid.Check(t, func(t *rapid.T) {
		n++
		path := filepath.Join(base, fmt.Sprint(n, ".db"))
		s, err := Open(t.Context(), path, Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		vms, gpus := map[string]string{}, map[string]gpu.ID{}
		for range rapid.IntRange(0, 12).Draw(t, "writes") {
			var rows []operation.Row
			for range rapid.IntRange(1, 3).Draw(t, "rows") {
				name, other := names.Draw(t, "name"), names.Draw(t, "other")
				switch rapid.IntRange(0, 3).Draw(t, "row") {
				case 0:
					rows = append(rows, assignment(name, other))
					vms[name] = other
				case 1:
					rows = append(rows, operation.Delete(gpu.RecordAssignment, name))
					delete(vms, name)
				case 2:
					rows = append(rows, partition(name, gpu.ID(other)))
					gpus[name] = gpu.ID(other)
				case 3:
					rows = append(rows, operation.Delete(gpu.RecordPartition, name))
					delete(gpus, name)
				}
			}
			if err := s.Apply(rows...); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(t.Context(), path, Options{NoSync: true}); err != nil { // checks
			t.Fatal(err)
		}
		defer s.Close()
		gotVMs, gotGPUs := map[string]string{}, map[string]gpu.ID{}
		for _, name := range []string{"a", "a1", "b", "b/c", "ü"} {
			as, err := s.AssignmentRecordsOf(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range as {
				gotVMs[r.Name] = name
			}
			ps, err := s.PartitionRecordsOf(gpu.ID(name))
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range ps {
				gotGPUs[r.ID] = gpu.ID(name)
			}
		}
		if diff := cmp.Diff(vms, gotVMs) + cmp.Diff(gpus, gotGPUs); diff != "" {
			t.Fatalf("by index (-want +got):\n%s", diff)
		}
	})
}
