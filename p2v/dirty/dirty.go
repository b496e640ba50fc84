package dirty

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// What a caller does about an error: it hashes the whole disk instead.
var (
	// ErrUnsupported says that this machine, or this disk, cannot be tracked: the kernel
	// has no eBPF, no description of itself, or other structures; the process may not use
	// them; the disk is a partition, has zones, or a driver that makes no requests.
	ErrUnsupported = errors.New("writes cannot be tracked")
	// ErrLost says that something may have been written since the Take before that is not
	// marked. What is written after this Take is marked again.
	ErrLost = errors.New("writes were missed")
	// ErrGone says that the disk is gone, is another one, or has another size. It is not
	// tracked any more.
	ErrGone = errors.New("the disk is not the one that was tracked")
	// ErrClosed says that the tracker was closed.
	ErrClosed = errors.New("the tracker is closed")
)

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

// A Tracker marks what is written. Its methods may be called concurrently.
type Tracker struct {
	id         string
	sys        *os.Root
	chunkBytes int64
	layout     layout
	disks      []*watched

	mu     sync.Mutex
	kernel *kernel          // nil once closed
	named  map[string]bool  // what the program knows by name
	lost   [][]reason       // what each disk has still to be told of all disks
	gone   map[string]error // disks that are not tracked any more
}

// Start tracks disks in chunks of a size in bytes, a power of two from 4 KiB on. sys is
// /sys. The caller reads the disks for the first time after it has returned, and must
// Close. It raises the process's limit of locked memory, which kernels before 5.11 count
// the marks against.
func Start(ctx context.Context, sys *os.Root, disks []Disk, chunkBytes int64) (*Tracker, error) {
	t := &Tracker{
		id: rand.Text(), sys: sys, chunkBytes: chunkBytes,
		named: map[string]bool{}, lost: make([][]reason, len(disks)), gone: map[string]error{},
	}
	if err := t.start(ctx, disks); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Tracker) start(ctx context.Context, disks []Disk) error {
	var sizes []int64
	var multipath bool
	for _, d := range disks {
		if d.Size <= 0 {
			return fmt.Errorf("cannot track disk %q: it has %d bytes", d.Name, d.Size)
		}
		for _, other := range t.disks {
			if other.Name == d.Name || other.Major == d.Major && other.Minor == d.Minor {
				return fmt.Errorf("cannot track disk %q twice", d.Name)
			}
		}
		w, err := watch(t.sys, d)
		if err != nil {
			return err
		}
		t.disks = append(t.disks, w)
		sizes = append(sizes, d.Size)
		multipath = multipath || w.multipath
	}
	var err error
	if t.layout, err = layOut(sizes, t.chunkBytes); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.kernel, err = load(t.layout, multipath); err != nil {
		return err
	}
	for i, d := range t.disks {
		if !d.multipath {
			err = errors.Join(err, t.kernel.track(diskKey{d.Major, d.Minor}, t.layout.slots[i]))
		}
	}
	if err := errors.Join(err, t.namePaths()); err != nil {
		return err
	}
	if err := t.kernel.attach(); err != nil {
		return err
	}
	// A path that came in between was not known, and may have taken a write before the
	// program was there to flag it. That is before the first read.
	return t.namePaths()
}

// ID is another one for each Tracker. Who keeps what was taken for later keeps this with
// it: marks of another Tracker say nothing of the time before it.
func (t *Tracker) ID() string { return t.id }

// Take returns the chunks of a disk that were written since the last Take, or since Start,
// and forgets them. What was written and reported as written before Take was called is in
// it. It may have more than was written; see the package.
//
// ErrLost and ErrGone say that the marks are not enough. Other errors are the caller's
// mistake, or ErrClosed.
func (t *Tracker) Take(disk string) (*Chunks, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kernel == nil {
		return nil, fmt.Errorf("cannot tell what was written to disk %q: %w", disk, ErrClosed)
	}
	i := t.index(disk)
	if i < 0 {
		return nil, fmt.Errorf("cannot tell what was written to disk %q: it is not tracked", disk)
	}
	if err := t.gone[disk]; err != nil {
		return nil, err
	}
	// A path is known before the flags are read: what it took until then has set one.
	pathsErr := t.namePaths()
	chunks := NewChunks(t.disks[i].Size, t.chunkBytes)
	t.kernel.marks.collect(t.layout.slots[i], chunks)
	t.spread(t.kernel.marks.reasons(0))
	why := slices.Concat(t.lost[i], t.kernel.marks.reasons(t.layout.slots[i].flags))
	t.lost[i] = nil
	// Last: a disk that is the right one now was so all the time.
	if err := t.disks[i].check(); err != nil {
		t.gone[disk] = err
		return nil, err
	}
	if t.disks[i].multipath && pathsErr != nil {
		return nil, fmt.Errorf("%w: disk %q: %w", ErrLost, disk, pathsErr)
	}
	if len(why) > 0 {
		return nil, fmt.Errorf("%w: disk %q: %s", ErrLost, disk, words(why))
	}
	return chunks, nil
}

func (t *Tracker) index(disk string) int {
	for i, d := range t.disks {
		if d.Name == disk {
			return i
		}
	}
	return -1
}

// spread keeps for every disk what the program says of all.
func (t *Tracker) spread(why []reason) {
	for _, r := range why {
		for i, d := range t.disks {
			if r != reasonPath || d.multipath {
				t.lost[i] = append(t.lost[i], r)
			}
		}
	}
}

func words(why []reason) string {
	var all []string
	for _, r := range why {
		all = append(all, r.String())
	}
	return strings.Join(all, "; ")
}

// namePaths tells the program the names that are new: paths to disks of ours, and others,
// which it leaves alone from then on.
func (t *Tracker) namePaths() error {
	if t.kernel.names == nil {
		return nil
	}
	names, err := blockNames(t.sys)
	if err != nil {
		return err
	}
	for _, name := range names {
		if t.named[name] || !strings.HasPrefix(name, "nvme") {
			continue
		}
		var s slot // without chunks: not ours
		if i := t.index(headOf(name)); i >= 0 {
			s = t.layout.slots[i]
		}
		if err := t.kernel.name(name, s); err != nil {
			return err
		}
		t.named[name] = true
	}
	return nil
}

// Close stops the tracking. It may be called again.
func (t *Tracker) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	if t.kernel != nil {
		err = t.kernel.close()
		t.kernel = nil
	}
	for _, d := range t.disks {
		err = errors.Join(err, d.size.Close())
	}
	t.disks = nil
	return err
}
