package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/internal/run"
	"gpuvirt/p2v/report"
)

// ErrNothingToWatch is what Watch answers where no GPU tells what it does.
var ErrNothingToWatch = errors.New("no GPU here tells what it does")

const (
	minInterval = time.Second
	maxInterval = 10 * time.Second // of nvidia-smi's monitor of processes
	longestPart = time.Minute
	partsAtMost = 10 // of a short window
	failures    = 3  // in a row, after which it gives up
)

// Watch looks at what the GPUs do, for the time of window and with interval between two
// samples, and gives what it has seen to a function, part by part: every minute, or tenth of
// the window where that is shorter. Each part has what was seen since the one before; they
// are put together by Merge. Watch ends with the window, with ctx, which is no error, or
// when the function fails.
//
// One program of NVIDIA's runs for each part and prints the samples: to begin one anew for
// each would cost the source the start of the driver's library each time. Where a DCGM runs,
// it is asked, since it alone knows how much of a GPU works; not while a program is profiled,
// which DCGM would disturb.
func (i *Inspector) Watch(ctx context.Context, window, interval time.Duration, each func(report.Usage) error) error {
	interval = min(max(interval, minInterval), maxInterval)
	w, err := i.watch(ctx, interval)
	if err != nil {
		return err
	}
	length := max(min(window/partsAtMost, longestPart), 2*interval)
	failed := 0
	for end := time.Now().Add(window); ctx.Err() == nil; {
		left := time.Until(end)
		if left < interval/2 {
			return nil
		}
		u, err := w.part(ctx, min(length, left))
		if u.Samples > 0 || err == nil {
			failed = 0
		}
		if err := each(u); err != nil {
			return err
		}
		if err != nil && ctx.Err() == nil {
			if failed++; failed == failures {
				return fmt.Errorf("cannot watch the GPUs: %w", err)
			}
			w.dcgm = nil // nvidia-smi tells less, and may still tell it
			select {
			case <-ctx.Done():
			case <-time.After(min(interval, time.Until(end))):
			}
		}
	}
	return nil
}

// A watcher samples.
type watcher struct {
	*Inspector
	interval time.Duration
	fields   []string
	pci      map[string]string // by the driver's index
	uuid     map[string]string // by address
	dcgm     map[string]string // addresses by DCGM's number; nil: it is not asked
	mig      bool
}

// What is asked of each GPU; drivers before the 520s do not know the second half.
var (
	basicFields = []string{"index", "pci.bus_id", "uuid", "mig.mode.current", "memory.used", "utilization.gpu", "utilization.memory", "power.draw"}
	moreFields  = []string{"utilization.encoder", "utilization.decoder", "utilization.jpeg", "utilization.ofa"}
)

const csv = "--format=csv,noheader,nounits"

func (i *Inspector) watch(ctx context.Context, interval time.Duration) (*watcher, error) {
	s := &scene{Inspector: i, ctx: ctx}
	if why := s.notAsked(s.pciGPUs()); why != "" {
		return nil, fmt.Errorf("%w: %s", ErrNothingToWatch, why)
	}
	w := &watcher{Inspector: i, interval: interval, pci: map[string]string{}, uuid: map[string]string{}}
	w.fields = slices.Concat(basicFields, moreFields)
	text, err := i.tools.out(ctx, "nvidia-smi", "--query-gpu="+strings.Join(w.fields, ","), csv)
	if _, refused := errors.AsType[*run.ExitError](err); refused {
		w.fields = basicFields
		text, err = i.tools.out(ctx, "nvidia-smi", "--query-gpu="+strings.Join(w.fields, ","), csv)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNothingToWatch, err)
	}
	for line := range strings.Lines(text) {
		v := row(line)
		if len(v) != len(w.fields) {
			continue
		}
		at := smiAddress(v[1])
		w.pci[v[0]], w.uuid[at] = at, said(v[2])
		w.mig = w.mig || v[3] == "Enabled"
	}
	if len(w.pci) == 0 {
		return nil, ErrNothingToWatch
	}
	if !i.profiled && i.tools.find("dcgmi") != "" {
		if text, err := i.tools.out(ctx, "dcgmi", "discovery", "-l"); err == nil {
			w.dcgm = discovered(text)
		}
	}
	return w, nil
}

