package convert

import (
	"testing"

	"gpuvirt/gpu"
)

func wanted() Domain {
	return Domain{
		Name: "metal1", UUID: "5e9f3a52-5dd1-4d0c-9b5e-2f64d7a7a001", MemoryBytes: 2 << 30, VCPUs: 4, Firmware: FirmwareBIOS,
		Disks:     []string{"/m/0.qcow2", "/m/1.qcow2"},
		NICs:      []DomainNIC{{MAC: "52:54:00:aa:bb:01", Bridge: "br0"}, {MAC: "52:54:00:aa:bb:02", Network: "storage", Down: true}},
		SerialLog: "/m/serial.log",
	}
}

func TestDomain(t *testing.T) {
	for name, change := range map[string]func(*Domain){
		"domain-bios.xml": func(*Domain) {},
		"domain-uefi.xml": func(d *Domain) {
			d.Firmware, d.SecureBoot, d.TPM, d.VFIO, d.CPU, d.SpareSlots = FirmwareUEFI, true, true, true, "EPYC-Rome", 1
		},
		"domain-unplugged.xml": func(d *Domain) { d.Boot, d.NICs = 1, []DomainNIC{{MAC: "52:54:00:aa:bb:01", Down: true}} },
		"domain-rehearsal.xml": func(d *Domain) {
			d.Firmware, d.Isolated, d.Emulated, d.CPU, d.UUID, d.VFIO = FirmwareUEFI, "rehearsal", true, "maximum", "", true
		},
	} {
		d := wanted()
		change(&d)
		got, err := d.XML()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		golden(t, name, got)
	}
	got, err := IsolatedNetwork("rehearsal", "2b1d6f7e-6f3c-5a5e-9b7e-0f3d2c1b4a59")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "network.xml", got)
}

func TestDomainRefused(t *testing.T) {
	for name, change := range map[string]func(*Domain){
		"name":        func(d *Domain) { d.Name = "" },
		"uuid":        func(d *Domain) { d.UUID = "1" },
		"memory":      func(d *Domain) { d.MemoryBytes = 1<<30 + 1 },
		"no memory":   func(d *Domain) { d.MemoryBytes = 0 },
		"cpus":        func(d *Domain) { d.VCPUs = 0 },
		"cpu":         func(d *Domain) { d.CPU = "a b" },
		"firmware":    func(d *Domain) { d.Firmware = "" },
		"secure bios": func(d *Domain) { d.SecureBoot = true },
		"no disk":     func(d *Domain) { d.Disks = nil },
		"boot":        func(d *Domain) { d.Boot = 2 },
		"boot below":  func(d *Domain) { d.Boot = -1 },
		"disk":        func(d *Domain) { d.Disks = []string{"a"} },
		"serial":      func(d *Domain) { d.SerialLog = "" },
		"mac":         func(d *Domain) { d.NICs[0].MAC = "x" },
		"nowhere":     func(d *Domain) { d.NICs[0].Bridge = "" },
		"two places":  func(d *Domain) { d.NICs[0].Network = "a" },
		"down twice": func(d *Domain) {
			d.NICs[0] = DomainNIC{MAC: "52:54:00:aa:bb:01", Network: "a", Bridge: "b", Down: true}
		},
		"bridge":   func(d *Domain) { d.NICs[0].Bridge = "longer-than-a-name" },
		"network":  func(d *Domain) { d.NICs[1].Network = "a/b" },
		"isolated": func(d *Domain) { d.Isolated = "a b" },
		"slots":    func(d *Domain) { d.SpareSlots = 33 },
	} {
		d := wanted()
		change(&d)
		if _, err := d.XML(); gpu.CodeOf(err) != gpu.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := IsolatedNetwork("a b", "2b1d6f7e-6f3c-5a5e-9b7e-0f3d2c1b4a59"); err == nil {
		t.Error("an odd name is taken")
	}
}
