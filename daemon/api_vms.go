package daemon

import "gpuvirt/api"

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
