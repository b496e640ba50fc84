package gpu_test

import (
	"testing"

	"gpuvirt/gpu"
)

// libvirt replaces an alias that it does not like by one of its own, and the device
// would not be found again.
func TestAlias(t *testing.T) {
	for partition, want := range map[string]string{
		"0b6e5c5e-9f3d-4c62-8f0e-111111111111": "ua-gpuvirt-0b6e5c5e-9f3d-4c62-8f0e-111111111111",
		"0000:41:00.0/vf/3":                    "ua-gpuvirt-0000-41-00-0-vf-3",
		"10000:41:00.0/card/0":                 "ua-gpuvirt-10000-41-00-0-card-0",
		"gpu é":                                "ua-gpuvirt-gpu--",
	} {
		if got := gpu.Alias(partition); got != want {
			t.Errorf("Alias(%q) = %q, want %q", partition, got, want)
		}
	}
}
