package daemon

import (
	"context"
	"time"

	"gpuvirt/api"
	"gpuvirt/operation"
)

func listOperations(s *Server, q *request) (response, error) {
	ops, err := s.ops.List()
	if err != nil {
		return response{}, err
	}
	items := filter(q, convert(ops, operationOf), map[string]func(api.Operation) string{
		"kind":   func(op api.Operation) string { return op.Kind },
		"status": func(op api.Operation) string { return op.Status },
		"actor":  func(op api.Operation) string { return op.Actor },
	})
	return page(q, items, func(op api.Operation) string { return op.ID })
}

func getOperation(s *Server, q *request) (response, error) {
	op, err := s.ops.Get(q.path["operation"])
	if err != nil {
		return response{}, err
	}
	return object(operationOf(op)), nil
}

// waitOperation answers when the operation is final or waits for a person, and
// otherwise at the timeout, or when the daemon ends, with the operation as it is.
func waitOperation(s *Server, q *request) (response, error) {
	timeout := defaultWait
	if v, given := q.query["timeout"]; given {
		d, err := time.ParseDuration(v)
		if err != nil {
			return response{}, err
		}
		timeout = d
	}
	id := q.path["operation"]
	op, err := s.ops.Get(id)
	if err != nil || op.Final() || op.Status == operation.Waiting || timeout == 0 {
		return ok(operationOf(op)), err
	}
	release, err := s.takeStream(q)
	if err != nil {
		return response{}, err
	}
	defer release()

	ctx, cancel := context.WithTimeout(q.Context(), timeout)
	defer cancel()
	stop := s.untilEnd(q, cancel)
	defer stop()
	op, err = s.ops.Wait(ctx, id)
	if over := q.who.over(); over != nil {
		return response{}, over
	}
	if err != nil && ctx.Err() != nil && q.Context().Err() == nil {
		op, err = s.ops.Get(id)
	}
	return ok(operationOf(op)), err
}

func abortOperation(s *Server, q *request) (response, error) {
	op, err := s.ops.Abort(q.path["operation"])
	return accepted(op), err
}

func retryOperation(s *Server, q *request) (response, error) {
	op, err := s.ops.Retry(q.path["operation"])
	return accepted(op), err
}

func forgetOperation(s *Server, q *request) (response, error) {
	op, err := s.ops.Forget(q.path["operation"])
	return object(operationOf(op)), err
}
