//go:build lab

package dirty

import (
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"
)

// A byte that is stored while eight are cleared is told then or the next time. It is no test
// for the race detector, which knows no such stores: the real ones are the kernel's.
func TestLabMarksTakenWhileStored(t *testing.T) {
	const stores = 50_000
	words := make([]uint64, 1)
	m := marks(unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), 8))
	var running sync.WaitGroup
	var storing atomic.Int32
	for i := range 3 {
		storing.Add(1)
		running.Go(func() {
			defer storing.Add(-1)
			mask := uint64(0xff) << (8 * i)
			for range stores {
				m[i] = 1
				for atomic.LoadUint64(&words[0])&mask != 0 {
				}
			}
		})
	}
	var told [8]int
	for storing.Load() > 0 {
		for i, b := range m.take(0) {
			told[i] += int(b)
		}
	}
	running.Wait()
	for i, n := range told {
		if want := map[bool]int{true: stores}[i < 3]; n != want {
			t.Errorf("mark %d was stored %d times and told %d times", i, want, n)
		}
	}
}
