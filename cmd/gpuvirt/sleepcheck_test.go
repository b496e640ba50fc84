package main

import (
	"testing"

	"gpuvirt/api"
)

// Only what is open keeps a host awake: a VM that is off loses nothing, and programs of the
// host that compute on an instance are for NVIDIA's driver to save. What is not known does, too.
func TestMayLoseThem(t *testing.T) {
	process, vm := api.Holder{Kind: "process", ID: "7", Name: "qemu"}, api.Holder{Kind: "vm", ID: "u", Name: "web1"}
	unknown := api.Condition{Type: "Unknown", Status: true, Reason: "HoldersUnknown", Message: "libvirt is down"}
	for name, c := range map[string]struct {
		part api.Partition
		want int
	}{
		"free":             {api.Partition{Kind: "vgpu"}, exitDone},
		"in a definition":  {api.Partition{Kind: "mdev", Holders: []api.Holder{vm}}, exitDone},
		"in use":           {api.Partition{Kind: "mdev", Holders: []api.Holder{vm, process}}, exitConflict},
		"a card":           {api.Partition{Kind: "card", Holders: []api.Holder{process}}, exitConflict},
		"computing":        {api.Partition{Kind: "mig", Holders: []api.Holder{process}}, exitDone},
		"not known":        {api.Partition{Kind: "vf", Conditions: []api.Condition{unknown}}, exitNotReady},
		"in use, at least": {api.Partition{Kind: "vf", Holders: []api.Holder{process}, Conditions: []api.Condition{unknown}}, exitConflict},
	} {
		if err := mayLoseThem([]api.Partition{{Kind: "mdev"}, c.part}); exitCode(err) != c.want {
			t.Errorf("%s: %v, want exit status %d", name, err, c.want)
		}
	}
}
