package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// sample makes a store of many pages, with free ones and a bucket of several
// levels, and returns its file's bytes and how many partitions it has.
func sample(t *testing.T) (data []byte, partitions int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := Open(t.Context(), path, Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		var rows []operation.Row
		for j := range 20 {
			rows = append(rows, partition(fmt.Sprintf("p%02d%02d", i, j), "g"))
		}
		rows = append(rows, assignment(fmt.Sprint("a", i), strings.Repeat("long", 1500)))
		if i > 0 {
			rows = append(rows, operation.Delete(gpu.RecordAssignment, fmt.Sprint("a", i-1)))
		}
		if err := s.Apply(rows...); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return []byte(contents(t, path)), 400
}

// reopen puts data in a store's place and opens it. The store must be refused as
// damaged, and left as it is, or have everything that was written up to some moment.
func reopen(t interface {
	Fatalf(string, ...any)
}, path string, data []byte, partitions int,
) (opened bool) {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatalf("%v", err)
	}
	s, err := Open(context.Background(), path, Options{NoSync: true})
	if err != nil {
		_, damaged := errors.AsType[*DamagedError](err)
		after, readErr := os.ReadFile(path)
		if !damaged || readErr != nil || !bytes.Equal(after, data) {
			t.Fatalf("refused with %v, file unchanged: %v (%v)", err, bytes.Equal(after, data), readErr)
		}
		return false
	}
	records, err := s.PartitionRecords()
	if err != nil || partitions >= 0 && len(records) != partitions || len(records)%20 != 0 {
		t.Fatalf("opened with %d of %d records: %v", len(records), partitions, err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("%v", err)
	}
	return true
}

// T03: a store that was cut short is refused and left alone, wherever it was cut.
func TestTruncatedT03(t *testing.T) {
	t.Parallel()
	data, partitions := sample(t)
	path := filepath.Join(t.TempDir(), "store.db")
	page := os.Getpagesize()
	var cuts []int
	for at := 0; at < len(data); at += page {
		cuts = append(cuts, at, at+1, at+16, at+80, at+page/2, at+page-1)
	}
	refused := 0
	for _, cut := range append(cuts, len(data)) {
		if !reopen(t, path, data[:min(cut, len(data))], partitions) {
			refused++
		}
	}
	t.Logf("%d cuts of %d pages: %d refused, the others cut what is not in use", len(cuts), len(data)/page, refused)
	if refused < len(cuts)/2 || !reopen(t, path, data, partitions) {
		t.Error("too few were refused")
	}
}

// T03: pages that did not reach the disk, as zeros or as what was there before.
func TestTornT03(t *testing.T) {
	t.Parallel()
	data, _ := sample(t)
	path := filepath.Join(t.TempDir(), "store.db")
	page := os.Getpagesize()
	refused, pages := 0, len(data)/page
	for i := range pages {
		for _, torn := range [][]byte{make([]byte, page), data[(i+3)%pages*page:][:page]} {
			bad := bytes.Clone(data)
			copy(bad[i*page:], torn)
			// A lost newest meta page is the moment before the last write.
			if !reopen(t, path, bad, -1) {
				refused++
			}
		}
	}
	t.Logf("%d of %d torn pages refused, the others are not in use", refused, 2*pages)
}

// T03: whatever bytes turn, opening neither panics nor changes the file nor has
// less than all records. What turns inside a record may be told apart only where it
// does not read as one.
func TestGarbledT03(t *testing.T) {
	t.Parallel()
	data, _ := sample(t)
	path := filepath.Join(t.TempDir(), "store.db")
	opened, n := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		bad := bytes.Clone(data)
		for range rapid.IntRange(1, 8).Draw(t, "bytes") {
			// Most of what matters is at the beginning of a page.
			at := rapid.IntRange(0, len(bad)/os.Getpagesize()-1).Draw(t, "page") * os.Getpagesize()
			at += rapid.OneOf(rapid.IntRange(0, 80), rapid.IntRange(0, os.Getpagesize()-1)).Draw(t, "at")
			bad[at] ^= rapid.ByteRange(1, 255).Draw(t, "bits")
		}
		n++
		if reopen(t, path, bad, -1) {
			opened++
		}
	})
	t.Logf("%d garbled, %d opened", n, opened)
}

// T03: what is no store at all, an empty file above all, is not made into one.
func TestNoStoreT03(t *testing.T) {
	for name, data := range map[string]string{
		"empty": "", "text": "hello", "zeros": strings.Repeat("\x00", 1<<16), "ones": strings.Repeat("\xff", 1<<16),
	} {
		if reopen(t, filepath.Join(t.TempDir(), "store.db"), []byte(data), 0) {
			t.Errorf("opened %s", name)
		}
	}
}

