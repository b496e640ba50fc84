package convert

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
)

func TestConvertEndsWhatTakesTooLong(t *testing.T) {
	for _, c := range []struct {
		mode   string
		limits func(l *Limits, longer time.Duration)
		kind   FailureKind
		phase  Phase
	}{
		{"hang", func(l *Limits, longer time.Duration) { l.Launch = 300 * time.Millisecond * longer }, KindAppliance, PhaseLaunch},
		{"silent", func(l *Limits, longer time.Duration) { l.Quiet = 2 * time.Second * longer }, KindSilent, PhaseConvert},
		{"busy", func(l *Limits, longer time.Duration) { l.Wall, l.Launch = 2*time.Second*longer, time.Second*longer }, KindSlow, PhaseLaunch},
	} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			conv := New(h.cfg)
			if _, err := conv.Probe(t.Context()); err != nil { // not within the limits
				t.Fatal(err)
			}
			h.tell("v2v", c.mode)
			var f *Failure
			var ok bool
			var err error
			// With longer ones again where it had not come so far: a busy machine takes its time.
			for longer := time.Duration(1); (f == nil || f.Phase != c.phase || f.Kind != c.kind) && longer <= 16; longer *= 2 {
				conv.cfg.Limits = quick(longer)
				conv.cfg.Limits.LogBytes = 1 << 20
				c.limits(&conv.cfg.Limits, longer)
				_, err = conv.Convert(t.Context(), h.job(conv))
				f, ok = errors.AsType[*Failure](err)
			}
			if !ok || f.Kind != c.kind || f.Phase != c.phase {
				t.Errorf("%+v, %v", f, err)
			}
			wantCode(t, err, gpu.CodeUnavailable)
			h.clean()
		})
	}
}

// What a cancelled run has started ends with it.
func TestConvertCancelled(t *testing.T) {
	h := newHost(t)
	h.tell("v2v", "children")
	c := New(h.cfg)
	job := h.job(c)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("a person says so")
	job.Progress = func(p Progress) {
		if p.Phase == PhaseInspect {
			cancel(why)
		}
	}
	if _, err := c.Convert(ctx, job); !errors.Is(err, why) {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(h.seen("child"))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(text), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d goes on", pid)
		}
		<-time.After(10 * time.Millisecond)
	}
	h.clean()
}

func TestConvertFillsNoDisk(t *testing.T) {
	h := newHost(t)
	h.tell("v2v", "fill")
	h.cfg.Confine = run.Confine{FileBytes: 4 << 20}
	c := New(h.cfg)
	job := h.job(c)
	_, err := c.Convert(t.Context(), job)
	if _, ok := errors.AsType[*Failure](err); !ok {
		t.Error(err)
	}
	if st, err := os.Stat(job.Disks[0].Path); err != nil || st.Size() > 4<<20 {
		t.Error(st.Size(), err)
	}
}

func TestConvertReadsNoEndlessMessages(t *testing.T) {
	h := newHost(t)
	h.tell("v2v", "spam")
	c := New(h.cfg)
	_, err := c.Convert(t.Context(), h.job(c))
	f, ok := errors.AsType[*Failure](err)
	if !ok || f.Text != errTooMuch.Error() {
		t.Error(err)
	}
	h.clean()
}
