package p2v

import (
	"gpuvirt/operation"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/move"
)

// passing has a pass over a disk seen until it is over. A move has one pass under way at most: those beside
// a rehearsal begin after its own.
func (m *Migrations) passing(t *operation.Task, name, disk string) (tell func(block.Progress), over func()) {
	tell = func(p block.Progress) {
		t.Progress(p.Done, p.Total)
		now := &move.Progress{Disk: disk, Done: count(p.Done), Total: count(p.Total), Rate: uint64(max(0, p.Rate))}
		if left := p.Remaining.Seconds(); left >= 0 {
			now.Remaining = &left
		}
		m.passes.Store(name, now)
	}
	return tell, func() { m.passes.Delete(name) }
}

// progress is how far the pass is that is under way; nil: none is. It is not to be changed.
func (m *Migrations) progress(name string) *move.Progress {
	p, _ := m.passes.Load(name)
	now, _ := p.(*move.Progress)
	return now
}
