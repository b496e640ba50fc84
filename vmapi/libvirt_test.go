package vmapi

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// The tests of this file run on the C library and its test driver, which package
// libvirt0 has. It knows domains, their XML and events, and no devices.

// startReal runs a client on a URI until the test ends. The connections that it
// opens come out of the channel.
func startReal(t *testing.T, uri string) (*Client, <-chan *connection) {
	t.Helper()
	conns := make(chan *connection, 16)
	c := newClient(Config{URI: uri, MinBackoff: time.Millisecond}, func(uri string, event func(gpu.VMEvent), lost func(error)) (hypervisor, error) {
		hv, err := openLibvirt(uri, event, lost)
		if opened, ok := hv.(*connection); ok && err == nil {
			conns <- opened
		}
		return hv, err
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	if e := nextEvent(t, c); e.Kind != kindConnected {
		t.Fatalf("first event %+v", e)
	}
	return c, conns
}

// nextEvent fails the test if none comes: install libvirt0 if it is the first.
func nextEvent(t *testing.T, c *Client) gpu.VMEvent {
	t.Helper()
	select {
	case e := <-c.Events():
		return e
	case <-time.After(10 * time.Second):
		info, err := c.Info(t.Context())
		t.Fatalf("no event; %+v, %v (is libvirt0 installed?)", info, err)
		return gpu.VMEvent{}
	}
}

func nodeURI(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("testdata/node.xml")
	if err != nil {
		t.Fatal(err)
	}
	return "test://" + path
}

func TestLibvirtReads(t *testing.T) {
	c, _ := startReal(t, nodeURI(t))
	info, err := c.Info(t.Context())
	if err != nil || !info.Connected || info.Driver != "TEST" || info.Library == "" {
		t.Errorf("Info: %+v, %v", info, err)
	}
	vms, err := c.VMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(vms) != 2 {
		t.Errorf("got %d VMs, want 2", len(vms))
	}
	got, err := c.VM(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	want := gpu.VM{
		UUID: uuidA, Name: "web1", State: gpu.VMRunning, Persistent: true,
		Hostdevs: []gpu.Hostdev{
			{Alias: "ua-gpuvirt-a", Handle: gpu.Handle{MdevUUID: mdev1}, Model: "vfio-pci", Live: true, Config: true},
			{Handle: gpu.Handle{PCIAddress: "0000:41:00.4"}, Live: true, Config: true},
		},
	}
	for i := range got.Hostdevs { // the test driver gives no guest addresses of use
		got.Hostdevs[i].GuestAddress = ""
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, ref := range []string{"web1", uuidA, strings.ToUpper(uuidA)} {
		head, err := c.VMHead(t.Context(), ref)
		if want := (gpu.VMHead{UUID: uuidA, Name: "web1", Active: true, Persistent: true}); err != nil || head != want {
			t.Errorf("%q: got %+v, %v; want %+v", ref, head, err, want)
		}
	}
	for _, ref := range []string{"nosuch", mdev2} {
		_, err = c.VMHead(t.Context(), ref)
		wantCode(t, err, gpu.CodeVMNotFound, `cannot find VM "`+ref)
	}
	_, err = c.VM(t.Context(), "nosuch")
	wantCode(t, err, gpu.CodeVMNotFound, `cannot find VM "nosuch"`)
	_, err = c.VM(t.Context(), mdev2)
	wantCode(t, err, gpu.CodeVMNotFound, "")
}

func TestLibvirtStatesAndEvents(t *testing.T) {
	c, conns := startReal(t, "test:///default")
	conn := (<-conns).conn
	dom, err := conn.LookupDomainByName("test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dom.Free() }()
	for _, step := range []struct {
		name string
		do   func() error
		want gpu.VMState
	}{
		{"suspend", dom.Suspend, gpu.VMPaused},
		{"resume", dom.Resume, gpu.VMRunning},
		{"destroy", dom.Destroy, gpu.VMShutoff},
		{"create", dom.Create, gpu.VMRunning},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		for { // some steps make two events
			e := nextEvent(t, c)
			if e.Kind != kindLifecycle || e.UUID == "" {
				t.Errorf("%s: event %+v", step.name, e)
			}
			vm, err := c.VM(t.Context(), e.UUID)
			if err != nil || vm.Name != "test" {
				t.Fatalf("%s: %+v, %v", step.name, vm, err)
			}
			head, err := c.VMHead(t.Context(), e.UUID)
			if want := (gpu.VMHead{UUID: e.UUID, Name: "test", Active: vm.State.Active(), Persistent: true}); err != nil || head != want {
				t.Errorf("%s: got %+v, %v; want %+v", step.name, head, err, want)
			}
			if vm.State == step.want {
				break
			}
		}
	}
	// A transient domain: no persistent definition is invented for it.
	tr, err := conn.DomainCreateXML("<domain type='test'><name>tr</name><memory>1024</memory><os><type>hvm</type></os></domain>", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.Free() }()
	vm, err := c.VM(t.Context(), "tr")
	if err != nil || vm.Persistent || vm.State != gpu.VMRunning {
		t.Errorf("%+v, %v", vm, err)
	}
	if head, err := c.VMHead(t.Context(), "tr"); err != nil || head.Persistent || !head.Active {
		t.Errorf("%+v, %v", head, err)
	}
	wantCode(t, c.Attach(t.Context(), vm.UUID, device(mdev1), both), gpu.CodeConflict, "transient")
	// The test driver cannot attach an mdev, and says so as libvirt does.
	wantCode(t, c.Attach(t.Context(), vm.UUID, device(mdev1), gpu.Scope{Live: true}), gpu.CodeInvalid, "cannot attach")
	if err := tr.Destroy(); err != nil {
		t.Fatal(err)
	}
	_, err = c.VM(t.Context(), vm.UUID)
	wantCode(t, err, gpu.CodeVMNotFound, "")
}

func TestLibvirtReconnect(t *testing.T) {
	c, conns := startReal(t, nodeURI(t))
	for range 3 {
		first := <-conns
		c.drop(first, closeReason(libvirt.CONNECT_CLOSE_REASON_KEEPALIVE))
		if e := nextEvent(t, c); e.Kind != kindDisconnected {
			t.Fatalf("event %+v", e)
		}
		if e := nextEvent(t, c); e.Kind != kindConnected {
			t.Fatalf("event %+v", e)
		}
		if _, err := c.VMs(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := first.Domains(); !isLoss(err) {
			t.Errorf("the old connection answers %v", err)
		}
	}
}

// A connection is torn down when its last call has returned, not under it.
func TestLibvirtCloseDuringCalls(t *testing.T) {
	for range 20 {
		hv, err := openLibvirt(nodeURI(t), func(gpu.VMEvent) {}, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					if _, err := hv.Read(uuidA, false); err != nil {
						if !isLoss(err) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		hv.Close()
		hv.Close()
		wg.Wait()
	}
}

func TestLibvirtRefused(t *testing.T) {
	for uri, part := range map[string]string{
		"test:///nosuch.xml": "nosuch.xml",
		"nosuch:///":         "nosuch",
		"qemu+unix:///system?socket=/nosuch/libvirt-sock": "/nosuch/libvirt-sock",
	} {
		hv, err := openLibvirt(uri, func(gpu.VMEvent) {}, func(error) {})
		if err == nil {
			hv.Close()
			t.Errorf("%s: no error", uri)
			continue
		}
		wantCode(t, unreachable(uri, err), gpu.CodeUnavailable, part)
	}
}

func TestDotted(t *testing.T) {
	if got := dotted(11003000); got != "11.3.0" {
		t.Errorf("got %s", got)
	}
}
