package vmapi

import (
	"fmt"
	"testing"
	"testing/synctest"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// plugged is a definition that names what the host has to have.
func plugged(kind, cpu, source string) string {
	return fmt.Sprintf(`<domain type='%s'><name>moved</name><uuid>%s</uuid><memory>1024</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>%s<devices>%s</devices></domain>`,
		kind, uuidA, cpu, source)
}

func nic(kind, name string) string {
	return fmt.Sprintf("<interface type='%s'><mac address='52:54:00:11:22:33'/><source %[1]s='%[2]s'/></interface>", kind, name)
}

func model(name string) string {
	return "<cpu mode='custom' match='exact'><model fallback='forbid'>" + name + "</model></cpu>"
}

const domcapabilities = `<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/><mode name='maximum' supported='no'/>
<mode name='host-model' supported='yes'><model fallback='forbid'>EPYC-Rome</model></mode>
<mode name='custom' supported='yes'><model usable='yes' vendor='AMD'>EPYC-Rome</model><model usable='no' vendor='Intel'>SapphireRapids</model></mode></cpu></domainCapabilities>`

func TestFits(t *testing.T) {
	for name, c := range map[string]struct {
		doc  string
		code gpu.Code
		want string
	}{
		"nothing":     {plugged("kvm", "", ""), "", ""},
		"all":         {plugged("kvm", model("EPYC-Rome"), nic("network", "default")+nic("bridge", "br0")), "", ""},
		"no network":  {plugged("kvm", "", nic("network", "nonet")), gpu.CodeConflict, `VM moved could not start: libvirt has no network "nonet"`},
		"off":         {plugged("kvm", "", nic("network", "off")), gpu.CodeConflict, `network "off" of libvirt is not started`},
		"no bridge":   {plugged("kvm", "", nic("bridge", "br0")+nic("bridge", "nobr")), gpu.CodeConflict, `the host has no bridge "nobr"`},
		"a NIC":       {plugged("kvm", "", nic("bridge", "eth0")), gpu.CodeConflict, `"eth0" of the host is no bridge`},
		"untold":      {plugged("kvm", "", nic("bridge", "odd")), "", ""},
		"no model":    {plugged("kvm", model("bogus"), ""), gpu.CodeConflict, `libvirt knows no CPU model "bogus"`},
		"more":        {plugged("kvm", model("SapphireRapids"), ""), gpu.CodeConflict, `has not all that CPU model "SapphireRapids" has`},
		"emulated":    {plugged("qemu", model("SapphireRapids"), ""), "", ""},
		"passthrough": {plugged("kvm", "<cpu mode='host-passthrough'/>", ""), "", ""},
		"host-model":  {plugged("kvm", "<cpu mode='host-model'/>", ""), "", ""},
		"maximum":     {plugged("kvm", "<cpu mode='maximum'/>", ""), gpu.CodeConflict, `a CPU of the mode "maximum"`},
		"no XML":      {"<domain", gpu.CodeInvalid, "cannot parse"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lv := &fakeLibvirt{
					networks:   []fakeNetwork{{"default", network{uuidB, true, true}}, {"off", network{uuidB, false, true}}},
					interfaces: map[string]string{"br0": "bridge", "eth0": "ethernet", "odd": ""}, can: domcapabilities,
					vms: []*fakeVM{{uuid: uuidA, name: "moved", doc: c.doc}},
				}
				cl := start(t, lv, Config{})
				wantCode(t, cl.Fits(t.Context(), c.doc), c.code, c.want)
				if name != "no XML" {
					wantCode(t, cl.Startable(t.Context(), uuidA), c.code, c.want)
				}
			})
		})
	}
}

// What libvirt cannot tell is in nobody's way, and what it does not answer is not taken for a yes.
func TestFitsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{fail: map[string]error{"capabilities x86_64 q35 kvm": virError(libvirt.ERR_NO_SUPPORT, "this function is not supported by the connection driver")}}
		c := start(t, lv, Config{})
		wantCode(t, c.Fits(t.Context(), plugged("kvm", model("bogus"), "")), "", "")
		lv.set(func() {
			lv.fail["capabilities x86_64 q35 kvm"] = virError(libvirt.ERR_INVALID_ARG, "the accel 'kvm' is not supported")
		})
		wantCode(t, c.Fits(t.Context(), plugged("kvm", model("bogus"), "")), gpu.CodeConflict, "the accel 'kvm' is not supported")
		wantCode(t, c.Startable(t.Context(), uuidB), gpu.CodeVMNotFound, "")
		lv.set(func() { lv.fail["network"] = virError(libvirt.ERR_RPC, "it is away") })
		wantCode(t, c.Fits(t.Context(), plugged("kvm", "", nic("network", "default"))), gpu.CodeUnavailable, "")
	})
}

// The same of the C library's test driver, which has a network "default" and a NIC "eth1".
func TestLibvirtFits(t *testing.T) {
	c, conns := startReal(t, "test:///default")
	conn := (<-conns).conn
	ctx := t.Context()
	wantCode(t, c.Fits(ctx, plugged("test", "", nic("network", "default"))), "", "")
	wantCode(t, c.Fits(ctx, plugged("test", "", nic("network", "nonet"))), gpu.CodeConflict, `libvirt has no network "nonet"`)
	wantCode(t, c.Fits(ctx, plugged("test", "", nic("bridge", "nobr"))), gpu.CodeConflict, `the host has no bridge "nobr"`)
	wantCode(t, c.Fits(ctx, plugged("test", "", nic("bridge", "eth1"))), gpu.CodeConflict, `"eth1" of the host is no bridge`)
	wantCode(t, c.Fits(ctx, plugged("test", model("bogus"), "")), "", "") // it does not tell
	net, err := conn.LookupNetworkByName("default")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = net.Free() }()
	if err := net.Destroy(); err != nil {
		t.Fatal(err)
	}
	wantCode(t, c.Fits(ctx, plugged("test", "", nic("network", "default"))), gpu.CodeConflict, "is not started")
	vm, err := c.VM(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, c.Startable(ctx, vm.UUID), gpu.CodeConflict, "is not started") // it is on that one
	wantCode(t, net.Create(), "", "")
	wantCode(t, c.Startable(ctx, vm.UUID), "", "")
}
