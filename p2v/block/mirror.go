package block

import (
	"errors"
	"fmt"
	"sync"
)

// maxPending is how many written bytes wait for a sync at most, about: a crash
// costs no more than these. A writer that gets there syncs.
const maxPending = 128 << 20

// A Mirror is a copy of a disk with a map of what it holds. Its methods may be
// called at once; Pull and Verify may not run at once on one mirror.
type Mirror struct {
	geometry
	id     string
	name   string // of the data, for messages
	data   file
	table  *table
	reader reader // of what is on the disk, not of what was just written
	// below is the map of the mirror that this one is ahead of, which is only read; nil: of none.
	below *table

	mu         sync.Mutex
	pending    map[int64]Hash // written, to be synced and recorded
	recording  map[int64]Hash // being synced and recorded
	waiting    int64          // bytes of pending
	clearing   *clearing      // records that the next leader clears
	broken     error          // a sync failed: nothing can be said of the disk
	committing sync.Mutex     // held by who syncs data
	tabling    sync.Mutex     // held by who clears records
}

// ID is the identity of the disk that is mirrored.
func (m *Mirror) ID() string { return m.id }

// Size is the size of the disk that is mirrored, in bytes.
func (m *Mirror) Size() int64 { return m.size }

// ChunkSize is the size of its chunks, in bytes.
func (m *Mirror) ChunkSize() int { return m.chunk }

// Chunks is how many chunks the disk has.
func (m *Mirror) Chunks() int64 { return m.count() }

// Held counts the chunks that the map says are on the mirror.
func (m *Mirror) Held() (int64, error) { return m.table.held() }

// heldOf is the hash of what is held of a chunk, here or in the mirror that this one is ahead of.
func (m *Mirror) heldOf(i int64) (Hash, error) {
	held, err := m.table.read(i, 1)
	if err == nil && held[0] == (Hash{}) && m.below != nil {
		held, err = m.below.read(i, 1)
	}
	if err != nil {
		return Hash{}, err
	}
	return held[0], nil
}

// Room tells how many bytes are still to be stored should every chunk of the disk hold data,
// and how many there is room for.
func (m *Mirror) Room() (need, free int64, err error) {
	stored, free, err := m.data.Room()
	if err != nil {
		return 0, 0, fmt.Errorf("cannot ask for the room of %q: %w", m.name, err)
	}
	return max(0, m.size-stored), free, nil
}

// CheckSpace answers with a SpaceError if the disk does not fit should every
// chunk of it hold data. Zeros take no room, so that it may fit nevertheless.
func (m *Mirror) CheckSpace() error {
	need, free, err := m.Room()
	if err != nil {
		return err
	}
	if need > free {
		return &SpaceError{Path: m.name, Need: need, Free: free}
	}
	return nil
}

// put writes a chunk; nil stands for zeros. A record of what was there before is
// cleared first.
func (m *Mirror) put(i int64, data []byte, hash Hash) error {
	if err := m.settle(i); err != nil {
		return err
	}
	held, err := m.table.read(i, 1)
	if err != nil {
		return err
	}
	if held[0] != (Hash{}) {
		if err := m.forget(i); err != nil {
			return err
		}
	}
	if data == nil {
		err = m.data.Zero(m.offset(i), int64(m.length(i)))
	} else {
		_, err = m.data.WriteAt(data, m.offset(i))
	}
	if err != nil {
		return m.failed("write", err)
	}
	m.mu.Lock()
	m.pending[i] = hash
	m.waiting += int64(len(data))
	full := m.waiting >= maxPending
	m.mu.Unlock()
	if full {
		return m.commit()
	}
	return nil
}

func (m *Mirror) failed(verb string, err error) error {
	err = fmt.Errorf("cannot %s mirror %q: %w", verb, m.name, unwrapPath(err))
	return spaceError(err, m.name, m.size, m.data)
}

// settle records a chunk that is written again before it was recorded: its
// first hash must not come after its second content.
func (m *Mirror) settle(i int64) error {
	m.mu.Lock()
	_, pending := m.pending[i]
	_, recording := m.recording[i]
	err := m.broken
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if !pending && !recording {
		return nil
	}
	return m.commit()
}

// A clearing is a group of records that are cleared by one sync.
type clearing struct {
	chunks []int64
	done   chan struct{}
	err    error
}

// forget clears the record of chunks, durably. Who comes while another syncs
// joins the next group, which the first of them leads.
func (m *Mirror) forget(chunks ...int64) error {
	m.mu.Lock()
	c, leader := m.clearing, false
	if c == nil {
		c, leader = &clearing{done: make(chan struct{})}, true
		m.clearing = c
	}
	c.chunks = append(c.chunks, chunks...)
	m.mu.Unlock()
	if !leader {
		<-c.done
		return c.err
	}
	m.tabling.Lock()
	defer m.tabling.Unlock()
	m.mu.Lock()
	m.clearing = nil
	c.err = m.broken
	m.mu.Unlock()
	if c.err == nil {
		c.err = m.clear(c.chunks)
	}
	close(c.done)
	return c.err
}

func (m *Mirror) clear(chunks []int64) error {
	for _, i := range chunks {
		if err := m.table.write(i, Hash{}); err != nil {
			return m.breaks(err)
		}
	}
	if err := m.table.sync(); err != nil {
		return m.breaks(err)
	}
	return nil
}

// breaks remembers an error after which nothing may be recorded.
func (m *Mirror) breaks(err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken == nil {
		m.broken = fmt.Errorf("%w; open the mirror again to go on", err)
	}
	return m.broken
}

// commit makes durable what was written, and then records it.
func (m *Mirror) commit() error {
	m.committing.Lock()
	defer m.committing.Unlock()
	m.mu.Lock()
	if m.broken != nil || len(m.pending) == 0 {
		err := m.broken
		m.mu.Unlock()
		return err
	}
	m.recording, m.pending, m.waiting = m.pending, map[int64]Hash{}, 0
	batch := m.recording // not written to any more
	m.mu.Unlock()

	if err := m.record(batch); err != nil {
		return m.breaks(err)
	}
	m.mu.Lock()
	m.recording = nil
	m.mu.Unlock()
	return nil
}

func (m *Mirror) record(batch map[int64]Hash) error {
	if err := m.data.Sync(); err != nil {
		return m.failed("sync", err)
	}
	for i, h := range batch {
		if err := m.table.write(i, h); err != nil {
			return err
		}
	}
	return m.table.sync()
}

// Close lets go of the files. Pull has synced what it wrote.
func (m *Mirror) Close() error {
	errs := []error{m.data.Close(), m.table.file.Close()}
	if d, ok := m.reader.(*device); ok {
		errs = append(errs, d.close())
	}
	if m.below != nil {
		errs = append(errs, m.below.file.Close())
	}
	return errors.Join(errs...)
}
