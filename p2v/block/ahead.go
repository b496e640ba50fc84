package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// ErrAhead says that chunks were written ahead of a mirror, see OpenAhead.
var ErrAhead = errors.New("chunks were written ahead of it, which are to be folded into it first")

// Ahead is where that is kept which is written ahead of a mirror: beside its map.
func (s Spec) Ahead() Spec {
	s.Path, s.Map = s.Map+".ahead.raw", s.Map+".ahead"
	return s
}

// OpenAhead opens a mirror to be pulled to without being written to: what has changed since is kept
// beside it, in a sparse file with a map of its own, until Fold. Neither the mirror's data
// nor its map is written, and the data is not even opened. Until Close no other process opens either.
func OpenAhead(s Spec) (*Mirror, error) {
	below, err := openTable(s)
	if err != nil {
		return nil, err
	}
	m, err := openAhead(s, below)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot write ahead of mirror %q: %w", s.Path, err), below.file.Close())
	}
	m.below = below
	return m, nil
}

func openAhead(s Spec, below *table) (*Mirror, error) {
	fresh, err := below.load()
	if err == nil && fresh {
		err = errors.New("nothing was copied yet")
	}
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(s.Ahead().Map); errors.Is(err, fs.ErrNotExist) {
		if err := dropAhead(s); err != nil {
			return nil, err
		}
	}
	return openMirror(s.Ahead())
}

// dropAhead removes what is ahead of a mirror. Data without a map is of no use; a map without data
// would be one that lies.
func dropAhead(s Spec) error {
	for _, path := range []string{s.Ahead().Map, s.Ahead().Path} {
		err := os.Remove(path)
		if err == nil {
			err = syncFolder(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove what is ahead of mirror %q: %w", s.Path, err)
		}
	}
	return nil
}

// Folded is what came of a Fold.
type Folded struct {
	Chunks, Bytes int64 // that came into the mirror, or were there already
	// Lost is set where something that was written ahead could not be read, or was not what it had been.
	// The mirror then holds older chunks than the passes have said, and says so: what is
	// pulled next is all of the disk.
	Lost bool
}

// Fold brings what was written ahead of a mirror into it, and removes it there. Where there is
// nothing it does nothing. It may be broken off at any point, and is called again then: a chunk is taken
// away from what is ahead when the mirror holds it. progress is called now and then with bytes,
// and may be nil.
//
// Errors: SpaceError, ErrBusy, those of OpenMirror, the cause of ctx.
func Fold(ctx context.Context, s Spec, progress func(done, total int64)) (Folded, error) {
	if _, err := os.Lstat(s.Ahead().Map); errors.Is(err, fs.ErrNotExist) {
		return Folded{}, dropAhead(s)
	}
	m, err := openMirror(s)
	if err != nil {
		return Folded{}, err
	}
	defer m.Close() //nolint:errcheck // what was brought is durable
	a, held, err := openFolding(s.Ahead())
	f := Folded{Lost: err != nil}
	if _, is := errors.AsType[syscall.Errno](err); is || errors.Is(err, ErrBusy) {
		return Folded{}, err
	}
	if a != nil {
		f, err = fold(ctx, m, a, held, progress)
		if err = errors.Join(err, a.Close()); err != nil {
			return f, fmt.Errorf("cannot fold what is ahead of mirror %q into it: %w", s.Path, err)
		}
	}
	return f, dropAhead(s)
}

// openFolding opens what is ahead, where there is something: what was begun and holds nothing
// need not be whole.
func openFolding(s Spec) (_ *Mirror, held int64, err error) {
	t, err := openTable(s)
	if err != nil {
		return nil, 0, err
	}
	fresh, err := t.load()
	if err == nil && !fresh {
		held, err = t.held()
	}
	var a *Mirror
	if held > 0 {
		a, err = openData(s, t, held)
	}
	if a == nil {
		return nil, 0, errors.Join(err, t.file.Close())
	}
	return a, held, nil
}

// fold brings the chunks that a holds into m: so many.
func fold(ctx context.Context, m, a *Mirror, held int64, progress func(done, total int64)) (Folded, error) {
	var f Folded
	b := newBuffer(m.chunk)
	for from := int64(0); from < m.count(); from += jobChunks {
		want, err := a.table.read(from, int(min(jobChunks, m.count()-from)))
		if err != nil {
			return f, err
		}
		var there []int64 // chunks
		for k, h := range want {
			if h != (Hash{}) {
				there = append(there, from+int64(k))
			}
		}
		if len(there) == 0 {
			continue
		}
		if ctx.Err() != nil {
			return f, context.Cause(ctx)
		}
		ok, err := m.takeOver(a, there, b)
		if err == nil {
			err = a.giveBack(there)
		}
		if err != nil {
			return f, err
		}
		f.Lost = f.Lost || !ok
		f.Chunks += int64(len(there))
		for _, i := range there {
			f.Bytes += int64(m.length(i))
		}
		if progress != nil {
			progress(f.Bytes, min(held*int64(m.chunk), m.size))
		}
	}
	return f, nil
}

// takeOver brings chunks of a into m, durably, but for those that are not what they were when they were
// written.
func (m *Mirror) takeOver(a *Mirror, chunks []int64, b *buffer) (ok bool, err error) {
	type taken struct {
		i          int64
		want, have Hash
	}
	var take []taken
	var old []int64
	for _, i := range chunks {
		want, err1 := a.table.read(i, 1)
		have, err2 := m.table.read(i, 1)
		if err := errors.Join(err1, err2); err != nil {
			return false, err
		}
		if have[0] != want[0] { // or a fold that was broken off has brought it, or it is again what it was
			take, old = append(take, taken{i, want[0], have[0]}), append(old, i)
		}
	}
	if len(take) == 0 {
		return true, nil
	}
	if err := m.forget(old...); err != nil { // all of them with one sync
		return false, err
	}
	ok = true
	for _, t := range take {
		data, err := a.reader.read(b, a.offset(t.i), a.length(t.i))
		hash, zero := m.hash(t.i, data)
		// The record may be torn of a chunk that was brought before, and was about to be forgotten.
		if err != nil || hash != t.want && (hash != t.have || !torn(t.want, t.have)) {
			ok = false
			continue
		}
		if zero {
			data = nil
		}
		if err := m.put(t.i, data, hash); err != nil {
			return false, err
		}
	}
	return ok, m.commit()
}

// torn reports whether a record may be what is left of one that was being forgotten.
func torn(left, was Hash) bool {
	for i := range left {
		if left[i] != was[i] && left[i] != 0 {
			return false
		}
	}
	return true
}

// giveBack forgets chunks, durably, and gives up their room.
func (m *Mirror) giveBack(chunks []int64) error {
	if err := m.forget(chunks...); err != nil {
		return err
	}
	for _, i := range chunks {
		if err := m.data.Zero(m.offset(i), int64(m.length(i))); err != nil {
			return m.failed("give back the room of", err)
		}
	}
	return nil
}
