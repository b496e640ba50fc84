package client

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"time"

	"gpuvirt/api"
)

// Events follows the daemon's events: those still kept that came after the one
// with the id after (if it is empty, those that the daemon chooses to begin
// with), then all that come. A broken stream is taken up where it broke; where
// events were lost, one of type "reset" says so, and has no id. The sequence ends
// with an error: that of ctx, a refusal, or a daemon that stays away.
func (c *Client) Events(ctx context.Context, after string) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		p := c.newPatience()
		met := false // a daemon that was never there is not waited for
		for {
			began := time.Now()
			opened, err := c.stream(ctx, after, func(e api.Event) bool {
				after = cmp.Or(e.ID, after)
				return yield(e, nil)
			})
			met = met || opened
			if opened && time.Since(began) > longestPause {
				p = c.newPatience()
			}
			if errors.Is(err, errStop) {
				return
			}
			if ctx.Err() != nil {
				yield(api.Event{}, ctx.Err())
				return
			}
			if !passes(err) || !met || p.pause(ctx) != nil {
				yield(api.Event{}, err)
				return
			}
		}
	}
}

var errStop = errors.New("the caller wants no more events")

// stream reads one stream until it breaks. It reports whether there was one.
func (c *Client) stream(ctx context.Context, after string, emit func(api.Event) bool) (opened bool, err error) {
	r := &request{method: http.MethodGet, path: []string{"events"}, accept: "text/event-stream", after: after}
	resp, err := c.send(ctx, r)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read from
	err = readEvents(resp.Body, emit)
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the event stream ended")
	}
	var bad *badEventError
	if errors.Is(err, errStop) || errors.As(err, &bad) {
		return true, err
	}
	return true, c.broken(ctx, r, err)
}

type badEventError struct{ err error }

func (e *badEventError) Error() string { return fmt.Sprintf("cannot read an event: %v", e.err) }
func (e *badEventError) Unwrap() error { return e.err }

// readEvents reads server-sent events. An event that is cut off at the end is
// none.
func readEvents(body io.Reader, emit func(api.Event) bool) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 4096), maxEvent)
	var data strings.Builder
	var id string
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			if data.Len() > 0 {
				e := api.Event{}
				if err := json.Unmarshal([]byte(data.String()), &e); err != nil {
					return &badEventError{err}
				}
				e.ID = id
				if !emit(e) {
					return errStop
				}
			}
			data.Reset()
			id = ""
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			id = value
		case "data":
			if data.Len()+len(value) > maxEvent {
				return &badEventError{&tooBigError{maxEvent}}
			}
			data.WriteString(value + "\n")
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return &badEventError{lines.Err()}
	}
	return lines.Err()
}
