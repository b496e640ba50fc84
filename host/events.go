package host

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

const (
	keptEvents    = 1024 // how far back a listener can resume
	listenerQueue = 256  // how far behind one may fall before it is cut off
)

// hub keeps the newest events and passes each on to the listeners. Sequence
// numbers begin at the time of start, so that they also grow over restarts and a
// listener from before one is told that it missed some.
type hub struct {
	now func() time.Time

	mu        sync.Mutex
	first     uint64 // sequence of kept[0], or of the next event
	next      uint64
	kept      []gpu.Event
	listeners map[chan gpu.Event]struct{}
}

func newHub(now func() time.Time) *hub {
	start := uint64(now().UnixMicro())
	return &hub{now: now, first: start, next: start, listeners: map[chan gpu.Event]struct{}{}}
}

func (b *hub) emit(typ, object string, detail map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := gpu.Event{Seq: b.next, Time: b.now(), Type: typ, Object: object, Detail: detail}
	b.next++
	if len(b.kept) == keptEvents {
		b.kept = slices.Delete(b.kept, 0, 1)
		b.first++
	}
	b.kept = append(b.kept, e)
	for l := range b.listeners {
		select {
		case l <- e:
		default: // too slow: closing tells it to resume from what is kept
			close(l)
			delete(b.listeners, l)
		}
	}
}

// Events returns the kept events after seq, whether they are all there were, and
// those to come until ctx ends. Zero means from now on. The channel is closed
// when the listener falls too far behind or ctx ends.
func (h *Host) Events(ctx context.Context, after uint64) (past []gpu.Event, complete bool, live <-chan gpu.Event) {
	b := h.hub
	ch := make(chan gpu.Event, listenerQueue)
	b.mu.Lock()
	defer b.mu.Unlock()
	complete = true
	if after > 0 {
		complete = after+1 >= b.first && after < b.next
		for _, e := range b.kept {
			if e.Seq > after {
				past = append(past, e)
			}
		}
	}
	b.listeners[ch] = struct{}{}
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, ok := b.listeners[ch]; ok {
			delete(b.listeners, ch)
			close(ch)
		}
	})
	return past, complete, ch
}

// Tell passes on what somebody else than the host has to tell of an object.
func (h *Host) Tell(typ, object string, detail map[string]string) { h.hub.emit(typ, object, detail) }

// OperationChanged passes on that an operation changed: the engine's Changed hook.
func (h *Host) OperationChanged(op operation.Operation) {
	h.hub.emit("operation.updated", op.ID, map[string]string{
		"kind": op.Kind, "status": string(op.Status), "steps_done": strconv.Itoa(stepsDone(op)),
	})
}

func stepsDone(op operation.Operation) int {
	n := 0
	for _, s := range op.Steps {
		if s.Status == operation.StepDone {
			n++
		}
	}
	return n
}

// changed hears of a change of the machine and tells the listeners.
func (h *Host) changed(c inventory.Change) {
	switch {
	case c.VM == nil:
		h.hub.emit("gpu.changed", c.Device, nil)
	case c.VM.UUID == "":
		h.hub.emit("vm.resync", "", map[string]string{"reason": c.VM.Kind})
	default:
		detail := map[string]string{}
		if c.VM.Alias != "" {
			detail["alias"] = c.VM.Alias
		}
		h.hub.emit("vm."+c.VM.Kind, c.VM.UUID, detail)
	}
	select {
	case h.dirty <- struct{}{}:
	default:
	}
}
