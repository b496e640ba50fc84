package vmapi

import (
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// A migration's VM from its definition to its end, on the C library's test driver. That has
// no disks, agents or firmware.
func TestLibvirtMakes(t *testing.T) {
	c, conns := startReal(t, "test:///default")
	conn := (<-conns).conn
	ctx := t.Context()
	doc, err := Marked("<domain type='test'><name>moved</name><uuid>"+uuidA+"</uuid><memory>1024</memory><os><type>hvm</type></os><devices>"+
		"<disk type='file' device='disk'><source file='/srv/0.qcow2'/><target dev='vda'/></disk>"+
		"<interface type='bridge'><mac address='52:54:00:11:22:33'/><source bridge='br0'/></interface></devices></domain>", "M1")
	if err != nil {
		t.Fatal(err)
	}
	seen := func() {
		t.Helper()
		if e := nextEvent(t, c); e.UUID != uuidA || e.Kind != kindLifecycle {
			t.Errorf("event %+v", e)
		}
	}
	want := func(state gpu.VMState, trial bool) {
		t.Helper()
		vm, err := c.VM(ctx, "moved")
		if err != nil || vm.State != state || vm.Trial != trial || vm.Mark != "M1" || !vm.Persistent {
			t.Errorf("%+v, %v", vm, err)
		}
	}
	for range 2 {
		wantCode(t, c.Define(ctx, doc), "", "")
	}
	seen()
	want(gpu.VMShutoff, false)
	wantCode(t, c.Define(ctx, strings.Replace(doc, ">moved<", ">test<", 1)), gpu.CodeConflict, `VM "moved" has the UUID`)
	wantCode(t, c.Define(ctx, strings.Replace(strings.Replace(doc, ">moved<", ">test<", 1), uuidA, uuidB, 1)), gpu.CodeConflict, "of that name")

	network := "<network><name>trial</name><uuid>" + uuidB + "</uuid><bridge stp='on'/></network>"
	for range 2 {
		wantCode(t, c.CreateNetwork(ctx, network), "", "")
	}
	wantCode(t, c.DestroyNetwork(ctx, "default"), gpu.CodeConflict, "permanent")

	before := inactive(t, conn)
	for range 2 {
		wantCode(t, c.StartTrial(ctx, uuidA, "M1", Trial{Disks: map[string]string{"/srv/0.qcow2": "/srv/trial.qcow2"}, Network: "trial"}), "", "")
	}
	seen()
	want(gpu.VMRunning, true)
	if after := inactive(t, conn); after != before {
		t.Errorf("the definition was\n%s\nand is\n%s", before, after)
	}
	wantCode(t, c.Start(ctx, uuidA), gpu.CodeConflict, "a trial of it runs")
	wantCode(t, c.Undefine(ctx, uuidA, "M1"), gpu.CodeConflict, "it runs")
	for range 2 {
		wantCode(t, c.Stop(ctx, uuidA), "", "")
	}
	seen()
	want(gpu.VMShutoff, false)
	if after := inactive(t, conn); after != before {
		t.Errorf("the definition was\n%s\nand is\n%s", before, after)
	}
	for range 2 {
		wantCode(t, c.Start(ctx, uuidA), "", "")
	}
	seen()
	want(gpu.VMRunning, false)
	_, err = c.Agent(ctx, uuidA, `{"execute":"guest-ping"}`)
	wantCode(t, err, gpu.CodeInvalid, "not supported by the connection driver")
	wantCode(t, c.Stop(ctx, uuidA), "", "")
	seen()
	wantCode(t, c.Undefine(ctx, uuidA, "M2"), gpu.CodeConflict, `one of migration "M1"`)
	for range 2 {
		wantCode(t, c.Undefine(ctx, uuidA, "M1"), "", "")
		wantCode(t, c.DestroyNetwork(ctx, "trial"), "", "")
	}
	seen()
	_, err = c.VM(ctx, uuidA)
	wantCode(t, err, gpu.CodeVMNotFound, "")
	vm, err := c.VM(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, c.Undefine(ctx, vm.UUID, "M1"), gpu.CodeConflict, "none that gpuvirt made")
}

func inactive(t *testing.T, conn *libvirt.Connect) string {
	t.Helper()
	dom, err := conn.LookupDomainByUUIDString(uuidA)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dom.Free() }()
	doc, err := dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}
