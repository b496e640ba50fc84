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
// the source is written to, what it wrote since the last pass differs.
func Verify(ctx context.Context, m *Mirror, disk string, o Options) (Verification, error) {
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

func (v *verifier) exchange(l *link, j *job, b *buffer) error {
	first := j.done
	target := fmt.Sprintf("%s&from=%d&n=%d", v.base, j.from+first, j.n-first)
	if err := l.ask(http.MethodGet, target, nil); err != nil {
		return err
	}
	for {
		h, err := l.frame(v.m.chunk)
		if err != nil {
			return err
		}
		at := first + int64(h.pos)
		switch {
		case h.kind == frameEnd && at == j.n && j.done == j.n:
			return l.end()
		case h.kind != frameHash || at != j.done || at == j.n:
			return badData("a frame of kind %d at position %d of a list of hashes", h.kind, h.pos)
		}
		if err := v.compare(j, h.hash, b); err != nil {
			return fatal{err}
		}
	}
}

// compare reads the next chunk of a job from the mirror's disk.
func (v *verifier) compare(j *job, want Hash, b *buffer) error {
	i := j.from + j.done
	data, err := v.m.reader.read(b, v.m.offset(i), v.m.length(i))
	if err != nil {
		return fmt.Errorf("cannot read mirror %q at byte %d: %w", v.m.name, firstBad(v.m.reader, v.m.offset(i), v.m.length(i)), err)
	}
	bytes := int64(len(data))
	hash, _ := v.m.hash(i, data)
	v.mu.Lock()
	v.sum.Chunks++
	v.sum.Bytes += bytes
	if hash != want {
		v.differ = append(v.differ, i)
	}
	v.mu.Unlock()
	v.advance(j, j.done+1, bytes)
	return nil
}
