package vmapi

import (
	"context"
	"sync"

	"gpuvirt/gpu"
)

// The kinds of gpu.VMEvent.
const (
	kindLifecycle     = "lifecycle"
	kindAdded         = "device-added"
	kindRemoved       = "device-removed"
	kindRemovalFailed = "device-removal-failed"
	kindConnected     = "connected"
	kindDisconnected  = "disconnected"
)

// feedLimit is how many events wait for a slow listener before they collapse.
const feedLimit = 256

// A feed takes events from libvirt's loop, which must never wait, and hands them
// to those who listen.
type feed struct {
	out  chan gpu.VMEvent
	wake chan struct{} // holds a token when queue may have something

	mu       sync.Mutex
	queue    []gpu.VMEvent
	watchers map[*watcher]struct{}
}

// A watcher waits for what happens to one VM.
type watcher struct {
	uuid string
	ch   chan gpu.VMEvent
}

func newFeed() *feed {
	return &feed{
		out:      make(chan gpu.VMEvent),
		wake:     make(chan struct{}, 1),
		watchers: map[*watcher]struct{}{},
	}
}

// put adds an event without ever waiting. If too many wait already, they all
// become one that says: look again at everything.
func (f *feed) put(e gpu.VMEvent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) >= feedLimit {
		f.queue = append(f.queue[:0], gpu.VMEvent{Kind: kindLifecycle})
	} else {
		f.queue = append(f.queue, e)
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
	for w := range f.watchers {
		if e.UUID != "" && e.UUID != w.uuid {
			continue
		}
		select {
		case w.ch <- e:
		default: // it looks at the XML from time to time anyway
		}
	}
}

func (f *feed) take() (gpu.VMEvent, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		return gpu.VMEvent{}, false
	}
	e := f.queue[0]
	f.queue = f.queue[1:]
	return e, true
}

// run hands the events out until ctx ends.
func (f *feed) run(ctx context.Context) {
	for {
		e, ok := f.take()
		if !ok {
			select {
			case <-f.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case f.out <- e:
		case <-ctx.Done():
			return
		}
	}
}

// watch begins to collect the events of a VM, and those of the connection. The
// caller calls stop.
func (f *feed) watch(uuid string) (events <-chan gpu.VMEvent, stop func()) {
	w := &watcher{uuid: uuid, ch: make(chan gpu.VMEvent, 16)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[w] = struct{}{}
	return w.ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, w)
	}
}
