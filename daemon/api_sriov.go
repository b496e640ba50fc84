package daemon

import (
	"gpuvirt/api"
	"gpuvirt/gpu"
)

func getVFs(s *Server, q *request) (response, error) {
	v, err := s.host.VFs(q.Context(), gpu.ID(q.path["gpu"]))
	if err != nil {
		return response{}, err
	}
	return object(vfsOf(v)), nil
}

func putVFs(s *Server, q *request) (response, error) {
	body, err := decode[api.VFsRequest](q)
	if err != nil {
		return response{}, err
	}
	n, err := numVFsOf(body)
	if err != nil {
		return response{}, err
	}
	id := gpu.ID(q.path["gpu"])
	err = q.precondition(func() (any, error) {
		v, err := s.host.VFs(q.Context(), id)
		return vfsOf(v), err
	})
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		plan, err := s.host.PlanPutVFs(q.Context(), id, n)
		return s.planned(q, plan, err)
	}
	v, op, err := s.host.PutVFs(q.Context(), q.who.Actor, id, n)
	if err != nil {
		return response{}, err
	}
	if op != nil {
		return accepted(*op), nil
	}
	return object(vfsOf(v)), nil
}
