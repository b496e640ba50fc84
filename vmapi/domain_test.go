package vmapi

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestInterpret(t *testing.T) {
	got, err := interpret(definition{
		live:       readFile(t, "testdata/web1-live.xml"),
		config:     readFile(t, "testdata/web1-config.xml"),
		persistent: true,
		autostart:  true,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := gpu.VM{
		UUID: uuidA, Name: "web1 <prod>", State: gpu.VMRunning, Autostart: true, Persistent: true,
		Hostdevs: []gpu.Hostdev{
			// In both, by our alias.
			{Alias: "ua-gpuvirt-a", Handle: gpu.Handle{MdevUUID: mdev1}, Model: "vfio-pci", Display: true, Live: true, Config: true, GuestAddress: "0000:07:00.0"},
			// In both, by handle: libvirt's alias is in the live definition only.
			{Alias: "hostdev1", Handle: gpu.Handle{PCIAddress: "0000:41:00.4"}, Live: true, Config: true, GuestAddress: "0000:08:00.0", Managed: true},
			// T47: the alias means another device after the next start.
			{Alias: "ua-gpuvirt-b", Handle: gpu.Handle{MdevUUID: mdev2}, Model: "vfio-pci", Live: true, GuestAddress: "0000:09:00.0"},
			// A network card that is a VF.
			{Alias: "hostdev3", Handle: gpu.Handle{PCIAddress: "0000:5e:02.1"}, Live: true, GuestAddress: "0000:01:00.0", Managed: true},
			{Alias: "ua-gpuvirt-b", Handle: gpu.Handle{MdevUUID: "c2177883-f1bb-47f0-914d-32a22e3a8806"}, Model: "vfio-pci", Config: true},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestInterpretState(t *testing.T) {
	const config = "<domain><name>v</name><uuid>" + uuidA + "</uuid></domain>"
	const live = "<domain id='3'><name>v</name><uuid>" + uuidA + "</uuid></domain>"
	for _, tc := range []struct {
		name string
		def  definition
		want gpu.VMState
	}{
		{"running", definition{live: live, config: config}, gpu.VMRunning},
		{"transient", definition{live: live}, gpu.VMRunning},
		{"paused", definition{live: live, state: statePaused}, gpu.VMPaused},
		{"crashed and preserved: holds its devices", definition{live: live, state: stateCrashed}, gpu.VMPaused},
		{"shut off", definition{config: config}, gpu.VMShutoff},
		{"state read before it stopped", definition{config: config, state: statePaused}, gpu.VMShutoff},
		{"crashed", definition{config: config, state: stateCrashed}, gpu.VMCrashed},
	} {
		vm, err := interpret(tc.def)
		if err != nil || vm.State != tc.want {
			t.Errorf("%s: got %s, %v; want %s", tc.name, vm.State, err, tc.want)
		}
	}
}

// T23: what is not understood is an error, never a device left out.
func TestT23InterpretRefuses(t *testing.T) {
	dom := func(devices string) string {
		return "<domain><name>v</name><uuid>" + uuidA + "</uuid><devices>" + devices + "</devices></domain>"
	}
	for name, def := range map[string]definition{
		"nothing":             {},
		"no XML":              {config: "no such thing"},
		"cut off":             {config: dom("")[:60]},
		"no uuid":             {config: "<domain/>"},
		"two domains":         {live: dom(""), config: strings.Replace(dom(""), uuidA, uuidB, 1)},
		"mdev without source": {config: dom("<hostdev mode='subsystem' type='mdev' model='vfio-pci'/>")},
		"mdev with odd uuid":  {config: dom("<hostdev mode='subsystem' type='mdev'><source><address uuid='1'/></source></hostdev>")},
		"pci without address": {config: dom("<hostdev mode='subsystem' type='pci'><source/></hostdev>")},
		"pci without bus":     {config: dom("<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' slot='0x00' function='0x0'/></source></hostdev>")},
		"pci out of range":    {config: dom("<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x100' slot='0x00' function='0x0'/></source></hostdev>")},
		"network card":        {config: dom("<interface type='hostdev'><source/></interface>")},
	} {
		if vm, err := interpret(def); err == nil {
			t.Errorf("%s: got %+v, want an error", name, vm)
		}
	}
	// Devices of other kinds are not ours to understand.
	vm, err := interpret(definition{config: dom(`
		<disk type='strange'><source what='42'/></disk>
		<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>
		<hostdev mode='subsystem' type='future' x='y'><source><z/></source></hostdev>
		<interface type='hostdev'><source><address type='usb' bus='0' device='2'/></source></interface>
		<interface type='network'><source network='default'/></interface>`)})
	if err != nil || len(vm.Hostdevs) != 0 {
		t.Errorf("got %+v, %v", vm, err)
	}
}

func TestIsActive(t *testing.T) {
	for doc, want := range map[string]bool{
		"<domain type='kvm' id='7'><name>x</name></domain>":                          true,
		"<?xml version='1.0'?>\n<!-- hello -->\n<domain id=\"1\" type='kvm'/>":       true,
		"<domain type='kvm'><name>x</name><metadata><x id='7'/></metadata></domain>": false,
		"":  false,
		"<": false,
	} {
		if got := isActive(doc); got != want {
			t.Errorf("isActive(%q) = %v", doc, got)
		}
	}
}

func FuzzParseDomain(f *testing.F) {
	f.Add(readFile(f, "testdata/web1-live.xml"))
	f.Add(readFile(f, "testdata/web1-config.xml"))
	f.Add("<domain><uuid>" + uuidA + "</uuid><devices><hostdev mode='subsystem' type='pci'><source><address bus='07'/></source></hostdev></devices></domain>")
	f.Fuzz(func(t *testing.T, doc string) {
		isActive(doc)
		vm, err := interpret(definition{live: doc, config: doc})
		if err != nil {
			return
		}
		for _, d := range vm.Hostdevs {
			if !d.Live || !d.Config {
				t.Errorf("%+v is in both definitions", d)
			}
			if d.Handle != canonical(d.Handle) || d.Handle == (gpu.Handle{}) {
				t.Errorf("odd handle %+v", d.Handle)
			}
		}
	})
}
