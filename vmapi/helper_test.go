package vmapi

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// hostdev makes the XML of a device as it would be in a domain's definition.
func hostdev(alias string, h gpu.Handle) libvirtxml.DomainHostdev {
	d := libvirtxml.DomainHostdev{Managed: "no", Alias: &libvirtxml.DomainAlias{Name: alias}}
	d.SubsysMDev = &libvirtxml.DomainHostdevSubsysMDev{
		Model:  "vfio-pci",
		Source: &libvirtxml.DomainHostdevSubsysMDevSource{Address: &libvirtxml.DomainAddressMDev{UUID: h.MdevUUID}},
	}
	return d
}

// device is what the tests attach.
func device(mdev string) gpu.Hostdev {
	return gpu.Hostdev{Alias: gpu.Alias(mdev), Handle: gpu.Handle{MdevUUID: mdev}, Model: "vfio-pci"}
}

var both = gpu.Scope{Live: true, Config: true}

// start runs a client on a fake until the test ends, and returns when it is
// connected or has failed to.
func start(t *testing.T, lv *fakeLibvirt, cfg Config) *Client {
	t.Helper()
	c := newClient(cfg, lv.open)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return c
}

// wantCode fails the test unless an error is of a kind ("" for none) and its text
// has a part.
func wantCode(t *testing.T, err error, code gpu.Code, part string) {
	t.Helper()
	switch {
	case code == "" && err != nil:
		t.Errorf("got error %v (%s), want none", err, gpu.CodeOf(err))
	case code != "" && err == nil:
		t.Errorf("got no error, want %s", code)
	case code != "" && (gpu.CodeOf(err) != code || !strings.Contains(err.Error(), part)):
		t.Errorf("got %s: %v; want %s: …%s…", gpu.CodeOf(err), err, code, part)
	}
}
