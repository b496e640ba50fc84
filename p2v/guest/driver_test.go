package guest

import (
	"slices"
	"testing"

	"gpuvirt/p2v/assess"
)

func TestKernelDriver(t *testing.T) {
	for name, c := range map[string]struct {
		changes, left []string
		want          string
	}{
		"no GPU":                         {[]string{"virtio-drivers"}, nil, ""},
		"a card, with its driver":        {[]string{"driver-keep"}, nil, "nvidia"},
		"a card of another flavour":      {[]string{"driver-keep", "driver-flavour"}, nil, ""},
		"a card without a driver":        {[]string{"driver-install"}, nil, ""},
		"a vGPU, all is done":            {[]string{"driver-remove", "driver-vgpu", "licence"}, []string{"driver-headers"}, "nvidia"},
		"a vGPU, nothing was brought":    {[]string{"driver-remove", "driver-vgpu", "licence"}, []string{"driver-vgpu"}, ""},
		"a vGPU, the old driver stays":   {[]string{"driver-remove", "driver-vgpu", "licence"}, []string{"driver-remove"}, ""},
		"a vGPU, its driver is there":    {[]string{"licence"}, []string{"licence"}, "nvidia"},
		"a vGPU and a card":              {[]string{"driver-vgpu", "licence", "driver-both"}, nil, ""},
		"a card beside another's driver": {[]string{"nouveau", "driver-install"}, nil, ""},
	} {
		p := assess.Plan{}
		for _, id := range c.changes {
			p.Changes = append(p.Changes, assess.GuestChange{ID: id})
		}
		if got := KernelDriver(p, func(id string) bool { return slices.Contains(c.left, id) }); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
