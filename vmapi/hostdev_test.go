package vmapi

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

var update = flag.Bool("update", false, "write the golden files")

func TestHostdevXML(t *testing.T) {
	for _, tc := range []struct {
		golden string
		dev    gpu.Hostdev
	}{
		{"mdev", gpu.Hostdev{Alias: "ua-gpuvirt-web1", Handle: gpu.Handle{MdevUUID: mdev1}}},
		{"T52-mdev-display", gpu.Hostdev{Alias: "ua-gpuvirt-web1", Handle: gpu.Handle{MdevUUID: mdev1}, Model: "vfio-pci", Display: true}},
		{"T52-mdev-ramfb", gpu.Hostdev{Alias: "ua-gpuvirt-web1", Handle: gpu.Handle{MdevUUID: mdev1}, Model: "vfio-pci", Display: true, RamFB: true}},
		{"T52-vgpu-display", gpu.Hostdev{Alias: "ua-gpuvirt-web1", Handle: gpu.Handle{PCIAddress: "0000:41:00.4"}, Display: true}},
		{"T52-vgpu-ramfb", gpu.Hostdev{Alias: "ua-gpuvirt-web1", Handle: gpu.Handle{PCIAddress: "0000:41:00.4"}, Display: true, RamFB: true}},
		{"mdev-ap", gpu.Hostdev{Alias: "ua-gpuvirt-web1", Handle: gpu.Handle{MdevUUID: mdev1}, Model: "vfio-ap"}},
		{"pci", gpu.Hostdev{Alias: "ua-gpuvirt-web1", Handle: gpu.Handle{PCIAddress: "0000:41:1f.7"}}},
		{"pci-long-domain", gpu.Hostdev{Alias: "ua-gpuvirt-web1", Handle: gpu.Handle{PCIAddress: "10000:0A:00.0"}}},
	} {
		t.Run(tc.golden, func(t *testing.T) {
			got, err := hostdevXML(tc.dev)
			if err != nil {
				t.Fatal(err)
			}
			got += "\n"
			path := filepath.Join("testdata", "hostdev-"+tc.golden+".xml")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got; -update writes it):\n%s", path, diff)
			}
			// What is written reads as the same device.
			var h libvirtxml.DomainHostdev
			if err := h.Unmarshal(got); err != nil {
				t.Fatal(err)
			}
			back, ok, err := readHostdev(&h)
			if !ok || err != nil {
				t.Fatalf("cannot read it back: %v", err)
			}
			if back.Handle != canonical(tc.dev.Handle) || back.Alias != tc.dev.Alias || back.Display != tc.dev.Display || back.RamFB != tc.dev.RamFB {
				t.Errorf("read back as %+v", back)
			}
		})
	}
}

func TestHostdevXMLRefuses(t *testing.T) {
	mdev := gpu.Handle{MdevUUID: mdev1}
	for name, dev := range map[string]gpu.Hostdev{
		"no alias":         {Handle: mdev},
		"alias of libvirt": {Alias: "hostdev0", Handle: mdev},
		"empty user alias": {Alias: "ua-", Handle: mdev},
		"quote in alias":   {Alias: "ua-'/>", Handle: mdev},
		"newline in alias": {Alias: "ua-x\n", Handle: mdev},
		"no handle":        {Alias: "ua-x"},
		"two handles":      {Alias: "ua-x", Handle: gpu.Handle{MdevUUID: mdev1, PCIAddress: "0000:41:00.0"}},
		"bad mdev":         {Alias: "ua-x", Handle: gpu.Handle{MdevUUID: "mdev_c2177883"}},
		"braces":           {Alias: "ua-x", Handle: gpu.Handle{MdevUUID: "{" + mdev1 + "}"}},
		"bad address":      {Alias: "ua-x", Handle: gpu.Handle{PCIAddress: "41:00.0"}},
		"bad model":        {Alias: "ua-x", Handle: mdev, Model: "virtio"},
		"ramfb alone":      {Alias: "ua-x", Handle: mdev, RamFB: true},
		"ramfb of a card":  {Alias: "ua-x", Handle: gpu.Handle{PCIAddress: "0000:41:00.0"}, RamFB: true},
	} {
		if doc, err := hostdevXML(dev); err == nil {
			t.Errorf("%s: got %s, want an error", name, doc)
		}
	}
}
