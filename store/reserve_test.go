package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// Every page has its place on the disk before it is used, and what is reserved is
// no part of the store.
func TestReserve(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	open := func() *Store {
		t.Helper()
		s, err := Open(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	written := func(least int64) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		stat, _ := info.Sys().(*syscall.Stat_t)
		if info.Size() < least || stat.Blocks*512 < info.Size() {
			t.Errorf("the file has %d bytes, %d of them on the disk; want at least %d, all", info.Size(), stat.Blocks*512, least)
		}
	}
	long := func(id string) operation.Row {
		return operation.Put(gpu.RecordPartition, id, gpu.PartitionRecord{ID: id, Profile: strings.Repeat("p", 128<<10)})
	}
	s := open()
	written(reserveStep)
	for i := range 2 * reserveStep / (128 << 10) {
		if err := s.Apply(long(fmt.Sprint("p", i))); err != nil {
			t.Fatal(err)
		}
	}
	written(2 * reserveStep)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	if records, err := s.PartitionRecords(); err != nil || len(records) != 2*reserveStep/(128<<10) {
		t.Errorf("%d records, %v", len(records), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A disk that has no room for a reserve may have room for a write.
func TestReserveWithoutRoom(t *testing.T) {
	s := newTest(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	s.spare.file = full
	for _, name := range []string{"a", "b"} {
		if err := s.Apply(assignment(name, "v")); err != nil {
			t.Error(err)
		}
	}
}

// Where the disk loses what was written, nothing is built on it, as after a commit.
func TestReserveThatCannotBeSynced(t *testing.T) {
	s := newTest(t)
	null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0) // takes everything and has no fsync
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	s.spare.file = null
	for _, want := range []string{"cannot sync", "an earlier write may be lost"} {
		if err := s.Apply(partition("a", "g")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want … %s …", err, want)
		}
	}
}
