//go:build p2v

package p2v

import (
	"bufio"
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"gpuvirt/test/machine"
)

// written is the file that a Writer writes to.
const written = "/var/lib/written"

// A Writer writes numbers to the end of a file of the server, one after the other, and tells
// of each when it is on the disk.
type Writer struct {
	mu    sync.Mutex
	last  int
	at    time.Time
	pause time.Duration // the longest since somebody has asked
}

// StartWriter starts one. It ends with the server, or the test.
func StartWriter(t *testing.T, s *Server) *Writer {
	t.Helper()
	cmd := s.ssh(t.Context(), "i=0; while :; do i=$((i+1)); echo $i >>"+written+" && sync "+written+" && echo $i; sleep 0.3; done")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &Writer{at: time.Now()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				w.heard(n)
			}
		}
		_ = cmd.Wait()
	}()
	t.Cleanup(func() { <-done })
	return w
}

func (w *Writer) heard(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.pause = max(w.pause, now.Sub(w.at))
	w.last, w.at = n, now
}

// Last is the last number that is known to be on the disk.
func (w *Writer) Last() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// Pause is the longest time in which nothing could be written since this was asked last.
func (w *Writer) Pause() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	pause := w.pause
	w.pause = 0
	return pause
}

// GoesOn waits until the server writes, from now on.
func (w *Writer) GoesOn(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("nothing is written on the server any more"))
	defer cancel()
	from := w.Last()
	if err := machine.WaitFor(ctx, 200*time.Millisecond, func() (bool, error) { return w.Last() > from+3, nil }); err != nil {
		t.Fatal(err)
	}
}
