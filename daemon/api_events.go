package daemon

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"time"

	"gpuvirt/api"
	"gpuvirt/gpu"
)

// An event's id is its number: the host lets numbers grow over restarts.
func checkEventID(v string) error {
	if _, err := strconv.ParseUint(v, 10, 64); err != nil {
		return errors.New("it is not the id of an event")
	}
	return nil
}

// getEvents streams what happens: first the kept events after the one that the
// client names (Last-Event-ID goes before ?after=, as a browser repeats its URL
// when it resumes), then those to come. A client that names none gets only the
// latter. Where events were lost, a "reset" event says so: look at everything anew.
func getEvents(s *Server, q *request) (response, error) {
	from := q.query["after"]
	if last := q.Header.Get("Last-Event-ID"); last != "" {
		if err := checkEventID(last); err != nil {
			return response{}, invalid("header Last-Event-ID is malformed: %w", err)
		}
		from = last
	}
	var after uint64 // from now on
	if from != "" {
		n, err := strconv.ParseUint(from, 10, 64)
		if err != nil {
			return response{}, err
		}
		after = n
	}
	release, err := s.takeStream(q)
	if err != nil {
		return response{}, err
	}
	return response{stream: func(w http.ResponseWriter) error {
		defer release()
		s.streamEvents(q, w, after)
		return nil
	}}, nil
}

func (s *Server) streamEvents(q *request, w http.ResponseWriter, after uint64) {
	ctx, cancel := context.WithCancel(q.Context())
	defer cancel()
	stop := s.untilEnd(q, cancel)
	defer stop()

	past, complete, live := s.host.Events(ctx, after)

	out := eventWriter{w: w, control: q.control}
	out.begin()
	if !complete {
		// Without an id: whoever resumes before the next event is told again.
		out.event(api.Event{Time: clock(time.Now()), Type: "reset", Object: "events"})
	}
	for _, e := range past {
		out.event(eventOf(e))
	}
	beat := time.NewTicker(s.heartbeat)
	defer beat.Stop()
	for out.flush() == nil {
		select {
		case e, open := <-live:
			if !open {
				return // too slow, or the server ends: the client comes back
			}
			out.event(eventOf(e))
		case <-beat.C:
			out.text(": still here\n\n")
		case <-ctx.Done():
			return
		}
	}
}

func eventOf(e gpu.Event) api.Event {
	return api.Event{
		ID: strconv.FormatUint(e.Seq, 10), Time: clock(e.Time), Type: e.Type, Object: e.Object, Detail: maps.Clone(e.Detail),
	}
}

// An eventWriter writes server-sent events and remembers the first failure.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	err     error
}

func (o *eventWriter) begin() {
	h := o.w.Header()
	h.Set("Content-Type", mediaEvents)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Accel-Buffering", "no") // a proxy must not hold events back
	o.w.WriteHeader(http.StatusOK)
	o.text(": connected\n\n")
}

func (o *eventWriter) event(e api.Event) {
	data, err := encode(e)
	if err != nil {
		o.err = err
		return
	}
	if e.ID != "" {
		o.text("id: " + e.ID + "\n")
	}
	// The JSON is one line and ends with a newline; type and id are ours.
	o.text("event: " + e.Type + "\ndata: " + string(data) + "\n")
}

func (o *eventWriter) text(t string) {
	if o.err != nil {
		return
	}
	_ = o.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every connection of a test has deadlines
	_, o.err = o.w.Write([]byte(t))
}

// flush sends what was written.
func (o *eventWriter) flush() error {
	if o.err == nil {
		o.err = o.control.Flush()
	}
	return o.err
}
