package sriov_test

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/internal/sysfs"
	"gpuvirt/sriov"
)

const (
	flex    = "0000:4d:00.0"
	a2      = "0000:08:00.0"
	rx      = "0000:03:00.0"
	sound   = "0000:03:00.1"
	devices = "bus/pci/devices/"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is one with a card of each sort, unless others are given.
func host(t *testing.T, cards ...sim.Card) *sim.Host {
	t.Helper()
	if len(cards) == 0 {
		cards = []sim.Card{sim.Flex(flex, 1), sim.A2(a2, 0), sim.RX(rx), sim.T4("0000:88:00.0", 1)}
	}
	h, err := sim.Open(t.TempDir(), cards...)
	must(t, err)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// functions is the backend on a host whose card has n virtual functions on.
func functions(t *testing.T, h *sim.Host, id gpu.ID, n int) *sriov.Functions {
	t.Helper()
	b := sriov.NewFunctions(h.Sysfs, options(h))
	must(t, b.SetVFs(t.Context(), id, n))
	return b
}

func options(h *sim.Host) sriov.Options {
	return sriov.Options{Run: h.RunTool, UnbindLock: sriov.UnbindLock(h.Proc)}
}

func driver(t *testing.T, h *sim.Host, address string) string {
	t.Helper()
	name, err := sysfs.Base(h.Sysfs, devices+address+"/driver")
	must(t, err)
	return name
}

// state is what a function has: its driver and its override.
type state struct{ driver, override string }

func stateOf(t *testing.T, h *sim.Host, address string) state {
	t.Helper()
	override, err := h.Sysfs.Read(devices + address + "/driver_override")
	must(t, err)
	return state{driver(t, h, address), override}
}

func (s state) want(t *testing.T, h *sim.Host, addresses ...string) {
	t.Helper()
	for _, a := range addresses {
		if got := stateOf(t, h, a); got != s {
			t.Errorf("function %s is %+v, want %+v", a, got, s)
		}
	}
}

func write(t *testing.T, h *sim.Host, name, value string) {
	t.Helper()
	must(t, h.Sysfs.Write(t.Context(), name, value))
}

// toVFIO is what somebody else does with a function.
func toVFIO(t *testing.T, h *sim.Host, address string) {
	t.Helper()
	write(t, h, devices+address+"/driver_override", "vfio-pci")
	if d := driver(t, h, address); d != "" {
		write(t, h, "bus/pci/drivers/"+d+"/unbind", address)
	}
	write(t, h, "bus/pci/drivers_probe", address)
}

func writes(t *testing.T, h *sim.Host) []sim.Write {
	t.Helper()
	w, err := h.Writes()
	must(t, err)
	return w
}

func wantCode(t *testing.T, err error, code gpu.Code) {
	t.Helper()
	if gpu.CodeOf(err) != code || err == nil {
		t.Errorf("%v: %s, want %s", err, gpu.CodeOf(err), code)
	}
}

// A broken sysfs fails one write, or all from one on, as for a daemon that is killed
// there.
type broken struct {
	*sim.Sysfs

	mu     sync.Mutex
	at     int  // the write, from 1
	after  bool // it has taken effect all the same
	killed bool // none works from there on
	n      int
}

func (b *broken) Write(ctx context.Context, name, value string) error {
	b.mu.Lock()
	b.n++
	n := b.n
	b.mu.Unlock()
	fails := n == b.at || b.killed && n > b.at
	if fails && (!b.after || n > b.at) {
		return syscall.EIO
	}
	err := b.Sysfs.Write(ctx, name, value)
	if fails {
		return errors.Join(syscall.EIO, err)
	}
	return err
}
