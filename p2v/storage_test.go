package p2v

import (
	"context"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A file server that is gone holds one question, however often somebody asks, and nobody who does; once it
// is back, all is well.
func TestStorageThatDoesNotAnswer(t *testing.T) {
	folder, back, begun := t.TempDir(), make(chan struct{}), make(chan struct{}, 10)
	var asked atomic.Int32
	s := newStorage(folder, time.Millisecond)
	s.stat = func(path string) (fs.FileInfo, error) {
		asked.Add(1)
		begun <- struct{}{}
		<-back
		return os.Stat(path)
	}
	for range 3 {
		if err := s.usable(t.Context()); err == nil || !strings.HasSuffix(err.Error(), `"`+folder+`", cannot be used: it does not answer`) {
			t.Fatalf("%v", err)
		}
	}
	s.patience = time.Hour
	gone, leave := context.WithCancel(t.Context())
	leave()
	if err := s.usable(gone); err == nil {
		t.Fatal("nobody waits, and it is usable")
	}
	<-begun
	if n := asked.Load(); n != 1 {
		t.Fatalf("%d questions are under way", n)
	}
	close(back)
	if err := s.usable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.usable(t.Context()); err != nil || asked.Load() != 2 {
		t.Fatalf("after %d questions: %v", asked.Load(), err)
	}
}
