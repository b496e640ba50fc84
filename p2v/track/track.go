// Package track carries what a tracker on a source knows to this host: which chunks of a
// disk were written since somebody asked last. The tracker lives as long as the connection:
// where that is cut, nothing is known any more, and the next pass looks at the whole disk.
//
// Both sides speak lines of JSON: the source says first whether it tracks, then answers each
// question with the chunks, or with why it does not know. The source is not trusted: lines,
// lists and numbers are bounded. A source that leaves chunks out lies about its own disk.
package track

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode"

	"gpuvirt/p2v/block"
	"gpuvirt/p2v/lines"
)

// Limits of what is said.
const (
	maxLine   = 4 << 20 // bytes
	maxRanges = 64 << 10
	maxReason = 300 // bytes
)

// A Tracker marks what is written to disks, in chunks of the size that it was made for.
type Tracker interface {
	// Take returns the chunks that were written since the Take before, in ascending order and
	// apart, and forgets them.
	Take(disk string) ([]block.Range, error)
}

type hello struct {
	Tracks bool   `json:"tracks"`
	Chunk  int    `json:"chunk_bytes,omitempty"`
	Reason string `json:"reason,omitempty"` // why it does not track
}

type question struct {
	Take string `json:"take"`
}

type answer struct {
	Ranges []block.Range `json:"ranges,omitempty"`
	Lost   string        `json:"lost,omitempty"` // why it is not known
}

// Serve answers with what a tracker knows until the other side closes. Where there is none,
// it says why and is done.
func Serve(rw io.ReadWriter, t Tracker, chunkBytes int, none error) error {
	enc := json.NewEncoder(rw)
	if none != nil {
		return enc.Encode(hello{Reason: none.Error()})
	}
	if err := enc.Encode(hello{Tracks: true, Chunk: chunkBytes}); err != nil {
		return fmt.Errorf("cannot serve a tracker: %w", err)
	}
	said := bufio.NewScanner(rw)
	for said.Scan() {
		var q question
		if err := lines.Decode(said.Bytes(), &q); err != nil {
			return fmt.Errorf("cannot serve a tracker: %w", err)
		}
		var a answer
		ranges, err := t.Take(q.Take)
		if err != nil {
			a.Lost = err.Error()
		}
		a.Ranges = coarse(ranges, maxRanges)
		if err := enc.Encode(a); err != nil {
			return fmt.Errorf("cannot serve a tracker: %w", err)
		}
	}
	return said.Err()
}

// coarse joins the ranges that are nearest to one another until there are few enough. Chunks
// between them are then looked at as well.
func coarse(ranges []block.Range, most int) []block.Range {
	for len(ranges) > most {
		gaps := make([]int64, 0, len(ranges)-1)
		for i := 1; i < len(ranges); i++ {
			gaps = append(gaps, ranges[i].From-ranges[i-1].From-ranges[i-1].N)
		}
		sorted := slices.Clone(gaps)
		slices.Sort(sorted)
		widest := sorted[len(ranges)-most-1] // of the gaps that are closed
		out := []block.Range{ranges[0]}
		for i, r := range ranges[1:] {
			last := &out[len(out)-1]
			if gaps[i] <= widest {
				last.N = r.From + r.N - last.From
				continue
			}
			out = append(out, r)
		}
		ranges = out
	}
	return ranges
}

// A LostError says that it is not known what was written.
type LostError struct {
	Reason string
	// Again is set where the next Take tells what was written since this one.
	Again bool
}

func (e *LostError) Error() string {
	return "it is not known what was written to the source: " + e.Reason
}

// A Client asks a tracker on a source. Its methods may be called concurrently.
type Client struct {
	mu    sync.Mutex
	conn  *lines.Conn
	ended error
}

// Connect hears whether the source tracks, in chunks of the size that is wanted. Where it does not the
// error is a *LostError. The client closes the connection, also with an error.
func Connect(ctx context.Context, conn io.ReadWriteCloser, chunkBytes int) (*Client, error) {
	c := &Client{conn: lines.New(conn, maxLine)}
	var h hello
	err := c.conn.Hear(ctx, &h)
	switch {
	case err != nil:
		err = unheard(err)
	case !h.Tracks:
		err = &LostError{Reason: shown(h.Reason)}
	case h.Chunk != chunkBytes:
		err = &LostError{Reason: fmt.Sprintf("it tracks chunks of %d bytes, and wanted are %d", h.Chunk, chunkBytes)}
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Take returns which of a disk's chunks were written since the Take before, or since
// Connect, in ascending order and apart. After an error the client is of no use any more,
// but after a *LostError that says otherwise.
func (c *Client) Take(ctx context.Context, disk string, chunks int64) ([]block.Range, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return nil, c.ended
	}
	ranges, err := c.take(ctx, disk, chunks)
	if lost, is := errors.AsType[*LostError](err); err != nil && (!is || !lost.Again) {
		c.ended = err
	}
	return ranges, err
}

func (c *Client) take(ctx context.Context, disk string, chunks int64) ([]block.Range, error) {
	var a answer
	if err := c.conn.Ask(ctx, question{disk}, &a); err != nil {
		return nil, unheard(err)
	}
	if a.Lost != "" {
		return nil, &LostError{Reason: shown(a.Lost), Again: true}
	}
	if len(a.Ranges) > maxRanges {
		return nil, &LostError{Reason: fmt.Sprintf("it tells of %d ranges", len(a.Ranges))}
	}
	end := int64(0)
	for _, r := range a.Ranges {
		if r.From < end || r.N < 1 || r.N > chunks || r.From > chunks-r.N {
			return nil, &LostError{Reason: fmt.Sprintf("it tells of chunks %d to %d, out of order or beyond the disk's %d", r.From, r.From+r.N-1, chunks)}
		}
		end = r.From + r.N
	}
	return a.Ranges, nil
}

// unheard is the error of who is heard no more, or of the context that has ended.
func unheard(err error) error {
	if _, broken := errors.AsType[*lines.BrokenError](err); broken {
		return &LostError{Reason: shown(err.Error())}
	}
	return err
}

// Close ends the tracker.
func (c *Client) Close() error { return c.conn.Close() }

// shown is what a source says, fit for a log.
func shown(text string) string {
	text = strings.ToValidUTF8(text, "?")
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return text
}
