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
		limits func(*Limits)
		kind   FailureKind
		phase  Phase
	}{
		{"hang", func(l *Limits) { l.Launch = 300 * time.Millisecond }, KindAppliance, PhaseLaunch},
		{"silent", func(l *Limits) { l.Quiet = 3 * time.Second }, KindSilent, PhaseConvert},
		{"busy", func(l *Limits) { l.Wall, l.Launch = 3*time.Second, time.Second }, KindSlow, PhaseLaunch},
	} {
		t.Run(c.mode, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			conv := New(h.cfg)
			if _, err := conv.Probe(t.Context()); err != nil { // not within the limits
				t.Fatal(err)
			}
			conv.cfg.Limits = quick()
			conv.cfg.Limits.LogBytes = 1 << 20
			c.limits(&conv.cfg.Limits)
			h.tell("v2v", c.mode)
			_, err := conv.Convert(t.Context(), h.job(conv))
			f, ok := errors.AsType[*Failure](err)
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
