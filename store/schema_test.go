package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/report"
)

// rename is a migration that gives every assignment's VM another name, as a real
// one might.
func rename(from, to string) migration {
	return func(tx *bbolt.Tx) error {
		_, err := apply(tx, []operation.Row{assignment("web1", to)})
		if tx.Bucket([]byte(byVMIndex)).Get([]byte(from+"\x00web1")) != nil {
			return errors.Join(err, fmt.Errorf("%s is still there", from))
		}
		return err
	}
}

func TestMigrate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	steps := []migration{rename("vm1", "vm2"), rename("vm2", "vm3"), rename("vm3", "vm4")}
	vm := func(want string, steps ...migration) {
		t.Helper()
		s, err := open(t.Context(), path, Options{NoSync: true}, steps)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.AssignmentRecord("web1"); err != nil || got.Wish.VM != want {
			t.Errorf("VM is %q, want %q (%v)", got.Wish.VM, want, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	s, err := open(t.Context(), path, Options{NoSync: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Apply(assignment("web1", "vm1")), s.Close()); err != nil {
		t.Fatal(err)
	}
	first := contents(t, path)

	vm("vm1")               // schema 1: nothing to do
	vm("vm2", steps[:1]...) // to 2
	if contents(t, path+".v1.bak") != first {
		t.Error("the copy is not what the store was")
	}
	if info, err := os.Stat(path + ".v1.bak"); err != nil || info.Mode() != 0o600 {
		t.Errorf("copy: %v, %v", info.Mode(), err)
	}
	second := contents(t, path)
	vm("vm2", steps[:1]...) // again: nothing to do
	if contents(t, path) != second {
		t.Error("opening a store of our schema changed it")
	}

	// A migration that fails changes nothing.
	broken := errors.New("out of order")
	if _, err := open(t.Context(), path, Options{NoSync: true}, []migration{steps[0], steps[1], func(*bbolt.Tx) error { return broken }}); !errors.Is(err, broken) {
		t.Errorf("broken migration: %v", err)
	}
	vm("vm2", steps[:1]...)
	vm("vm4", steps...) // two at once
	if _, err := os.Stat(path + ".v2.bak"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path + ".v3.bak"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("copy of a schema that was never on disk: %v", err)
	}
	// A store that is made new needs none.
	fresh := filepath.Join(t.TempDir(), "store.db")
	if s, err = open(t.Context(), fresh, Options{NoSync: true}, steps); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A store of before there were tokens gets room for them, and keeps what it has.
func TestMigrateToTokens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := open(t.Context(), path, Options{NoSync: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	drop := s.db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(gpu.RecordToken)) })
	if err := errors.Join(s.Apply(assignment("web1", "vm1")), drop, s.Close()); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, path)
	token := gpu.TokenRecord{Token: gpu.Token{ID: "t", Name: "ci", Role: "viewer"}, Hash: "00"}
	if err := s.Apply(operation.Put(gpu.RecordToken, "t", token)); err != nil {
		t.Fatal(err)
	}
	if got, err := s.TokenRecords(); err != nil || !cmp.Equal(got, []gpu.TokenRecord{token}) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := s.AssignmentRecord("web1"); err != nil || got.Wish.VM != "vm1" {
		t.Errorf("%+v, %v", got, err)
	}
}

// A newer store, or an older one that may not be written, is refused and not
// changed.
func TestSchemaRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	next := append(migrations(), func(*bbolt.Tx) error { return nil })
	ours := schemaOf(migrations())
	s, err := open(t.Context(), path, Options{NoSync: true}, next)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before := contents(t, path)
	for _, o := range []Options{{}, {ReadOnly: true}} {
		_, err = Open(t.Context(), path, o)
		want := &NewerError{Path: path, Found: ours + 1, Ours: ours}
		got, _ := errors.AsType[*NewerError](err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	text := fmt.Sprintf("cannot open store %q: its schema is %d, and this version knows none newer than %d: install the newer version again, or put %q back",
		path, ours+1, ours, fmt.Sprintf("%s.v%d.bak", path, ours))
	if diff := cmp.Diff(text, err.Error()); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	if _, err := open(t.Context(), path, Options{ReadOnly: true}, append(next, next...)); err == nil {
		t.Error("a reader opened an old store")
	}
	if contents(t, path) != before {
		t.Error("the file was changed")
	}
}

// A backup taken while the store is written is a store of one moment.
func TestBackup(t *testing.T) {
	s := newTest(t)
	for i := range 100 {
		if err := s.Apply(partition(fmt.Sprint("p", i), "g"), assignment(fmt.Sprint("a", i), "vm")); err != nil {
			t.Fatal(err)
		}
	}
	var copied bytes.Buffer
	n, err := s.Backup(t.Context(), writerFunc(func(p []byte) (int, error) {
		// The client is slow: meanwhile the store is written.
		if err := s.Apply(partition(fmt.Sprint("late", copied.Len()), "g")); err != nil {
			t.Error(err)
		}
		return copied.Write(p)
	}))
	if err != nil || n != int64(copied.Len()) {
		t.Fatalf("%d bytes of %d: %v", n, copied.Len(), err)
	}
	path := filepath.Join(t.TempDir(), "store.db")
	if err := os.WriteFile(path, copied.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	restored := openTest(t, path)
	ps, err1 := restored.PartitionRecords()
	as, err2 := restored.AssignmentRecords()
	if err := errors.Join(err1, err2); err != nil || len(ps) != 100 || len(as) != 100 {
		t.Errorf("%d partitions, %d assignments, %v", len(ps), len(as), err)
	}
	if names, err := os.ReadDir(filepath.Dir(s.Path())); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestBackupFails(t *testing.T) {
	s := newTest(t)
	gone := errors.New("client is gone")
	if _, err := s.Backup(t.Context(), writerFunc(func([]byte) (int, error) { return 0, gone })); !errors.Is(err, gone) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Backup(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Whatever the bytes of a record: strict decoding accepts nothing that plain
// decoding does not, and what it accepts reads the same after being written anew.
func FuzzRecord(f *testing.F) {
	for _, row := range []operation.Row{
		partition("p", "g"), assignment("web1", "vm1"),
		operation.Put(gpu.RecordGPU, "g", gpu.GPURecord{ID: "g", Labels: map[string]string{"a": "b"}}),
		operation.Put(gpu.RecordIdempotency, "k", gpu.IdempotencyRecord{Key: "k"}),
		operation.Put(gpu.RecordToken, "t", gpu.TokenRecord{Token: gpu.Token{ID: "t"}}),
		{Value: []byte(`null`)},
		{Value: []byte(`{"id":"p"}{"id":"q"}`)},
		{Value: []byte(`{"id":1}`)},
		{Value: []byte(`{"id":"p","created":"yesterday"}`)},
	} {
		f.Add([]byte(row.Value))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		for name, k := range kinds() {
			id, entries, err := k(value, true)
			if err != nil {
				continue
			}
			again, same, err := k(value, false)
			if err != nil || again != id || !cmp.Equal(same, entries, cmp.AllowUnexported(entry{})) {
				t.Errorf("%s: strictly %q %v, else %q %v (%v)", name, id, entries, again, same, err)
			}
		}
	})
}

// Whatever the bytes of a file: reading it through ends, and does not panic.
func FuzzVerify(f *testing.F) {
	path := filepath.Join(f.TempDir(), "store.db")
	s, err := Open(f.Context(), path, Options{NoSync: true})
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(s.Apply(partition("p", "g")), s.Close()); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[:len(data)/2])
	f.Add(data[:8192])
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, data []byte) {
		_ = verify(bytes.NewReader(data), int64(len(data)))
	})
}

// A store of schema 2 has no room for assessments, and gets it.
func TestMigrateToAssessments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := open(t.Context(), path, Options{NoSync: true}, migrations()[:1])
	if err != nil {
		t.Fatal(err)
	}
	err = s.update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(report.RecordAssessment)) })
	if err := errors.Join(err, s.Apply(assignment("web1", "vm1")), s.Close()); err != nil {
		t.Fatal(err)
	}
	want := report.AssessmentRecord{Name: "gpu7", State: report.StateDone}
	for range 2 {
		if s, err = Open(t.Context(), path, Options{NoSync: true}); err != nil {
			t.Fatal(err)
		}
		if err := s.Apply(operation.Put(report.RecordAssessment, want.Name, want)); err != nil {
			t.Fatal(err)
		}
		got, err := s.AssessmentRecord("gpu7")
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v\n%s", err, diff)
		}
		if old, err := s.AssignmentRecord("web1"); err != nil || old.Wish.VM != "vm1" {
			t.Errorf("%+v %v", old, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path + ".v2.bak"); err != nil {
		t.Error(err)
	}
}
