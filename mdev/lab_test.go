//go:build lab

package mdev_test

import (
	"testing"

	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sysfs"
	"gpuvirt/mdev"
)

// The contract on the kernel's own mdev bus: built with the tag lab and run inside
// the lab's hypervisor by its scenario TestContractOnTheRealBus.
func TestContractOnTheRealBus(t *testing.T) {
	fs, err := sysfs.Open(sysfs.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	for _, o := range []gputest.Options{
		{GPU: "mbochs", Profile: "mbochs-large", Other: "mbochs-small"},
		{GPU: "mdpy", Profile: "mdpy-xga", Other: "mdpy-hd"},
		{GPU: "mtty", Profile: "mtty-2", Other: "mtty-1"},
	} {
		t.Run(string(o.GPU), func(t *testing.T) { gputest.Backend(t, mdev.New(fs, mdev.Options{}), o) })
	}
}
