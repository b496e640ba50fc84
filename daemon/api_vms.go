package daemon

import (
	"strings"

	"gpuvirt/api"
	"gpuvirt/gpu"
)

func listVMs(s *Server, q *request) (response, error) {
	vms, err := s.host.VMs(q.Context())
	if err != nil {
		return response{}, err
	}
	items := filter(q, convert(vms, vmOf), map[string]func(api.VM) string{
		"name":  func(vm api.VM) string { return vm.Name },
		"state": func(vm api.VM) string { return vm.State },
	})
	return page(q, items, func(vm api.VM) string { return vm.UUID })
}

func getVM(s *Server, q *request) (response, error) {
	vm, err := s.host.VM(q.Context(), q.path["vm"])
	if err != nil {
		return response{}, err
	}
	return object(vmOf(vm)), nil
}

// checkStart is for libvirt's hook. The VM has to be named by its UUID, as libvirt, which
// knows the names, is what waits for the answer.
func checkStart(s *Server, q *request) (response, error) {
	body, err := decode[api.StartCheckRequest](q)
	if err != nil {
		return response{}, err
	}
	vm := strings.ToLower(q.path["vm"])
	if !aUUID.MatchString(vm) {
		return response{}, invalid("vm %s is no UUID: libvirt is not asked for names here", quote(vm))
	}
	devices, err := devicesOf(body)
	if err != nil {
		return response{}, err
	}
	findings, err := s.host.CheckStart(q.Context(), vm, devices)
	if err != nil {
		return response{}, err
	}
	return object(api.StartCheck{VM: vm, Findings: convert(findings, startFindingOf)}), nil
}

func startFindingOf(f gpu.StartFinding) api.StartFinding {
	return api.StartFinding{Code: string(f.Code), Message: f.Message, Hint: f.Hint, Assignment: f.Assignment, Partition: f.Partition}
}
