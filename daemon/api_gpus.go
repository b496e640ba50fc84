package daemon

import (
	"strconv"

	"gpuvirt/api"
	"gpuvirt/gpu"
)

func listGPUs(s *Server, q *request) (response, error) {
	gpus, err := s.host.GPUs(q.Context())
	if err != nil {
		return response{}, err
	}
	items := filter(q, convert(gpus, gpuOf), map[string]func(api.GPU) string{
		"vendor":  func(g api.GPU) string { return g.Vendor },
		"model":   func(g api.GPU) string { return g.Model },
		"managed": func(g api.GPU) string { return strconv.FormatBool(g.Managed) },
	})
	return page(q, items, func(g api.GPU) string { return g.ID })
}

func getGPU(s *Server, q *request) (response, error) {
	g, err := s.host.GPU(q.Context(), gpu.ID(q.path["gpu"]))
	if err != nil {
		return response{}, err
	}
	return object(gpuOf(g)), nil
}

func patchGPU(s *Server, q *request) (response, error) {
	body, err := decode[api.GPUPatch](q)
	if err != nil {
		return response{}, err
	}
	p, err := patchOf(body)
	if err != nil {
		return response{}, err
	}
	id := gpu.ID(q.path["gpu"])
	err = q.precondition(func() (any, error) {
		g, err := s.host.GPU(q.Context(), id)
		return gpuOf(g), err
	})
	if err != nil {
		return response{}, err
	}
	g, plan, err := s.host.PatchGPU(q.Context(), q.who.Actor, id, p, q.dryRun())
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		return s.planned(q, plan, nil)
	}
	return object(gpuOf(g)), nil
}

func listProfiles(s *Server, q *request) (response, error) {
	profiles, blind, err := s.host.Profiles(q.Context(), gpu.ID(q.path["gpu"]))
	if err != nil {
		return response{}, err
	}
	items := filter(q, convert(profiles, profileOf), map[string]func(api.Profile) string{
		"kind": func(p api.Profile) string { return p.Kind },
	})
	list, err := pageOf(q, items, func(p api.Profile) string { return p.Name + "\x00" + p.Kind + "\x00" + p.On + "\x00" + p.NativeID })
	if err != nil {
		return response{}, err
	}
	out := api.ProfileList{Items: list.Items, Next: list.Next}
	if blind != nil {
		out.Unknown = blind.Error()
	}
	return ok(out), nil
}

func getCapacity(s *Server, q *request) (response, error) {
	profiles, err := s.host.Capacity(q.Context(), q.query["profile"])
	if err != nil {
		return response{}, err
	}
	return ok(api.Capacity{Profiles: convert(profiles, capacityOf)}), nil
}

// planned answers a dry run.
func (s *Server) planned(q *request, plan gpu.Plan, err error) (response, error) {
	if err != nil {
		return response{}, err
	}
	p := planOf(plan)
	if p.Problem != nil && p.Problem.Code == string(gpu.CodeInternal) {
		s.log.Error("cannot plan", "method", q.Method, "path", shorten(q.URL.EscapedPath()), "err", plan.Refusal)
	}
	return ok(p), nil
}
