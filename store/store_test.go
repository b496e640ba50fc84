package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// openTest opens the store at path until the test ends.
func openTest(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path, Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newTest(t *testing.T) *Store {
	t.Helper()
	return openTest(t, filepath.Join(t.TempDir(), "store.db"))
}

func partition(id string, on gpu.ID) operation.Row {
	return operation.Put(gpu.RecordPartition, id, gpu.PartitionRecord{ID: id, GPU: on, Profile: "1g.10gb", State: gpu.PartitionMade})
}

func assignment(name, vm string) operation.Row {
	return operation.Put(gpu.RecordAssignment, name, gpu.AssignmentRecord{Name: name, Wish: gpu.Wish{VM: vm}})
}

func TestOpenCreates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "gpuvirt")
	path := filepath.Join(dir, "store.db")
	s := openTest(t, path)
	for name, want := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, path: 0o600} {
		info, err := os.Stat(name)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: mode %s, want %s (%v)", name, info.Mode(), want, err)
		}
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(names) != 1 {
		t.Errorf("left behind: %q, %v", names, err)
	}
	if s.Writes() != 0 {
		t.Errorf("opening counts as %d writes", s.Writes())
	}
}

// Many start at once where there is no store yet: all get the same one, in turn.
func TestOpenRace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			s, err := Open(t.Context(), path, Options{Timeout: time.Minute, NoSync: true})
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(s.Apply(partition(fmt.Sprint("p", i), "g")), s.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := openTest(t, path).PartitionRecords(); err != nil || len(got) != 8 {
		t.Errorf("%d records, %v", len(got), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	held := filepath.Join(dir, "held.db")
	openTest(t, held)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	foreign := filepath.Join(dir, "foreign.db")
	db, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path string
		ctx        context.Context
		o          Options
		want       string
	}{
		{"held", held, t.Context(), Options{Timeout: 60 * time.Millisecond}, fmt.Sprintf("cannot open store %q: another process holds it (is gpuvirtd running?)", held)},
		{"held, reader", held, t.Context(), Options{ReadOnly: true}, fmt.Sprintf("cannot open store %q: another process holds it (is gpuvirtd running?)", held)},
		{"canceled", held, canceled, Options{Timeout: time.Hour}, fmt.Sprintf("cannot open store %q: context canceled", held)},
		{"absent, reader", filepath.Join(dir, "no.db"), t.Context(), Options{ReadOnly: true}, fmt.Sprintf("cannot open store %q: open %[1]s: no such file or directory", filepath.Join(dir, "no.db"))},
		{"directory", dir, t.Context(), Options{ReadOnly: true}, fmt.Sprintf("cannot open store %q: it is not a regular file", dir)},
		{"foreign", foreign, t.Context(), Options{}, fmt.Sprintf("cannot open store %q: it is damaged: it is no store of gpuvirt; move it aside and put the last backup in its place (running VMs are not affected)", foreign)},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := Open(test.ctx, test.path, test.o)
			if err == nil {
				t.Fatal(s.Close())
			}
			if diff := cmp.Diff(test.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := Open(t.Context(), path, Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Apply(partition("p", "g")), s.Close()); err != nil {
		t.Fatal(err)
	}
	before := contents(t, path)
	for range 2 { // readers may be many
		r, err := Open(t.Context(), path, Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := r.PartitionRecord("p"); err != nil || got.GPU != "g" {
			t.Errorf("%+v, %v", got, err)
		}
		if err := r.Apply(partition("q", "g")); err == nil {
			t.Error("a reader wrote")
		}
	}
	if diff := cmp.Diff(before, contents(t, path)); diff != "" {
		t.Error("a reader changed the file")
	}
}

func contents(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRecords(t *testing.T) {
	s := newTest(t)
	created := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	g := gpu.GPURecord{ID: "0000:41:00.0", Managed: true, Labels: map[string]string{"rack": "7"}, Identity: gpu.Identity{Serial: "1"}}
	p := gpu.PartitionRecord{ID: "p1", GPU: g.ID, Kind: gpu.KindMdev, Handle: gpu.Handle{MdevUUID: "p1"}, Created: created}
	a := gpu.AssignmentRecord{Name: "web1", Wish: gpu.Wish{VM: "vm1", Profile: "small"}, Generation: 3, Created: created}
	i := gpu.IdempotencyRecord{Key: "k", Request: "digest", Operation: "op", Created: created}
	rows := []operation.Row{
		operation.Put(gpu.RecordGPU, "0000:41:00.0", g), operation.Put(gpu.RecordPartition, "p1", p),
		operation.Put(gpu.RecordAssignment, "web1", a), operation.Put(gpu.RecordIdempotency, "k", i),
	}
	for range 2 { // the same again writes nothing
		if err := s.Apply(rows...); err != nil {
			t.Fatal(err)
		}
	}
	if s.Writes() != 1 {
		t.Errorf("%d writes, want 1", s.Writes())
	}
	check := func(name string, got any, err error, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	gs, err := s.GPURecords()
	check("GPURecords", gs, err, []gpu.GPURecord{g})
	g1, err := s.GPURecord(g.ID)
	check("GPURecord", g1, err, g)
	ps, err := s.PartitionRecords()
	check("PartitionRecords", ps, err, []gpu.PartitionRecord{p})
	p1, err := s.PartitionRecord("p1")
	check("PartitionRecord", p1, err, p)
	ps, err = s.PartitionRecordsOf(g.ID)
	check("PartitionRecordsOf", ps, err, []gpu.PartitionRecord{p})
	ps, err = s.PartitionRecordsOf("0000:41:00")
	check("PartitionRecordsOf prefix", ps, err, []gpu.PartitionRecord{})
	as, err := s.AssignmentRecords()
	check("AssignmentRecords", as, err, []gpu.AssignmentRecord{a})
	a1, err := s.AssignmentRecord("web1")
	check("AssignmentRecord", a1, err, a)
	as, err = s.AssignmentRecordsOf("vm1")
	check("AssignmentRecordsOf", as, err, []gpu.AssignmentRecord{a})
	is, err := s.IdempotencyRecords()
	check("IdempotencyRecords", is, err, []gpu.IdempotencyRecord{i})
	i1, err := s.IdempotencyRecord("k")
	check("IdempotencyRecord", i1, err, i)

	a.Wish.VM = "vm2" // moves in the index
	if err := s.Apply(operation.Put(gpu.RecordAssignment, "web1", a), operation.Delete(gpu.RecordPartition, "p1"), operation.Delete(gpu.RecordGPU, "none")); err != nil {
		t.Fatal(err)
	}
	as, err = s.AssignmentRecordsOf("vm1")
	check("AssignmentRecordsOf old", as, err, []gpu.AssignmentRecord{})
	as, err = s.AssignmentRecordsOf("vm2")
	check("AssignmentRecordsOf new", as, err, []gpu.AssignmentRecord{a})
	ps, err = s.PartitionRecordsOf(g.ID)
	check("PartitionRecordsOf none", ps, err, []gpu.PartitionRecord{})
	if _, err := s.PartitionRecord("p1"); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Errorf("deleted: %v", err)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// One row that is not understood refuses the whole transaction.
func TestBadRows(t *testing.T) {
	s := newTest(t)
	good := partition("p", "g")
	for name, bad := range map[string]operation.Row{
		"unknown kind":   operation.Put("widget", "w", 1),
		"operation":      operation.Put("operation", "o", operation.Operation{ID: "o"}),
		"no JSON":        {Kind: gpu.RecordPartition, Key: "q", Value: []byte(`{"id":`)},
		"two values":     {Kind: gpu.RecordPartition, Key: "q", Value: []byte(`{"id":"q"}{}`)},
		"unknown field":  {Kind: gpu.RecordPartition, Key: "q", Value: []byte(`{"id":"q","colour":1}`)},
		"wrong type":     operation.Put(gpu.RecordGPU, "q", gpu.AssignmentRecord{Name: "q"}),
		"of another":     operation.Put(gpu.RecordPartition, "q", gpu.PartitionRecord{ID: "r"}),
		"empty key":      operation.Delete(gpu.RecordPartition, ""),
		"NUL in key":     partition("p\x00q", "g"),
		"null":           {Kind: gpu.RecordPartition, Key: "q", Value: []byte(`null`)},
		"too long a key": partition(strings.Repeat("x", 40000), "g"),
	} {
		t.Run(name, func(t *testing.T) {
			if err := s.Apply(good, bad); err == nil {
				t.Error("Apply took it")
			}
			op := operation.Operation{ID: "op", Status: operation.Running, Keys: []string{"gpu/0"}}
			if err := s.AddOperation(op, []operation.Row{good, bad}); err == nil {
				t.Error("AddOperation took it")
			}
			if got, err := s.PartitionRecords(); err != nil || len(got) != 0 {
				t.Errorf("left behind: %+v, %v", got, err)
			}
			if ops, err := s.Operations(); err != nil || len(ops) != 0 || s.Writes() != 0 {
				t.Errorf("left behind: %+v, %v, %d writes", ops, err, s.Writes())
			}
		})
	}
}

func TestOperations(t *testing.T) {
	s := newTest(t)
	first := operation.Operation{ID: "op1", Summary: "attach", Status: operation.Running, Keys: []string{"gpu/0", "vm/1"}}
	if err := s.AddOperation(first, []operation.Row{partition("p", "g")}); err != nil {
		t.Fatal(err)
	}
	second := operation.Operation{ID: "op2", Status: operation.Running, Keys: []string{"vm/2", "gpu/0"}}
	refused := func(op operation.Operation) {
		t.Helper()
		err := s.AddOperation(op, []operation.Row{partition("q", "g")})
		conflict, _ := errors.AsType[*operation.ConflictError](err)
		if diff := cmp.Diff(&operation.ConflictError{Key: "gpu/0", Holder: "op1", Summary: "attach"}, conflict); diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	refused(second)
	over := second
	over.Status = operation.Done // even one that holds nothing
	refused(over)
	if err := s.AddOperation(first, nil); err == nil {
		t.Error("added twice")
	}
	if err := s.SaveOperation(second, nil); !errors.Is(err, operation.ErrNotFound) {
		t.Errorf("saved without having been added: %v", err)
	}
	if _, err := s.Operation("op2"); !errors.Is(err, operation.ErrNotFound) {
		t.Errorf("found: %v", err)
	}
	if err := s.DeleteOperations([]string{"op1"}); err == nil {
		t.Error("deleted one that holds keys")
	}
	first.Status = operation.Failed
	if err := s.SaveOperation(first, nil); err != nil {
		t.Fatal(err)
	}
	refused(second) // failed: keys are held
	if ops, err := s.UnfinishedOperations(); err != nil || len(ops) != 1 || ops[0].ID != "op1" {
		t.Errorf("unfinished: %+v, %v", ops, err)
	}
	first.Forgot = true
	if err := s.SaveOperation(first, []operation.Row{operation.Delete(gpu.RecordPartition, "p")}); err != nil {
		t.Fatal(err)
	}
	if ops, err := s.UnfinishedOperations(); err != nil || len(ops) != 0 {
		t.Errorf("unfinished: %+v, %v", ops, err)
	}
	if err := s.AddOperation(second, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.SaveOperation(first, nil); err != nil { // holds nothing, so takes nothing
		t.Fatal(err)
	}
	got, err := s.Operations()
	if diff := cmp.Diff([]operation.Operation{first, second}, got); diff != "" || err != nil {
		t.Errorf("operations: %v (-want +got):\n%s", err, diff)
	}
	writes := s.Writes()
	if err := s.DeleteOperations([]string{"op0"}); err != nil || s.Writes() != writes {
		t.Errorf("deleting nothing: %v, %d writes", err, s.Writes()-writes)
	}
	for key, op := range map[string]string{"k1": "op1", "k2": "op2"} {
		if err := s.Apply(operation.Put(gpu.RecordIdempotency, key, gpu.IdempotencyRecord{Key: key, Operation: op})); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeleteOperations([]string{"op1", "op0"}); err != nil {
		t.Fatal(err)
	}
	if keys, err := s.IdempotencyRecords(); err != nil || len(keys) != 1 || keys[0].Key != "k2" {
		t.Errorf("keys of operations that are gone must go, others stay: %+v, %v", keys, err)
	}
	if ops, err := s.Operations(); err != nil || len(ops) != 1 {
		t.Errorf("operations: %+v, %v", ops, err)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// Whoever opens the store again finds all that was written.
func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	op := operation.Operation{ID: "op", Status: operation.Running, Keys: []string{"gpu/0"}}
	if err := errors.Join(s.Apply(assignment("web1", "vm1")), s.AddOperation(op, nil), s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(assignment("web2", "vm1")); !errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		t.Errorf("write after close: %v", err)
	}
	if _, err := s.Operations(); !errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		t.Errorf("read after close: %v", err)
	}
	s = openTest(t, path)
	if got, err := s.AssignmentRecordsOf("vm1"); err != nil || len(got) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := s.Operation("op"); err != nil || got.Status != operation.Running {
		t.Errorf("%+v, %v", got, err)
	}
}
