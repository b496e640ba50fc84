package vmapi

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

var errNoSocket = libvirt.Error{
	Code:    libvirt.ERR_SYSTEM_ERROR,
	Message: "Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory",
}

// T23: without libvirt every call fails at once, and none says "nothing in use".
func TestT23Unavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{refuse: errNoSocket}
		c := start(t, lv, Config{})
		began := time.Now()
		vms, err := c.VMs(t.Context())
		wantCode(t, err, gpu.CodeUnavailable, "No such file or directory")
		if vms != nil {
			t.Errorf("got VMs %v, want nil", vms)
		}
		_, err = c.VM(t.Context(), "web1")
		wantCode(t, err, gpu.CodeUnavailable, `cannot reach libvirt at "qemu:///system"`)
		wantCode(t, c.Attach(t.Context(), uuidA, device(mdev1), both), gpu.CodeUnavailable, "")
		wantCode(t, c.Detach(t.Context(), uuidA, gpu.Alias(mdev1), both), gpu.CodeUnavailable, "")
		info, err := c.Info(t.Context())
		wantCode(t, err, "", "")
		if info.Connected || !strings.Contains(info.Reason, "No such file") {
			t.Errorf("got %+v", info)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("took %s, want an answer at once", d)
		}
	})
}

func TestUnavailableBeforeRun(t *testing.T) {
	c := newClient(Config{}, (&fakeLibvirt{}).open)
	_, err := c.VMs(t.Context())
	wantCode(t, err, gpu.CodeUnavailable, "not connected yet")
}

func TestRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, &fakeLibvirt{}, Config{})
		if err := c.Run(t.Context()); err == nil {
			t.Error("a second Run did not fail")
		}
	})
}

func TestLibraryMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{refuse: virError(libvirt.ERR_INTERNAL_ERROR, "Failed to open libvirt.so.0")}
		c := start(t, lv, Config{})
		_, err := c.VMs(t.Context())
		wantCode(t, err, gpu.CodeUnavailable, "libvirt.so.0")
		if e := fault(err, ""); !strings.Contains(e.Hint, "install the package libvirt0") {
			t.Errorf("hint %q", e.Hint)
		}
	})
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged lockedBuffer
		lv, vm := oneVM(guestPrompt, both)
		c := start(t, lv, Config{Log: slog.New(slog.NewTextHandler(&logged, nil))})
		if e := <-c.Events(); e.Kind != kindConnected || e.UUID != "" {
			t.Errorf("first event %+v", e)
		}
		lv.set(func() { lv.refuse = errNoSocket })
		lv.die()
		if e := <-c.Events(); e.Kind != kindDisconnected {
			t.Errorf("event %+v", e)
		}
		_, err := c.VMs(t.Context())
		wantCode(t, err, gpu.CodeUnavailable, "")

		<-time.After(10 * time.Minute)
		tries := 0
		lv.set(func() { lv.refuse, tries = nil, lv.opens })
		if tries < 120 || tries > 250 { // 5 s apart at most, half of it by chance
			t.Errorf("%d tries in ten minutes", tries)
		}
		if n := strings.Count(logged.String(), "level=WARN"); n > 2 {
			t.Errorf("logged %d warnings in one outage:\n%s", n, logged.String())
		}
		began := time.Now()
		if e := <-c.Events(); e.Kind != kindConnected {
			t.Errorf("event %+v", e)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("connected after %s", d)
		}
		// Events are registered again.
		wantCode(t, c.Detach(t.Context(), uuidA, gpu.Alias(mdev1), both), "", "")
		if e := <-c.Events(); e.Kind != kindRemoved || e.UUID != vm.uuid || e.Alias != gpu.Alias(mdev1) {
			t.Errorf("event %+v", e)
		}
	})
}

// A connection whose end libvirt did not tell of is found dead by the next call.
func TestLossFoundByACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, _ := oneVM(guestPrompt, both)
		c := start(t, lv, Config{})
		lv.set(func() { lv.conns[0].closed = true })
		_, err := c.VMs(t.Context())
		wantCode(t, err, gpu.CodeUnavailable, "client socket is closed")
		<-time.After(time.Second)
		_, err = c.VMs(t.Context())
		wantCode(t, err, "", "")
	})
}

func TestDisconnectMidCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, _ := oneVM(guestPrompt, both)
		slow := make(chan struct{})
		lv.hang = map[string]chan struct{}{"read " + uuidA: slow}
		lv.fail = map[string]error{"read " + uuidA: virError(libvirt.ERR_RPC, "internal error: End of file while reading data: Input/output error")}
		c := start(t, lv, Config{})
		time.AfterFunc(time.Second, func() {
			lv.die()
			close(slow)
		})
		vms, err := c.VMs(t.Context())
		wantCode(t, err, gpu.CodeUnavailable, "cannot read 1 of 1 VMs")
		if len(vms) != 0 {
			t.Errorf("got %v", vms)
		}
	})
}