// T03: records and indexes that do not belong together are no store either.
func TestInconsistentT03(t *testing.T) {
	for name, harm := range map[string]func(*bbolt.Tx) error{
		"bucket missing": func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(keyBucket)) },
		"no JSON":        func(tx *bbolt.Tx) error { return tx.Bucket([]byte(gpu.RecordGPU)).Put([]byte("g"), []byte("{")) },
		"of another":     func(tx *bbolt.Tx) error { return tx.Bucket([]byte(gpu.RecordGPU)).Put([]byte("g"), []byte("{}")) },
		"index lacks":    func(tx *bbolt.Tx) error { return tx.Bucket([]byte(byVMIndex)).Delete([]byte("vm1\x00web1")) },
		"index too many": func(tx *bbolt.Tx) error { return tx.Bucket([]byte(byGPUIndex)).Put([]byte("g\x00p"), nil) },
		"key of nobody":  func(tx *bbolt.Tx) error { return tx.Bucket([]byte(keyBucket)).Put([]byte("gpu/0"), []byte("op")) },
		"key free":       func(tx *bbolt.Tx) error { return tx.Bucket([]byte(keyBucket)).Delete([]byte("gpu/1")) },
		"operation":      func(tx *bbolt.Tx) error { return tx.Bucket([]byte(operationBucket)).Put([]byte("x"), []byte("{}")) },
		"no schema":      func(tx *bbolt.Tx) error { return tx.Bucket([]byte(metaBucket)).Delete([]byte(schemaKey)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			s, err := Open(t.Context(), path, Options{NoSync: true})
			if err != nil {
				t.Fatal(err)
			}
			op := operation.Operation{ID: "op1", Status: operation.Running, Keys: []string{"gpu/1"}}
			if err := errors.Join(s.Apply(assignment("web1", "vm1")), s.AddOperation(op, nil), s.update(harm), s.Close()); err != nil {
				t.Fatal(err)
			}
			if reopen(t, path, []byte(contents(t, path)), 0) {
				t.Error("opened")
			}
		})
	}
}

// T03: on a full disk a write fails whole, everything written before is there, and
// writing goes on when there is room again.
func TestDiskFullT03(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("cannot fill a disk: mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "store.db")
	s, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var written int
	for ; err == nil && written < 1000; written++ {
		row := operation.Put(gpu.RecordPartition, fmt.Sprintf("p%03d", written), gpu.PartitionRecord{ID: fmt.Sprintf("p%03d", written), Profile: strings.Repeat("x", 4000)})
		op := operation.Operation{ID: fmt.Sprintf("op%03d", written), Status: operation.Done}
		err = s.AddOperation(op, []operation.Row{row})
	}
	written--
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("after %d writes: %v", written, err)
	}
	check := func(s *Store) {
		t.Helper()
		records, err1 := s.PartitionRecords()
		ops, err2 := s.Operations()
		if err := errors.Join(err1, err2, s.Check()); err != nil || len(records) != written || len(ops) != written {
			t.Errorf("%d partitions, %d operations of %d: %v", len(records), len(ops), written, err)
		}
	}
	check(s)
	if _, err := s.Backup(t.Context(), &bytes.Buffer{}); err == nil {
		t.Error("backup found room")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), path, Options{}); err != nil {
		t.Fatal(err)
	}
	check(s)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Apply(partition("new", "g")), s.Check(), s.Close()); err != nil {
		t.Error(err)
	}
	t.Logf("%d writes until the disk was full", written)
}

// A disk that is full when the store is made leaves nothing behind.
func TestDiskFullAtCreateT03(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Skipf("cannot fill a disk: mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if _, err := Open(t.Context(), filepath.Join(dir, "store.db"), Options{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("open: %v", err)
	}
	if names, err := fs.Glob(os.DirFS(dir), "*"); err != nil || len(names) != 0 {
		t.Errorf("left behind: %q, %v", names, err)
	}
}

// A write that the kernel could not bring to the disk may be lost although it reads
// back: nothing more is written. One that was not even written has changed nothing.
func TestUnsynced(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{syscall.EIO, true},
		{syscall.ENOSPC, true},
		{&fs.PathError{Op: "write", Path: "store.db", Err: syscall.ENOSPC}, false},
		{errors.New("file resize error"), false},
	} {
		if got := unsynced(test.err); got != test.want {
			t.Errorf("%v: %v", test.err, got)
		}
	}
	s := newTest(t)
	s.broken.Store(true)
	if err := s.Apply(partition("p", "g")); err == nil || s.Writes() != 0 {
		t.Errorf("wrote after a lost write: %v", err)
	}
}
