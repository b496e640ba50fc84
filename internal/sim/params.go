package sim

import (
	"path"
	"syscall"
)

// params finds where the parameters of a vGPU are kept, by the UUID of its mdev or the
// address of its function; nil where there is no vGPU.
func (s *state) params(id string) *string {
	if m := s.Mdevs[id]; m != nil {
		return &m.Params
	}
	if v := s.VGPUs[id]; v != nil {
		return &v.Params
	}
	return nil
}

// addParams adds the file of a vGPU's parameters. NVIDIA's driver drops the last byte of
// what is written, whatever it is, and takes nothing while a VM has the vGPU open.
func (h *Host) addParams(t *tree, s *state, dir, id string) {
	n := node{errno: syscall.ENXIO}
	if at := s.params(id); at != nil {
		n = node{text: *at + "\n"}
	}
	n.act = func(value string) error { return h.setParams(id, value) }
	t.add(path.Join(dir, "nvidia/vgpu_params"), n)
}

func (h *Host) setParams(id, value string) error {
	return h.update(func(s *state) ([]string, error) {
		at := s.params(id)
		switch {
		case at == nil:
			return nil, syscall.ENXIO
		case len(value) > 512:
			return nil, syscall.E2BIG
		case len(s.holders(id)) > 0:
			return nil, syscall.EPERM
		}
		*at = value[:max(0, len(value)-1)]
		return []string{id}, nil
	})
}