// A VM that cannot be read is an error, not a VM without devices; the others are
// told of all the same.
func TestT23OneVMHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, _ := oneVM(guestPrompt, both)
		lv.vms = append(lv.vms, &fakeVM{uuid: uuidB, name: "stuck", running: true})
		slow := make(chan struct{})
		lv.hang = map[string]chan struct{}{"read " + uuidB: slow}
		c := start(t, lv, Config{})

		for range 6 { // more often than calls may be under way
			vms, err := c.VMs(t.Context())
			wantCode(t, err, gpu.CodeUnavailable, "cannot read 1 of 2 VMs")
			if len(vms) != 1 || vms[0].UUID != uuidA || len(vms[0].Hostdevs) != 2 {
				t.Errorf("got %+v", vms)
			}
			if e := fault(err, ""); len(e.Blockers) != 1 || e.Blockers[0].ID != uuidB {
				t.Errorf("blockers %+v", e.Blockers)
			}
		}
		began := time.Now()
		_, err := c.VM(t.Context(), uuidB)
		wantCode(t, err, gpu.CodeUnavailable, "has not yet answered an earlier call (read)")
		if d := time.Since(began); d != 0 {
			t.Errorf("took %s", d)
		}
		if info, _ := c.Info(t.Context()); info.LateCalls != 1 {
			t.Errorf("%d late calls, want 1", info.LateCalls)
		}
		close(slow)
		synctest.Wait()
		lv.set(func() { lv.hang = nil })
		vms, err := c.VMs(t.Context())
		wantCode(t, err, "", "")
		if len(vms) != 2 {
			t.Errorf("got %d VMs", len(vms))
		}
	})
}

func TestBoundOfCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		defer close(slow)
		lv := &fakeLibvirt{hang: map[string]chan struct{}{"list": slow}}
		c := start(t, lv, Config{})
		for range 3 * maxCalls {
			_, err := c.VMs(t.Context())
			wantCode(t, err, gpu.CodeUnavailable, "")
		}
		lv.mu.Lock()
		defer lv.mu.Unlock()
		n := 0
		for _, call := range lv.calls {
			if call == "list" {
				n++
			}
		}
		if n != maxCalls {
			t.Errorf("%d calls under way, want %d", n, maxCalls)
		}
	})
}

func TestVanishedVMIsSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, _ := oneVM(guestPrompt, both)
		lv.vms = append(lv.vms, &fakeVM{uuid: uuidB, name: "short", running: true})
		lv.fail = map[string]error{"read " + uuidB: virError(libvirt.ERR_NO_DOMAIN, "Domain not found")}
		c := start(t, lv, Config{})
		vms, err := c.VMs(t.Context())
		wantCode(t, err, "", "")
		if len(vms) != 1 {
			t.Errorf("got %d VMs, want 1", len(vms))
		}
	})
}

func TestVMByNameOrUUID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{vms: []*fakeVM{
			{uuid: uuidA, name: "web1", autostart: true, config: []libvirtxml.DomainHostdev{}},
			{uuid: uuidB, name: mdev1}, // a name that looks like a UUID
		}}
		c := start(t, lv, Config{})
		want := gpu.VM{UUID: uuidA, Name: "web1", State: gpu.VMShutoff, Autostart: true, Persistent: true, Hostdevs: []gpu.Hostdev{}}
		for _, key := range []string{"web1", uuidA, strings.ToUpper(uuidA)} {
			got, err := c.VM(t.Context(), key)
			wantCode(t, err, "", "")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("VM(%q) (-want +got):\n%s", key, diff)
			}
		}
		if got, err := c.VM(t.Context(), mdev1); err != nil || got.UUID != uuidB {
			t.Errorf("got %v, %v", got, err)
		}
		_, err := c.VM(t.Context(), "nosuch")
		wantCode(t, err, gpu.CodeVMNotFound, `cannot find VM "nosuch"`)
		_, err = c.VM(t.Context(), mdev2)
		wantCode(t, err, gpu.CodeVMNotFound, "")
	})
}

// Run ends in time though libvirt answers nothing, not even to opening.
func TestRunEndsWhileLibvirtHangs(t *testing.T) {
	for _, name := range []string{"open", "list"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := make(chan struct{})
				lv := &fakeLibvirt{hang: map[string]chan struct{}{name: slow}}
				c := newClient(Config{}, lv.open)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- c.Run(ctx) }()
				synctest.Wait()
				short, stop := context.WithTimeout(t.Context(), time.Second)
				defer stop()
				_, err := c.VMs(short)
				wantCode(t, err, gpu.CodeUnavailable, "")
				began := time.Now()
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Run: %v", err)
				}
				if d := time.Since(began); d > drainTimeout {
					t.Errorf("Run ended after %s", d)
				}
				close(slow)
				synctest.Wait()
				if c := lv.conns; len(c) != 1 || !c[0].closed {
					t.Error("the connection was not closed")
				}
			})
		})
	}
}

// A listener that is too slow is told to look at everything, and libvirt's loop
// does not wait for it.
func TestEventsOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, _ := oneVM(guestPrompt, both)
		c := start(t, lv, Config{})
		for range 3 * feedLimit {
			lv.emit(gpu.VMEvent{UUID: uuidA, Kind: kindLifecycle})
		}
		<-c.Events() // the one that waited to be taken: connected
		if e := <-c.Events(); e.UUID != "" {
			t.Errorf("got %+v, want an event without UUID", e)
		}
		n := 0
		for {
			synctest.Wait()
			select {
			case <-c.Events():
				n++
				continue
			default:
			}
			break
		}
		if n >= feedLimit {
			t.Errorf("%d events left", n)
		}
	})
}
