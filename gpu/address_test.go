package gpu_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
)

func TestParseAddress_T37(t *testing.T) {
	for in, want := range map[string]string{
		"0000:41:00.0":     "0000:41:00.0",
		"0001:d6:1f.7":     "0001:d6:1f.7",
		"10000:e1:00.0":    "10000:e1:00.0", // behind a VMD controller
		"00000000:3B:00.0": "0000:3b:00.0",  // NVML
		"00010000:E1:00.0": "10000:e1:00.0",
		"ffffffff:ff:1f.7": "ffffffff:ff:1f.7",
	} {
		got, err := gpu.ParseAddress(in)
		if err != nil || got.String() != want || got.ID() != gpu.ID(want) {
			t.Errorf("ParseAddress(%q) = %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "41:00.0", ":41:00.0", "000:41:00.0", "0000:41:00", "0000:41:20.0", "0000:41:00.8", "0000:4:00.0", "0000:41:00.00",
		"000000000:41:00.0", "0000:d6.0", "0000:41:00.0 ", "+000:41:00.0", "0000:0x:00.0", "0000:1_:00.0", "mbochs", "0000:41:00.0\n",
		"pci_0000_41_00_0", "0000:fg:00.0",
	} {
		if got, err := gpu.ParseAddress(in); err == nil {
			t.Errorf("ParseAddress(%q) = %s, want an error", in, got)
		}
	}
}

func TestParseAddressFields_T37(t *testing.T) {
	for _, tc := range []struct {
		in   [4]string
		want string
	}{
		{[4]string{"0x0000", "0x41", "0x00", "0x0"}, "0000:41:00.0"},
		{[4]string{"0x0001", "0xD6", "0x1f", "0x7"}, "0001:d6:1f.7"},
		{[4]string{"0x10000", "0xe1", "0x00", "0x0"}, "10000:e1:00.0"},
		{[4]string{"", "0x7", "0x0", "0x0"}, "0000:07:00.0"},
		{[4]string{"0x0000", "0x00", "0xd6", "0x0"}, ""}, // the domain was dropped and the rest moved up
		{[4]string{"0", "0x41", "0x00", "0x0"}, ""},
		{[4]string{"0x0000", "", "0x00", "0x0"}, ""},
	} {
		got, err := gpu.ParseAddressFields(tc.in[0], tc.in[1], tc.in[2], tc.in[3])
		if (err == nil) != (tc.want != "") || (err == nil && got.String() != tc.want) {
			t.Errorf("ParseAddressFields(%q) = %s, %v; want %q", tc.in, got, err, tc.want)
		}
	}
}

func TestAddressOrder_T43(t *testing.T) {
	var got []gpu.Address
	for _, s := range []string{"10000:00:00.0", "0000:41:00.1", "0001:00:00.0", "0000:41:00.0", "0000:09:1f.0"} {
		a, err := gpu.ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a)
	}
	slices.SortFunc(got, gpu.Address.Compare)
	if s := fmt.Sprint(got); s != "[0000:09:1f.0 0000:41:00.0 0000:41:00.1 0001:00:00.0 10000:00:00.0]" {
		t.Error(s)
	}
}

// Whatever is read is written in one form, and that form reads as the same place.
func FuzzAddress_T37(f *testing.F) {
	for _, s := range []string{"0000:41:00.0", "0001:d6:1f.7", "10000:e1:00.0", "00000000:3B:00.0", "41:00.0", "::."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := gpu.ParseAddress(s)
		if err != nil {
			return
		}
		text := a.String()
		var back gpu.Address
		if err := back.UnmarshalText([]byte(text)); err != nil || back != a {
			t.Fatalf("%q was read as %s, which reads as %s, %v", s, text, back, err)
		}
		domain := max(4, len(strings.TrimLeft(strings.SplitN(text, ":", 2)[0], "0")))
		if len(text) != domain+len(":41:00.0") {
			t.Fatalf("%q is written as %q: want 4+2+2+1 digits", s, text)
		}
		fields, err := gpu.ParseAddressFields(
			fmt.Sprintf("0x%04x", a.Domain), fmt.Sprintf("0x%02X", a.Bus), fmt.Sprintf("0x%02x", a.Slot), fmt.Sprintf("0x%x", a.Function))
		if err != nil || fields != a {
			t.Fatalf("libvirt's form of %s reads as %s, %v", a, fields, err)
		}
	})
}
