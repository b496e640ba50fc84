package track

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuvirt/p2v/block"
)

type scripted struct {
	takes [][]block.Range
	err   error
}

func (s *scripted) Take(disk string) ([]block.Range, error) {
	if disk != "nvme0n1" {
		return nil, errors.New("it is not tracked")
	}
	if len(s.takes) == 0 {
		return nil, s.err
	}
	out := s.takes[0]
	s.takes = s.takes[1:]
	return out, nil
}

func connect(t *testing.T, tracker Tracker, none error, chunk int) (*Client, error) {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Serve(far, tracker, 1<<20, none)
		_ = far.Close()
	}()
	t.Cleanup(func() { _ = near.Close(); <-done })
	return Connect(t.Context(), near, chunk)
}

func TestTake(t *testing.T) {
	first, second := []block.Range{{From: 0, N: 2}, {From: 7, N: 3}}, []block.Range(nil)
	c, err := connect(t, &scripted{takes: [][]block.Range{first, second}, err: errors.New("writes were \x1b[2Jmissed")}, nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]block.Range{first, second} {
		got, err := c.Take(t.Context(), "nvme0n1", 10)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	var lost *LostError
	for range 2 {
		if _, err := c.Take(t.Context(), "nvme0n1", 10); !errors.As(err, &lost) || lost.Reason != "writes were  [2Jmissed" {
			t.Errorf("got %v", err)
		}
	}
}

func TestConnectRefuses(t *testing.T) {
	for want, c := range map[string]struct {
		none  error
		chunk int
	}{
		"the kernel is too old":     {errors.New("the kernel is too old"), 1 << 20},
		"it tracks chunks of 10485": {nil, 4096},
	} {
		var lost *LostError
		if _, err := connect(t, &scripted{}, c.none, c.chunk); !errors.As(err, &lost) || !strings.Contains(lost.Reason, want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// What a source says is held against the disk, and bounded.
func TestHostile(t *testing.T) {
	for name, says := range map[string]string{
		"no JSON":       "welcome",
		"beyond":        `{"ranges":[{"from":9,"n":2}]}`,
		"overflow":      `{"ranges":[{"from":9223372036854775807,"n":2}]}`,
		"nothing":       `{"ranges":[{"from":1,"n":0}]}`,
		"below":         `{"ranges":[{"from":-1,"n":2}]}`,
		"out of order":  `{"ranges":[{"from":5,"n":2},{"from":1,"n":1}]}`,
		"one upon one":  `{"ranges":[{"from":5,"n":2},{"from":6,"n":1}]}`,
		"many":          `{"ranges":[` + strings.Repeat(`{"from":0,"n":1},`, maxRanges) + `{"from":0,"n":1}]}`,
		"a long line":   strings.Repeat("[", maxLine+1),
		"nothing more":  "",
		"a long reason": `{"lost":"` + strings.Repeat("x", 10000) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			go func() {
				_, _ = io.WriteString(far, `{"tracks":true,"chunk_bytes":1048576}`+"\n")
				_, _ = far.Read(make([]byte, 1000))
				if says != "" {
					_, _ = io.WriteString(far, says+"\n")
				}
				_ = far.Close()
			}()
			c, err := Connect(t.Context(), near, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			var lost *LostError
			if got, err := c.Take(t.Context(), "nvme0n1", 10); !errors.As(err, &lost) || len(lost.Reason) > 400 {
				t.Errorf("got %v, %v", got, err)
			}
			_ = c.Close()
		})
	}
}

// One that says nothing is not waited for for ever.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close() //nolint:errcheck // of the test
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Connect(ctx, near, 1<<20); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// A source that does not read what it is asked does not hold us up.
func TestDeaf(t *testing.T) {
	near, far := net.Pipe()
	go func() { _, _ = io.WriteString(far, `{"tracks":true,"chunk_bytes":1}`+"\n") }()
	c, err := Connect(t.Context(), near, 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() { _, err := c.Take(ctx, "sda", 10); ended <- err }()
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

// Few ranges have all that many had.
func TestCoarse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in []block.Range
		at := int64(0)
		for range rapid.IntRange(0, 60).Draw(t, "ranges") {
			at += rapid.Int64Range(1, 20).Draw(t, "gap")
			n := rapid.Int64Range(1, 5).Draw(t, "n")
			in = append(in, block.Range{From: at, N: n})
			at += n
		}
		most := rapid.IntRange(1, 20).Draw(t, "most")
		before := append([]block.Range{}, in...)
		out := coarse(in, most)
		if diff := cmp.Diff(before, append([]block.Range{}, in...)); diff != "" {
			t.Fatalf("it changed what it was given:\n%s", diff)
		}
		if len(out) > most {
			t.Fatalf("%d ranges, at most %d", len(out), most)
		}
		if len(in) <= most && !cmp.Equal(in, out) {
			t.Fatalf("few enough, and changed: %v", out)
		}
		has := map[int64]bool{}
		end := int64(-1)
		for _, r := range out {
			if r.From <= end {
				t.Fatalf("out of order: %v", out)
			}
			for i := range r.N {
				has[r.From+i] = true
			}
			end = r.From + r.N
		}
		for _, r := range in {
			for i := range r.N {
				if !has[r.From+i] {
					t.Fatalf("chunk %d is missing", r.From+i)
				}
			}
		}
	})
}
