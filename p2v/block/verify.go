package block

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// A Verification is what came of one.
type Verification struct {
	Started  time.Time
	Duration time.Duration
	Chunks   int64   // compared
	Bytes    int64   // of these chunks
	Differ   []Range // chunks that are not as on the source, in ascending order
}

// Verify compares what is on the mirror's disk, and not what the map says of
// it, with what is on the source's. The records of chunks that differ are
// cleared: the next Pull copies them, also one that is told only these. While
// the source is written to, what it wrote since the last pass differs. What is ahead of a
// mirror is folded into that first: a part of the disk cannot be verified.
func Verify(ctx context.Context, m *Mirror, disk string, o Options) (Verification, error) {
	if m.below != nil {
		return Verification{}, fmt.Errorf("cannot verify disk %q: %w", disk, ErrAhead)
	}
	v := &verifier{crew: newCrew(m, disk, o)}
	v.base = fmt.Sprintf("/disks/%s/hashes?chunk=%d", url.PathEscape(disk), m.chunk)
	started := time.Now()
	err := v.run(ctx, v.exchange, m.commit)
	slices.Sort(v.differ)
	if len(v.differ) > 0 {
		if healErr := m.forget(v.differ...); err == nil {
			err = healErr
		}
	}
	if err != nil {
		err = fmt.Errorf("cannot verify disk %q: %w", disk, err)
	}
	v.sum.Started, v.sum.Duration = started, time.Since(started)
	for _, i := range v.differ {
		v.sum.Differ = addRange(v.sum.Differ, i)
	}
	return v.sum, err
}

type verifier struct {
	*crew
	base   string
	sum    Verification // under mu, as is differ
	differ []int64
}

// exchange asks for the chunks that are left of a job, a range at a time.
func (v *verifier) exchange(l *link, j *job, b *buffer) error {
	for len(j.left()) > 0 {
		if err := v.compareRange(l, j, b); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) compareRange(l *link, j *job, b *buffer) error {
	left := j.left()
	n := 1
	for n < len(left) && left[n] == left[0]+int64(n) {
		n++
	}
	if err := l.ask(http.MethodGet, fmt.Sprintf("%s&from=%d&n=%d", v.base, left[0], n), nil); err != nil {
		return err
	}
	for done := 0; ; done++ {
		h, err := l.frame(v.m.chunk)
		if err != nil {
			return err
		}
		switch {
		case h.kind == frameEnd && h.pos == n && done == n:
			return l.end()
		case h.kind != frameHash || h.pos != done || done == n:
			return badData("a frame of kind %d at position %d of a list of hashes", h.kind, h.pos)
		}
		if err := v.compare(left[done], h.hash, b); err != nil {
			return fatal{err}
		}
		v.advance(j, 1)
	}
}

// compare reads a chunk from the mirror's disk.
func (v *verifier) compare(i int64, want Hash, b *buffer) error {
	data, err := v.m.reader.read(b, v.m.offset(i), v.m.length(i))
	if err != nil {
		return fmt.Errorf("cannot read mirror %q at byte %d: %w", v.m.name, firstBad(v.m.reader, v.m.offset(i), v.m.length(i)), err)
	}
	hash, _ := v.m.hash(i, data)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sum.Chunks++
	v.sum.Bytes += int64(len(data))
	if hash != want {
		v.differ = append(v.differ, i)
	}
	return nil
}
