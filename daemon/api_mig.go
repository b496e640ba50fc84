package daemon

import (
	"gpuvirt/api"
	"gpuvirt/gpu"
)

func getMIG(s *Server, q *request) (response, error) {
	l, err := s.host.Layout(q.Context(), gpu.ID(q.path["gpu"]))
	if err != nil {
		return response{}, err
	}
	return object(migOf(l)), nil
}

func putMIG(s *Server, q *request) (response, error) {
	body, err := decode[api.Layout](q)
	if err != nil {
		return response{}, err
	}
	want, err := layoutWishOf(body)
	if err != nil {
		return response{}, err
	}
	id := gpu.ID(q.path["gpu"])
	err = q.precondition(func() (any, error) {
		l, err := s.host.Layout(q.Context(), id)
		return migOf(l), err
	})
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		plan, err := s.host.PlanPutLayout(q.Context(), id, want)
		return s.planned(q, plan, err)
	}
	l, op, err := s.host.PutLayout(q.Context(), q.who.Actor, id, want)
	if err != nil {
		return response{}, err
	}
	if op != nil {
		return accepted(*op), nil
	}
	return object(migOf(l)), nil
}

func migOf(l gpu.LayoutState) api.MIG {
	out := api.MIG{GPU: string(l.GPU), Mode: api.MIGMode(l.Mode), Actual: layoutOf(l.Actual), Equal: l.Equal}
	if l.Wanted != nil {
		wanted := layoutOf(*l.Wanted)
		out.Wanted = &wanted
	}
	return out
}

func layoutOf(l gpu.Layout) api.Layout {
	return api.Layout{Enabled: l.Enabled, Instances: convert(l.Instances, func(in gpu.LayoutInstance) api.LayoutInstance {
		out := api.LayoutInstance{Profile: in.Profile, Compute: in.Compute}
		if in.Place != gpu.AnyPlace {
			out.Placement = &in.Place
		}
		return out
	})}
}
