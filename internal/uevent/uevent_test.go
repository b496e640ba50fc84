package uevent

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func message(head string, fields ...string) []byte {
	return []byte(head + "\x00" + strings.Join(fields, "\x00") + "\x00")
}

var (
	parentChange = message("change@/devices/virtual/mbochs/mbochs",
		"ACTION=change", "DEVPATH=/devices/virtual/mbochs/mbochs", "SUBSYSTEM=mbochs", "MDEV_STATE=registered", "SEQNUM=2417")
	udevMessage = []byte("libudev\x00\xfe\xed\xca\xfe\x28\x00\x00\x00")
)

func TestParse(t *testing.T) {
	got, err := Parse(parentChange)
	want := Event{
		Action: "change", DevPath: "/devices/virtual/mbochs/mbochs", Subsystem: "mbochs", Seq: 2417,
		Vars: map[string]string{
			"ACTION": "change", "DEVPATH": "/devices/virtual/mbochs/mbochs", "SUBSYSTEM": "mbochs", "MDEV_STATE": "registered", "SEQNUM": "2417",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if got.Name() != "mbochs" || (Event{Missed: true}).Name() != "" {
		t.Error(got.Name())
	}
	for _, bad := range [][]byte{
		nil, udevMessage, []byte("add@/devices/x"), message("add@devices/x", "ACTION=add", "DEVPATH=devices/x", "SEQNUM=1"),
		message("add@/x", "ACTION=remove", "DEVPATH=/x", "SEQNUM=1"), message("add@/x", "ACTION=add", "DEVPATH=/y", "SEQNUM=1"),
		message("add@/x", "ACTION=add", "DEVPATH=/x", "SEQNUM=-1"), message("add@/x", "ACTION=add", "DEVPATH=/x"),
		message("@/x", "ACTION=", "DEVPATH=/x", "SEQNUM=1"),
	} {
		if e, err := Parse(bad); err == nil {
			t.Errorf("%q was read as %+v", bad, e)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(parentChange)
	f.Add(udevMessage)
	f.Add([]byte("add@/x\x00ACTION=add\x00DEVPATH=/x\x00SEQNUM=1"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		e, err := Parse(msg)
		if err != nil {
			return
		}
		fields := []string{}
		for k, v := range e.Vars {
			fields = append(fields, k+"="+v)
		}
		back, err := Parse(message(e.Action+"@"+e.DevPath, fields...))
		if diff := cmp.Diff(e, back); diff != "" || err != nil {
			t.Fatalf("%q: %v\n%s", msg, err, diff)
		}
	})
}

type received struct {
	msg    []byte
	kernel bool
	err    error
}

type fakeSource struct {
	in     chan received
	closed chan struct{}
}

func (f *fakeSource) Receive(buf []byte) (int, bool, error) {
	select {
	case r := <-f.in:
		return copy(buf, r.msg), r.kernel, r.err
	case <-f.closed:
		return 0, false, os.ErrClosed
	}
}

func (f *fakeSource) Close() error { close(f.closed); return nil }

func TestListen_T24(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &fakeSource{in: make(chan received), closed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		events := ListenTo(ctx, src)
		src.in <- received{msg: parentChange} // somebody pretends
		src.in <- received{msg: udevMessage, kernel: true}
		src.in <- received{msg: parentChange, kernel: true}
		if e := <-events; e.Name() != "mbochs" || e.Missed {
			t.Errorf("%+v", e)
		}
		src.in <- received{err: syscall.ENOBUFS}
		src.in <- received{msg: parentChange, kernel: true}
		if e := <-events; !e.Missed {
			t.Errorf("an overflow was not told: %+v", e)
		}
		if e := <-events; e.Name() != "mbochs" {
			t.Errorf("nothing is heard after an overflow: %+v", e)
		}
		// Nobody reads: the listener must end all the same.
		for range cap(events) + 1 {
			src.in <- received{msg: parentChange, kernel: true}
		}
		cancel()
		synctest.Wait()
		for range events {
		}
		<-src.closed
	})
}

func TestListenSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &fakeSource{in: make(chan received, 1), closed: make(chan struct{})}
		src.in <- received{err: errors.New("broken")}
		events := ListenTo(t.Context(), src)
		if e := <-events; !e.Missed {
			t.Errorf("%+v", e)
		}
		if _, open := <-events; open {
			t.Error("still open")
		}
		<-src.closed
	})
}

// The kernel's own socket: opening, waiting and ending work without root.
func TestListenKernel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	events, err := Listen(ctx)
	if err != nil {
		t.Skip(err)
	}
	cancel()
	for range events {
	}
}

func TestNames_T24(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		events := make(chan Event)
		got := names(ctx, events)
		for e, want := range map[*Event]string{
			{Missed: true}:                        "",
			{DevPath: "/d/x", Subsystem: "mdev"}:  "x",
			{DevPath: "/d/0:0", Subsystem: "pci"}: "0:0",
			{DevPath: "/d/m", Vars: map[string]string{"MDEV_STATE": "unregistered"}}: "m",
		} {
			events <- Event{DevPath: "/d/eth0", Subsystem: "net"}
			events <- *e
			if name := <-got; name != want {
				t.Errorf("%+v is %q", e, name)
			}
		}
		cancel()
		events <- Event{Missed: true} // nobody reads
		close(events)
		synctest.Wait()
		if _, open := <-got; open {
			t.Error("still open")
		}
	})
}