func row(line string) []string {
	v := strings.Split(strings.TrimSpace(line), ",")
	for n := range v {
		v[n] = strings.TrimSpace(v[n])
	}
	return v
}

// A printed is a line of one of the programs that run.
type printed struct {
	line  string
	parse func(string)
}

// part watches for a while.
func (w *watcher) part(ctx context.Context, d time.Duration) (report.Usage, error) {
	p := newPart(w)
	begun, cpu := time.Now(), cpuSeconds()
	p.u.Start = w.o.Now().UTC()
	inner, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	lines := make(chan printed, 256)
	streams := w.streams(p)
	ended := make(chan error, len(streams))
	for _, st := range streams {
		go func() { ended <- w.stream(inner, st, lines) }()
	}
	var failed error
	running := len(streams)
	for inner.Err() == nil && running > 0 {
		select {
		case l := <-lines:
			if p.u.Samples == 0 {
				p.u.Cost.LongestSeconds = time.Since(begun).Seconds()
			}
			l.parse(l.line)
		case err := <-ended:
			running--
			failed = errors.Join(failed, err)
		case <-inner.Done():
		}
	}
	cancel()
	// They end soon, or hang in the driver for good, and then nobody can end them.
	grace := time.NewTimer(5 * time.Second)
	defer grace.Stop()
	for ; running > 0; running-- {
		select {
		case err := <-ended:
			failed = errors.Join(failed, err)
		case <-grace.C:
			return p.end(time.Since(begun), cpuSeconds()-cpu), errors.New("a program does not end")
		}
	}
	u := p.end(time.Since(begun), cpuSeconds()-cpu)
	if u.Samples == 0 && failed == nil {
		failed = fmt.Errorf("%w within %s", errSlow, d)
	}
	return u, failed
}

// A stream is a program that prints samples until it is ended.
type stream struct {
	name  string
	args  []string
	parse func(string)
	extra bool // without it the watching still is one
}

func (w *watcher) streams(p *usagePart) []stream {
	millis := itoa(int(w.interval.Milliseconds()))
	query := stream{name: "nvidia-smi", args: []string{"--query-gpu=" + strings.Join(w.fields, ","), csv, "-lms", millis}, parse: p.gpuRow}
	if w.dcgm != nil {
		query = stream{name: "dcgmi", args: []string{"dmon", "-e", strings.Join(dcgmFields, ","), "-d", millis}, parse: p.dcgmRow}
	}
	// Its own monitor of processes knows nothing of MIG.
	each := stream{name: "nvidia-smi", args: []string{"pmon", "-s", "um", "-o", "T", "-d", itoa(int(w.interval.Seconds()))}, parse: p.pmonRow, extra: true}
	if w.mig {
		each.args = []string{"--query-compute-apps=timestamp,gpu_bus_id,pid,used_memory", csv, "-lms", millis}
		each.parse = p.appRow
	}
	return []stream{query, each}
}

// stream runs a program for as long as ctx lasts.
func (w *watcher) stream(ctx context.Context, st stream, lines chan<- printed) error {
	file := w.tools.find(st.name)
	if file == "" {
		return fmt.Errorf("%s: %w", st.name, errAbsent)
	}
	program := run.Program{Limit: small, Apart: true, Grace: time.Second, Line: func(line string) {
		select {
		case lines <- printed{line, st.parse}:
		case <-ctx.Done():
		}
	}}
	_, err := program.Run(ctx, file, st.args...)
	switch {
	case ctx.Err() != nil || err == nil && st.extra:
		return nil
	case st.extra:
		w.log.WarnContext(ctx, "cannot watch processes", "err", err)
		return nil
	case err == nil:
		return fmt.Errorf("%s ended by itself", st.name)
	}
	return fmt.Errorf("%s: %w", st.name, err)
}

// cpuSeconds is what this program, and those that it ran and that have ended, have taken.
func cpuSeconds() float64 {
	sum := 0.0
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if unix.Getrusage(who, &r) == nil {
			sum += float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
		}
	}
	return sum
}
