package freeze

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gpuvirt/p2v/lines"
	"gpuvirt/p2v/report"
)

// How long a source may take where the context allows for more.
const (
	speakLimit = time.Minute
	// Services that were stopped are started before a thaw is answered.
	thawLimit = startLimit + speakLimit
	// failLimit is how long a source that has acknowledged to power off is listened to: it says
	// so where it cannot.
	failLimit = 500 * time.Millisecond
	// beatEvery is between two words to a source that is frozen; it waits for several.
	beatEvery = silence / 6
)

// A Client speaks with a source. Its methods may be called concurrently; one waits for the
// other. When a context ends before an answer came, or the source says what it may not, the
// connection is closed, on which the source thaws, and the client is of no use any more.
type Client struct {
	mu    sync.Mutex
	conn  *lines.Conn
	facts Facts
	ended error
	every time.Duration                      // between two beats
	beats atomic.Pointer[context.CancelFunc] // ends them
}

// Connect hears what the source says of itself. The client closes the connection, also with an
// error, which is a *LostError or a *RefusedError, or the context's.
func Connect(ctx context.Context, conn io.ReadWriteCloser) (*Client, error) {
	c := &Client{conn: lines.New(conn, maxAnswer), every: beatEvery}
	ctx, cancel := context.WithTimeout(ctx, speakLimit)
	defer cancel()
	var h hello
	err := c.conn.Hear(ctx, &h)
	switch {
	case err != nil:
		err = unheard(err)
	case h.Version != version:
		err = lost("it speaks version %d, and wanted is %d", h.Version, version)
	case h.Error != "":
		err = &RefusedError{report.CleanString(h.Error)}
	default:
		err = h.Facts.clean()
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.facts = h.Facts
	return c, nil
}

// Facts returns what the source has said of itself. After Freeze, Filesystems are those that
// were frozen, and those that could not be.
func (c *Client) Facts() Facts {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.facts
	f.Filesystems = slices.Clone(f.Filesystems)
	return f
}

// Freeze stops the services that are named and freezes all filesystems on the disks. After the
// limit, at most MaxLimit, the source thaws by itself and starts the services again. The limit
// counts from now on, and includes the time that the services take to stop. Where the error
// is a *RefusedError all is as before.
func (c *Client) Freeze(ctx context.Context, limit time.Duration, stop []string) error {
	q := question{Do: doFreeze, LimitMS: limit.Milliseconds(), Stop: stop}
	if err := q.check(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.ask(ctx, limit+thawLimit, q)
	if err != nil {
		return err
	}
	if err := cleanFilesystems(a.Filesystems); err != nil {
		return c.end(err)
	}
	c.facts.Filesystems = a.Filesystems
	c.beat()
	return nil
}

// beat lets the source hear of us now and then, while it is frozen: one that hears nothing
// thaws.
func (c *Client) beat() {
	ctx, cancel := context.WithCancel(context.Background())
	c.still()
	c.beats.Store(&cancel)
	go func() {
		tick := time.NewTicker(c.every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if _, err := c.Quiet(ctx); err != nil {
				return // whoever asks next hears why
			}
		}
	}()
}

// Quiet returns what was written to the disks since they were frozen, but for what is swap;
// nothing where the server is at rest. It is an error where they are not frozen any more.
func (c *Client) Quiet(ctx context.Context) ([]Written, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.ask(ctx, speakLimit, question{Do: doQuiet})
	if err != nil {
		return nil, err
	}
	if len(a.Written) > maxDevices {
		return nil, c.end(lost("it tells of %d devices", len(a.Written)))
	}
	for i := range a.Written {
		w := &a.Written[i]
		if w.Bytes == 0 {
			return nil, c.end(lost("it tells of a device to which nothing was written"))
		}
		w.Device = report.CleanString(w.Device)
	}
	return a.Written, nil
}

// Thaw thaws and starts again what was stopped. It is fine where nothing is frozen.
func (c *Client) Thaw(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.still()
	_, err := c.ask(ctx, thawLimit, question{Do: doThaw})
	return err
}

// PowerOff powers the source off as it is, frozen. Without an error it has acknowledged that,
// and the client has ended. A *RefusedError says that it goes on: where it refused before it
// acknowledged, frozen or thawed as its reason tells; where the kernel did not do it, frozen until
// Thaw or the limit. An *UnsureError says that the order was sent, and perhaps has arrived.
func (c *Client) PowerOff(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return c.ended
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // it was not sent
	}
	c.still()
	_, err := c.ask(ctx, speakLimit, question{Do: doOff})
	if _, refused := errors.AsType[*RefusedError](err); refused {
		return err
	}
	if err != nil {
		return &UnsureError{err}
	}
	_, err = c.ask(ctx, failLimit, question{Do: doHeard})
	if _, refused := errors.AsType[*RefusedError](err); refused {
		return err
	}
	_ = c.end(lost("it was told to power off"))
	return nil
}

// Close closes the connection: the source thaws. It does not wait for that.
func (c *Client) Close() error {
	c.still()
	return c.conn.Close()
}

// still ends the beats. With the lock, none is under way.
func (c *Client) still() {
	if end := c.beats.Swap(nil); end != nil {
		(*end)()
	}
}

// end makes the client one of no use. It returns the error.
func (c *Client) end(err error) error {
	c.still()
	c.ended = err
	_ = c.conn.Close() // the source thaws
	return err
}

// ask asks and hears the answer. Of a source that says why it does not do it, the error is a
// *RefusedError; after any other the client has ended.
func (c *Client) ask(ctx context.Context, limit time.Duration, q question) (answer, error) {
	if c.ended != nil {
		return answer{}, c.ended
	}
	if ctx.Err() != nil {
		return answer{}, context.Cause(ctx) // nothing was said: the source stays as it is
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var a answer
	if err := c.conn.Ask(ctx, q, &a); err != nil {
		return answer{}, c.end(unheard(err))
	}
	if a.Error != "" {
		return answer{}, &RefusedError{report.CleanString(a.Error)}
	}
	return a, nil
}

// unheard is the error of who is heard no more, or of the context that has ended.
func unheard(err error) error {
	if _, broken := errors.AsType[*lines.BrokenError](err); broken {
		return lost("%s", err)
	}
	return err
}

func lost(format string, args ...any) error {
	return &LostError{report.CleanString(fmt.Sprintf(format, args...))}
}

var bootID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// clean holds what a source says against what can be.
func (f *Facts) clean() error {
	if f.BootID != "" && !bootID.MatchString(f.BootID) {
		return lost("its boot ID is %.100q", f.BootID)
	}
	if f.HungTaskSeconds < 0 || f.HungTaskSeconds > math.MaxInt32 || f.WatchdogSeconds < 0 || f.WatchdogSeconds > math.MaxInt32 {
		return lost("a time that it tells is out of range")
	}
	return cleanFilesystems(f.Filesystems)
}

func cleanFilesystems(all []Filesystem) error {
	if len(all) > maxFilesystems {
		return lost("it tells of %d filesystems", len(all))
	}
	for i := range all {
		f := &all[i]
		f.Mount, f.Type, f.Source = report.CleanString(f.Mount), report.CleanString(f.Type), report.CleanString(f.Source)
	}
	return nil
}
