package freeze

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// A watch is a guard from within: it thaws what the other process has frozen when that is
// killed, or hangs.
type watch struct {
	calls

	kernel    Kernel
	systemctl Systemctl
	conn      io.Writer // for replies

	held  map[int]*os.File
	order []int // in which they were frozen
	units []string

	until *time.Timer // when the time is over
	over  bool        // it is
	thawn bool        // that was acted on
	// off is set while to power off is acknowledged, stay when that failed: nothing but the time
	// thaws then.
	off, stay bool
	late      *time.Timer // when we power off ourselves
}

// Guard is what a process does that Serve has started as its guard: Config.Guard has the
// arguments by which the program gets here.
func Guard(ctx context.Context, cfg Config) error {
	cfg = cfg.filled()
	conn, err := unixConn(os.NewFile(guardFD, "guard"))
	if err != nil {
		return fmt.Errorf("cannot guard: only what freezes starts this: %w", err)
	}
	defer conn.Close() //nolint:errcheck // the other side has gone, or is to see that we have
	cfg.Kernel.Pin()
	w := newWatch(cfg, conn)
	defer w.running.Wait()
	return w.run(ctx, hearNotes(conn))
}

func newWatch(cfg Config, conn io.Writer) *watch {
	return &watch{kernel: cfg.Kernel, systemctl: cfg.Systemctl, conn: conn, held: map[int]*os.File{}, until: stopped(), late: stopped()}
}

// stopped is a timer that does not fire until it is reset.
func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (w *watch) run(ctx context.Context, notes <-chan noted) error {
	quit := ctx.Done()
	for {
		select {
		case n, more := <-notes:
			if !more {
				notes = nil
				if w.off {
					w.powerOff()
				}
				if !w.stay {
					return w.thawAll()
				}
				break
			}
			if n.Do == noteDone {
				return nil
			}
			if err := w.hear(n); err != nil {
				return err
			}
		case <-w.until.C:
			w.over = true
		case <-w.late.C:
			w.powerOff()
		case <-quit:
			if !w.off && !w.stay {
				return w.thawAll()
			}
			quit = nil
		}
		if w.over && !w.off && !w.thawn {
			w.thawn, w.stay = true, false
			err := w.thawAll()
			if notes == nil {
				return err
			}
			// What is being frozen just now is not thawed by that: it is when the other has ended.
		}
	}
}

// powerOff carries out what was acknowledged and the other process did not do.
func (w *watch) powerOff() {
	_ = w.kernel.PowerOff() // it returns only with an error, and there is nobody to tell
	w.off, w.stay = false, true
	w.late.Stop()
}

func (w *watch) hear(n noted) error {
	switch n.Do {
	case noteArm:
		w.until.Reset(time.Duration(n.LimitMS)*time.Millisecond + guardGrace)
		return w.reply(reply{})
	case noteStopped:
		w.units = n.Units
	case noteFreezing:
		w.held[n.Index] = n.file
		w.order = append(w.order, n.Index)
	case noteClear:
		w.clear(n.Index)
	case noteOff:
		if w.thawn {
			return w.reply(reply{Error: "the time is over, and all is thawed"})
		}
		w.off = true
		w.late.Reset(offGrace)
		return w.reply(reply{})
	case noteOn:
		w.off, w.stay = false, n.Stay
		w.late.Stop()
	}
	return nil
}

func (w *watch) reply(r reply) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := w.conn.Write(text); err != nil {
		return w.thawAll()
	}
	return nil
}

func (w *watch) clear(i int) {
	if f := w.held[i]; f != nil {
		_ = f.Close() // only opened
	}
	delete(w.held, i)
	w.order = slices.DeleteFunc(w.order, func(o int) bool { return o == i })
}

// thawAll thaws what is frozen, the last first, and starts what was stopped.
func (w *watch) thawAll() error {
	var first error
	for _, i := range slices.Backward(w.order) {
		if f := w.held[i]; f != nil {
			if err := w.thaw(w.kernel, f); err != nil && first == nil {
				first = fmt.Errorf("cannot thaw: %w", err)
			}
		}
	}
	if err := w.systemctl.start(w.units); err != nil && first == nil {
		first = err
	} else if err == nil {
		w.units = nil
	}
	return first
}
