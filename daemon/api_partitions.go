package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"gpuvirt/api"
	"gpuvirt/gpu"
)

func listPartitions(s *Server, q *request) (response, error) {
	partitions, err := s.host.Partitions(q.Context())
	if err != nil {
		return response{}, err
	}
	items := filter(q, convert(partitions, partitionOf), map[string]func(api.Partition) string{
		"gpu":        func(p api.Partition) string { return p.GPU },
		"profile":    func(p api.Partition) string { return p.Profile },
		"kind":       func(p api.Partition) string { return p.Kind },
		"origin":     func(p api.Partition) string { return p.Origin },
		"state":      func(p api.Partition) string { return p.State },
		"assignment": func(p api.Partition) string { return p.Assignment },
	})
	return page(q, items, func(p api.Partition) string { return p.ID })
}

func getPartition(s *Server, q *request) (response, error) {
	p, err := s.host.Partition(q.Context(), q.path["partition"])
	if err != nil {
		return response{}, err
	}
	return object(partitionOf(p)), nil
}

func createPartition(s *Server, q *request) (response, error) {
	body, err := decode[api.PartitionRequest](q)
	if err != nil {
		return response{}, err
	}
	wish, err := partitionWishOf(body)
	if err != nil {
		return response{}, err
	}
	idem, err := idempotencyOf(q, wish)
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		plan, err := s.host.PlanPartition(q.Context(), wish)
		return s.planned(q, plan, err)
	}
	op, err := s.host.CreatePartition(q.Context(), q.who.Actor, wish, idem)
	if err != nil {
		return response{}, err
	}
	return accepted(op), nil
}

// idempotencyOf reads the key under which a POST may be repeated. Its digest is
// of what the request means, and of who asks: nobody gets another's answer by
// using the same key.
func idempotencyOf(q *request, wish any) (gpu.Idempotency, error) {
	keys := q.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return gpu.Idempotency{}, nil
	}
	if len(keys) > 1 {
		return gpu.Idempotency{}, invalid("header Idempotency-Key is given %d times", len(keys))
	}
	if err := checkIdempotencyKey(keys[0]); err != nil {
		return gpu.Idempotency{}, err
	}
	body, err := encode(wish)
	if err != nil {
		return gpu.Idempotency{}, err
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{q.who.Actor, q.Method, q.route.path, string(body)}, "\x00")))
	return gpu.Idempotency{Key: keys[0], Request: hex.EncodeToString(sum[:])}, nil
}

func deletePartition(s *Server, q *request) (response, error) {
	id := q.path["partition"]
	err := q.precondition(func() (any, error) {
		p, err := s.host.Partition(q.Context(), id)
		return partitionOf(p), err
	})
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		plan, err := s.host.PlanDeletePartition(q.Context(), id)
		return s.planned(q, plan, err)
	}
	op, err := s.host.DeletePartition(q.Context(), q.who.Actor, id)
	if err != nil {
		return response{}, err
	}
	return accepted(op), nil
}

func adoptPartition(s *Server, q *request) (response, error) {
	id := q.path["partition"]
	err := q.precondition(func() (any, error) {
		p, err := s.host.Partition(q.Context(), id)
		return partitionOf(p), err
	})
	if err != nil {
		return response{}, err
	}
	p, plan, err := s.host.AdoptPartition(q.Context(), q.who.Actor, id, q.dryRun())
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		return s.planned(q, plan, nil)
	}
	return object(partitionOf(p)), nil
}
