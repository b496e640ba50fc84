package mig

import (
	"cmp"
	"errors"
	"path"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
)

// A question is one session with the library.
type question struct {
	since time.Time
	back  chan struct{} // closed when the library has come back
}

// ask runs f in a session, and waits for its answer for a limited time: the library may
// wait for the kernel, and nothing ends that. While one question hangs no other is asked.
// What f does after that is lost, so it may write to nothing that its caller reads.
// after is called when the library has come back, however long that takes.
func ask[T any](b *Backend, limit time.Duration, f func(Session) (T, error), after func()) (T, error) {
	var none T
	if err := b.stuck(); err != nil {
		after()
		return none, err
	}
	type answer struct {
		value T
		err   error
	}
	q, answers := &question{since: time.Now(), back: make(chan struct{})}, make(chan answer, 1)
	go func() {
		defer close(q.back)
		defer after()
		s, err := b.open()
		if err != nil {
			answers <- answer{err: err}
			return
		}
		v, err := f(s)
		answers <- answer{v, errors.Join(err, s.Close())}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-timer.C:
		b.mu.Lock()
		b.hung = append(b.hung, q)
		b.mu.Unlock()
		b.opts.Log.Error("NVIDIA's library does not answer: its gpus are stuck", "limit", limit)
		return none, b.stuck()
	}
}

// stuck says that a question hangs, or nil.
func (b *Backend) stuck() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hung = slices.DeleteFunc(b.hung, func(q *question) bool {
		select {
		case <-q.back:
			return true
		default:
			return false
		}
	})
	if len(b.hung) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeStuck, "NVIDIA's library has not come back from a call since %s", b.hung[0].since.UTC().Format(time.RFC3339)).
		WithHint("see what the kernel says of the driver: journalctl -k --grep NVRM")
}

func nothing() {}

// read runs f on a GPU that MIG can cut, in a session.
func read[T any](b *Backend, id gpu.ID, f func(Device) (T, error)) (T, error) {
	return on(b, id, b.opts.ReadTimeout, f, nothing)
}

// notCut is the answer about a GPU that is none to MIG.
func notCut() error { return gpu.Errorf(gpu.CodeNotFound, "there is no such gpu that MIG can cut") }

// on runs f on a GPU that MIG can cut, in a session, and then after.
func on[T any](b *Backend, id gpu.ID, limit time.Duration, f func(Device) (T, error), after func()) (T, error) {
	return onAny(b, id, limit, func(d Device) (T, error) {
		if mode, err := d.Mode(); err != nil || !mode.Capable {
			var zero T
			return zero, cmp.Or(err, notCut())
		}
		return f(d)
	}, after)
}

// onAny is on for each GPU that the driver has.
func onAny[T any](b *Backend, id gpu.ID, limit time.Duration, f func(Device) (T, error), after func()) (T, error) {
	var zero T
	a, err := gpu.ParseAddress(string(id))
	if err != nil || a.ID() != id {
		after()
		return zero, notCut()
	}
	v, err := ask(b, limit, func(s Session) (T, error) {
		d, err := s.Device(a)
		if errors.Is(err, ErrNotFound) {
			return zero, notCut()
		}
		if err != nil {
			return zero, err
		}
		return f(d)
	}, after)
	switch {
	case err == nil:
	case gpu.CodeOf(err) == gpu.CodeDriverMissing:
		return zero, notCut() // as far as can be told
	default:
		// Should the library be of no use, that is no matter of cards of others.
		if text, rerr := b.fs.Read(path.Join(pci.Devices, string(id), "vendor")); rerr == nil && text != vendor {
			return zero, notCut()
		}
	}
	return v, err
}
