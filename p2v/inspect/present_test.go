package inspect

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/report"
)

// A disk has the identity that an inspection gives it, whatever it is called, and is told with the boot.
func TestPresent(t *testing.T) {
	s := newServer(t)
	s.files(anyServer + "-- proc/uptime --\n4711.05 3.00\n")
	s.disk("nvme0n1", "pci0000:00/0000:01:00.0/nvme/nvme0", "259:0", 2048, "")
	s.file("sys/block/nvme0n1/wwid", "eui.0025388b01234567\n")
	s.disk("vda", "pci0000:00/0000:02:00.0/virtio0", "252:0", 4096, "")
	look, err := New(Options{Root: s.root, Bin: []string{s.bin}})
	if err != nil {
		t.Fatal(err)
	}
	defer look.Close()
	var out bytes.Buffer
	if err := look.Present().Write(&out); err != nil {
		t.Fatal(err)
	}
	var got report.Present
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Check() != nil {
		t.Fatal(err, got.Check())
	}
	want := report.Present{Version: report.Version, BootID: "6f0f3a0e-5d0c-4a1b-9a67-0c2f0b3f9a11", Up: 4711, Disks: []report.Here{
		{Name: "nvme0n1", ID: "wwn:eui.0025388b01234567", SizeBytes: 1 << 20}, {Name: "vda", ID: "name:vda:2097152", SizeBytes: 2 << 20},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if lines := bytes.Count(out.Bytes(), []byte("\n")); lines != 1 {
		t.Errorf("%d lines", lines)
	}
}
