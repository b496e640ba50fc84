package p2v

import (
	"context"
	"time"

	"gpuvirt/p2v/block"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// A beside is the passes that go on while a rehearsal has the mirrors as they are: what has changed since is
// kept ahead of them. Nothing of it concerns the rehearsal: a pass that fails is told, and made again.
type beside struct {
	stay   stay          // with a record of its own
	end    chan struct{} // closed: no more passes
	cancel context.CancelFunc
	done   chan struct{} // closed when the last one has ended
}

// beside begins to make passes, the first when it is time or somebody asks for it.
func (s *stay) beside(ctx context.Context) (*beside, error) {
	rec, err := s.m.cfg.Store.MigrationRecord(s.rec.Name)
	if err != nil {
		return nil, err
	}
	b := &beside{stay: *s, end: make(chan struct{}), done: make(chan struct{})}
	b.stay.rec, b.stay.ahead = rec, true
	ctx, b.cancel = context.WithCancel(ctx)
	go func() {
		defer close(b.done)
		b.passes(ctx)
	}()
	return b, nil
}

func (b *beside) passes(ctx context.Context) {
	s := &b.stay
	asked, forget := s.m.now.raised(s.rec.Name)
	for {
		select {
		case <-time.After(pause(s.rec.Copy)):
		case <-asked:
			forget()
			asked, forget = s.m.now.raised(s.rec.Name)
		case <-b.end:
			return
		case <-ctx.Done():
			return
		}
		err := s.save() // what somebody has changed counts from now on
		if err == nil {
			err = s.round(ctx)
		}
		if ctx.Err() == nil {
			b.tell(err)
		}
	}
}

// tell says why no pass is made, if so: what the last one would take is not known then.
func (b *beside) tell(why error) {
	text := ""
	if why != nil {
		b.stay.task.Logf("no pass is made beside the rehearsal: %v", why)
		text = report.CleanString(why.Error())
	}
	rec, err := b.stay.m.update(b.stay.rec.Name, func(r *move.Record) {
		if why != nil {
			r.Forecast = nil
		}
		if a := r.Pending(); a != nil && a.Kind == move.Rehearsal {
			a.CopyWaits = text
		}
	})
	if err != nil {
		b.stay.task.Logf("%v", err)
		return
	}
	b.stay.rec = rec
}

// stop ends them. A pass that is under way is waited for, as it would have to be made anew, or else is broken off.
func (b *beside) stop(s *stay, now bool) {
	close(b.end)
	if now {
		b.cancel()
	}
	<-b.done
	b.cancel()
	s.rec.Disks, s.rec.Heard, s.rec.Forecast, s.tracker = b.stay.rec.Disks, b.stay.rec.Heard, b.stay.rec.Forecast, b.stay.tracker
}

// fold brings what was copied ahead of the mirrors into them. Nobody reads them.
func (s *stay) fold(ctx context.Context) error {
	for _, d := range s.rec.Disks {
		f, err := block.Fold(ctx, s.m.spec(s.rec, d), s.task.Progress)
		if f.Lost {
			s.fresh[d.Name], s.rec.Forecast = false, nil // nobody tells of what is older now
			s.task.Logf("%s: something that was copied beside a rehearsal is of no use, and is copied again", d.Name)
		}
		if err != nil {
			return err
		}
		if f.Chunks > 0 {
			s.task.Logf("%s: %d bytes that were copied beside a rehearsal are in the mirror", d.Name, f.Bytes)
		}
	}
	return nil
}

// mirror opens the mirror of a disk, or what is ahead of it.
func (s *stay) mirror(d move.Disk) (*block.Mirror, error) {
	if s.ahead {
		return block.OpenAhead(s.m.spec(s.rec, d))
	}
	return block.OpenMirror(s.m.spec(s.rec, d))
}

// claim has room for a pass until it is released; still tells in its middle whether there is. What is
// ahead of a mirror cannot count on room for all that may come, and takes what nobody else claims.
func (s *stay) claim(d move.Disk, mirror *block.Mirror) (still func() error, release func(), err error) {
	path := s.m.mirror(s.rec.Name, d.Name)
	if !s.ahead {
		release, err = s.m.claims.claim(path, mirror)
		return func() error { return s.m.claims.check(path, mirror) }, release, err
	}
	still = func() error {
		_, err := s.m.claims.claim(path, spare{mirror})
		return err
	}
	release, err = s.m.claims.claim(path, spare{mirror})
	return still, release, err
}

// spareRoom is what may be stored between two looks at how much room there is, bytes.
const spareRoom = 64 << 20

// A spare is a mirror that is stored as long as there is room that nobody else needs.
type spare struct{ roomy }

func (s spare) Room() (need, free int64, err error) {
	_, free, err = s.roomy.Room()
	return spareRoom, free, err
}
