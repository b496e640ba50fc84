//go:build lab

package mdev_test

import (
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sysfs"
	"gpuvirt/mdev"
)

// The contract on a kernel: built with the tag lab and run inside the lab's hypervisor by
// its scenario TestContracts, which loads the drivers.

// vgpuCard has four virtual functions and room for two of LAB-8Q.
const vgpuCard = gpu.ID("0000:02:00.0")

func kernel(t *testing.T) *sysfs.Root {
	t.Helper()
	fs, err := sysfs.Open(sysfs.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	return fs
}

func TestLabBus(t *testing.T) {
	b := mdev.New(kernel(t), mdev.Options{})
	for _, o := range []gputest.Options{
		{GPU: "mbochs", Profile: "mbochs-large", Other: "mbochs-small"},
		{GPU: "mdpy", Profile: "mdpy-xga", Other: "mdpy-hd"},
		{GPU: "mtty", Profile: "mtty-2", Other: "mtty-1"},
	} {
		t.Run(string(o.GPU), func(t *testing.T) { gputest.Backend(t, b, o) })
	}
}

func TestLabBusFunctions(t *testing.T) {
	b := mdev.New(kernel(t), mdev.Options{VanishWait: -1})
	gputest.Backend(t, b, gputest.Options{GPU: vgpuCard, Profile: "LAB-8Q", Other: "LAB-8C", Racers: 10})
}

func TestLabVendorFunctions(t *testing.T) {
	b := mdev.NewVendor(kernel(t), mdev.VendorOptions{})
	gputest.Backend(t, b, gputest.Options{
		GPU: vgpuCard, Profile: "LAB-8Q", Other: "LAB-8C", Places: true, Racers: 10, Vague: true,
		Want: func(profile string) gpu.Partition {
			p, err := b.Place(t.Context(), vgpuCard, profile, nil)
			if err != nil {
				return on(vgpuCard, 3, profile)
			}
			return p
		},
	})
}
