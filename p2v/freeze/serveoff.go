package freeze

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"gpuvirt/p2v/lines"
)

// ServeOff answers as Serve does, for a server that is off already and whose disks are reached
// otherwise: there is nothing to freeze, and to power it off does nothing. Freeze calls watch,
// and Quiet calls the still that it returned: its error says that the disks may not be as they
// were at Freeze. ServeOff returns when the connection, which it closes, or ctx ends.
func ServeOff(ctx context.Context, conn io.ReadWriteCloser, watch func(context.Context) (still func(context.Context) error, err error)) error {
	defer conn.Close() //nolint:errcheck // what was to be said has been said
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	say := func(v any) error {
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		_, err = conn.Write(append(text, '\n'))
		return err
	}
	if err := say(hello{Version: version}); err != nil {
		return fmt.Errorf("cannot answer the client: %w", err)
	}
	off := off{watch: watch}
	told := false // to power off
	said := bufio.NewScanner(conn)
	said.Buffer(make([]byte, 0, 4096), maxQuestion)
	for said.Scan() {
		var q question
		if err := lines.Decode(said.Bytes(), &q); err != nil {
			return fmt.Errorf("cannot understand the client: %w", err)
		}
		if err := q.check(); err != nil {
			return err
		}
		if q.Do == doHeard && told {
			return nil
		}
		if q.Do == doHeard {
			continue
		}
		var a answer
		if err := off.do(ctx, q); err != nil {
			a.Error = oneLine(err)
		}
		told = q.Do == doOff && a.Error == ""
		if err := say(a); err != nil {
			return fmt.Errorf("cannot answer the client: %w", err)
		}
	}
	return cmp.Or(context.Cause(ctx), said.Err())
}

// off is a server that is off.
type off struct {
	watch func(context.Context) (func(context.Context) error, error)
	still func(context.Context) error // nil: it is not frozen
}

func (o *off) do(ctx context.Context, q question) (err error) {
	switch {
	case q.Do == doThaw:
		o.still = nil
		return nil
	case q.Do == doFreeze && o.still != nil:
		return errors.New("it is frozen already")
	case q.Do == doFreeze: // no service runs that would have to be stopped
		o.still, err = o.watch(ctx)
		return err
	case o.still == nil:
		return errors.New("nothing is frozen")
	case q.Do == doQuiet:
		return o.still(ctx)
	}
	return nil // to be off is all that off asks for
}
