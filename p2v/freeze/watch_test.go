package freeze

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What the guard does, and when: with a limit of a minute, to which it adds its grace.
func TestWatch(t *testing.T) {
	const limit = time.Minute
	type event struct {
		at time.Duration
		do func(w *watched)
	}
	for name, c := range map[string]struct {
		events []event
		want   []string // what it did, and when
	}{
		"the other is killed": {
			[]event{{time.Second, (*watched).cut}},
			[]string{"1s thaw /", "1s thaw /boot", "1s start db.service", "1s ended"},
		},
		"all is clear": {
			[]event{{time.Second, func(w *watched) { w.tell(note{Do: noteClear, Index: 1}) }}, {2 * time.Second, (*watched).cut}},
			[]string{"2s thaw /boot", "2s start db.service", "2s ended"},
		},
		"done": {
			[]event{{time.Second, func(w *watched) { w.tell(note{Do: noteDone}) }}},
			[]string{"1s ended"},
		},
		"a signal": {
			[]event{{time.Second, (*watched).signal}},
			[]string{"1s thaw /", "1s thaw /boot", "1s start db.service", "1s ended"},
		},
		// It stays there for what the other may be freezing still.
		"the other hangs": {
			[]event{{2 * limit, (*watched).cut}},
			[]string{"1m5s thaw /", "1m5s thaw /boot", "1m5s start db.service", "2m0s thaw /", "2m0s thaw /boot", "2m0s ended"},
		},
		"off, and the other is killed": {
			[]event{{time.Second, (*watched).off}, {2 * time.Second, (*watched).cut}, {3 * time.Second, (*watched).signal}},
			[]string{"2s power off", "1m5s thaw /", "1m5s thaw /boot", "1m5s start db.service", "1m5s ended"},
		},
		"off, and the other hangs": {
			[]event{{time.Second, (*watched).off}, {time.Second, (*watched).signal}, {2 * limit, (*watched).cut}},
			[]string{"11s power off", "1m5s thaw /", "1m5s thaw /boot", "1m5s start db.service", "2m0s thaw /", "2m0s thaw /boot", "2m0s ended"},
		},
		// The order holds, whatever the time.
		"off at the last moment": {
			[]event{{limit - time.Second, (*watched).off}, {2 * limit, (*watched).cut}},
			[]string{"1m9s power off", "1m9s thaw /", "1m9s thaw /boot", "1m9s start db.service", "2m0s thaw /", "2m0s thaw /boot", "2m0s ended"},
		},
		"off, which fails": {
			[]event{{time.Second, (*watched).off}, {2 * time.Second, func(w *watched) { w.tell(note{Do: noteOn, Stay: true}) }}, {3 * time.Second, (*watched).cut}},
			[]string{"1m5s thaw /", "1m5s thaw /boot", "1m5s start db.service", "1m5s ended"},
		},
		"off, of which nobody heard": {
			[]event{{time.Second, (*watched).off}, {2 * time.Second, func(w *watched) { w.tell(note{Do: noteOn}) }}, {3 * time.Second, (*watched).cut}},
			[]string{"3s thaw /", "3s thaw /boot", "3s start db.service", "3s ended"},
		},
		"off too late": {
			[]event{{limit + guardGrace + time.Second, func(w *watched) {
				w.off()
				if got, want := w.replies.String(), `{"error":"the time is over, and all is thawed"}`; !bytes.HasSuffix([]byte(got), []byte(want)) {
					w.t.Errorf("it says %q", got)
				}
			}}, {2 * limit, (*watched).cut}},
			[]string{"1m5s thaw /", "1m5s thaw /boot", "1m5s start db.service", "2m0s thaw /", "2m0s thaw /boot", "2m0s ended"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startWatch(t, limit)
				began := time.Now()
				for _, e := range c.events {
					w.until(began.Add(e.at))
					e.do(w)
					synctest.Wait()
				}
				w.until(began.Add(time.Hour))
				if d := cmp.Diff(c.want, w.did); d != "" {
					t.Error(d)
				}
			})
		})
	}
}

// A watched is a guard, and what it did.
type watched struct {
	t       *testing.T
	kernel  *fakeKernel
	replies bytes.Buffer
	notes   chan noted
	cancel  context.CancelFunc
	began   time.Time
	ended   chan struct{}
	over    bool
	did     []string
}

func startWatch(t *testing.T, limit time.Duration) *watched {
	t.Helper()
	k := newKernel(t)
	d := &fakeSystemd{k: k, runs: map[string]bool{}}
	w := &watched{t: t, kernel: k, notes: make(chan noted), began: time.Now(), ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	g := newWatch(Config{Kernel: k, Systemctl: d.systemctl}, &w.replies)
	go func() {
		defer close(w.ended)
		if err := g.run(ctx, w.notes); err != nil {
			t.Error(err)
		}
	}()
	w.tell(note{Do: noteArm, LimitMS: limit.Milliseconds()})
	w.tell(note{Do: noteStopped, Units: []string{"db.service"}})
	for i, name := range []string{"/boot", "/"} {
		f, err := k.Open(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		k.frozen[name] = true
		w.notes <- noted{note{Do: noteFreezing, Index: i}, f}
	}
	if got := w.replies.String(); got != "{}" {
		t.Errorf("it says %q", got)
	}
	return w
}

func (w *watched) tell(n note) {
	w.notes <- noted{note: n}
	synctest.Wait()
}

func (w *watched) cut()    { close(w.notes) }
func (w *watched) signal() { w.cancel() }
func (w *watched) off()    { w.tell(note{Do: noteOff}) }

// until lets the time pass, and notes what is done meanwhile.
func (w *watched) until(end time.Time) {
	for {
		synctest.Wait()
		at := time.Since(w.began).String() + " "
		for _, call := range w.kernel.took() {
			w.did = append(w.did, at+call)
		}
		select {
		case <-w.ended:
			if !w.over {
				w.did = append(w.did, at+"ended")
			}
			w.over = true
		default:
		}
		if !time.Now().Before(end) {
			return
		}
		<-time.After(min(time.Second, time.Until(end)))
	}
}

// What cannot be thawed is told, and does not keep the rest.
func TestWatchFails(t *testing.T) {
	k := newKernel(t)
	k.fails["thaw /"] = errors.New("the disk is gone")
	w := newWatch(Config{Kernel: k, Systemctl: (&fakeSystemd{k: k, runs: map[string]bool{}}).systemctl}, &bytes.Buffer{})
	for i, name := range []string{"/boot", "/"} {
		f, err := k.Open(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		k.frozen[name] = true
		w.held[i], w.order = f, append(w.order, i)
	}
	if err := w.thawAll(); err == nil || err.Error() != "cannot thaw: the disk is gone" {
		t.Error(err)
	}
	if d := cmp.Diff([]string{"/"}, k.is()); d != "" {
		t.Error(d)
	}
}
