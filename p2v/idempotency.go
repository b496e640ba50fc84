package p2v

import (
	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// before returns the operation that the same request has started under its
// Idempotency-Key, or nil.
func (c Config) before(idem gpu.Idempotency, what string) (*operation.Operation, error) {
	if idem.Key == "" {
		return nil, nil //nolint:nilnil // none was sent
	}
	r, err := c.Store.IdempotencyRecord(idem.Key)
	switch {
	case err != nil && gpu.CodeOf(err) == gpu.CodeNotFound:
		return nil, nil //nolint:nilnil // it is the first
	case err != nil:
		return nil, err
	case r.Request != idem.Request:
		return nil, gpu.Errorf(gpu.CodeConflict, "cannot %s: Idempotency-Key %q was used for another request", what, idem.Key)
	}
	op, err := c.Engine.Get(r.Operation)
	return &op, err
}

// remember has a planned operation, which has an id, write down under which key it was asked
// for.
func (c Config) remember(p *operation.Plan, idem gpu.Idempotency) {
	if idem.Key == "" {
		return
	}
	p.Rows = append(p.Rows, operation.Put(gpu.RecordIdempotency, idem.Key, gpu.IdempotencyRecord{
		Key: idem.Key, Request: idem.Request, Operation: p.ID, Created: c.Now().UTC(),
	}))
}
