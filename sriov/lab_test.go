//go:build lab

package sriov_test

import (
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sysfs"
	"gpuvirt/sriov"
)

// The contract on a kernel: built with the tag lab and run inside the lab's hypervisor by
// its scenario TestContracts.

func kernel(t *testing.T) *sysfs.Root {
	t.Helper()
	fs, err := sysfs.Open(sysfs.DefaultRoot)
	must(t, err)
	t.Cleanup(func() { fs.Close() })
	return fs
}

// A controller with three of its four virtual functions on.
func TestLabFunctions(t *testing.T) {
	const id = gpu.ID("0000:01:00.0")
	b := sriov.NewFunctions(kernel(t), sriov.Options{Devices: []string{"1b36:0010"}})
	gputest.Backend(t, b, gputest.Options{
		GPU: id, Profile: "vf-1b36:0010", Places: true, Racers: 10,
		Want: func(profile string) gpu.Partition {
			p, err := b.Place(t.Context(), id, profile, nil)
			if err != nil {
				return vfWish(id, profile, "3")
			}
			return p
		},
	})
}

// A display controller, with another function in its slot.
func TestLabCard(t *testing.T) {
	const id = gpu.ID("0000:03:00.0")
	b := sriov.NewCards(kernel(t), sriov.Options{})
	gputest.Backend(t, b, gputest.Options{
		GPU: id, Profile: "card-1234:1111", Places: true, Single: true, Racers: 10,
		Want: func(profile string) gpu.Partition {
			p, err := b.Place(t.Context(), id, profile, nil)
			if err != nil {
				return cardWish(id, profile)
			}
			return p
		},
	})
}
