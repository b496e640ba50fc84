package mdev

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseDescription(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		want facts
	}{
		"nvidia": {
			"num_heads=4, frl_config=60, framebuffer=4096M, max_resolution=7680x4320, max_instance=4",
			facts{memory: 4 << 30, max: 4, attrs: map[string]string{"num_heads": "4", "frl_config": "60", "max_resolution": "7680x4320"}},
		},
		"nvidia, half a gigabyte": {
			"num_heads=2, frl_config=45, framebuffer=512M, max_resolution=2560x1600, max_instance=16",
			facts{memory: 512 << 20, max: 16, attrs: map[string]string{"num_heads": "2", "frl_config": "45", "max_resolution": "2560x1600"}},
		},
		"intel": {
			"low_gm_size: 128MB\nhigh_gm_size: 512MB\nfence: 4\nresolution: 1920x1200\nweight: 4",
			facts{memory: 640 << 20, attrs: map[string]string{
				"low_gm_size": "128MB", "high_gm_size": "512MB", "fence": "4", "resolution": "1920x1200", "weight": "4",
			}},
		},
		"mbochs":         {"virtual display, 4 MB video memory", facts{memory: 4 << 20, attrs: map[string]string{}}},
		"mdpy":           {"virtual display, 640x480 framebuffer", facts{attrs: map[string]string{}}},
		"none":           {"", facts{attrs: map[string]string{}}},
		"not understood": {"framebuffer=lots, max_instance=-1", facts{attrs: map[string]string{"framebuffer": "lots", "max_instance": "-1"}}},
		"too large":      {"framebuffer=18446744073709551615G, max_instance=99999999999", facts{attrs: map[string]string{"framebuffer": "18446744073709551615G", "max_instance": "99999999999"}}},
		"half of intel":  {"low_gm_size: 128MB", facts{attrs: map[string]string{"low_gm_size": "128MB"}}},
	} {
		if diff := cmp.Diff(tc.want, parseDescription(tc.in), cmp.AllowUnexported(facts{})); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{"1024M": 1 << 30, "128MB": 128 << 20, "4 GiB": 4 << 30, "1K": 1024, "4294967296G": 1 << 62} {
		if got, ok := parseSize(in); !ok || got != want {
			t.Errorf("parseSize(%q) = %d, %t", in, got, ok)
		}
	}
	for _, in := range []string{"", "M", "1024", "-1M", "1.5G", "99999999999G", "1T", "1M M"} {
		if got, ok := parseSize(in); ok {
			t.Errorf("parseSize(%q) = %d", in, got)
		}
	}
}

// Whatever a driver writes: no panic, no nonsense numbers, and nothing twice.
func FuzzParseDescription(f *testing.F) {
	for _, s := range []string{
		"num_heads=4, frl_config=60, framebuffer=4096M, max_resolution=7680x4320, max_instance=4",
		"low_gm_size: 128MB\nhigh_gm_size: 512MB\nfence: 4\nresolution: 1920x1200\nweight: 4",
		"virtual display, 4 MB video memory", "framebuffer=8589934592G", "a=,b=", "low_gm_size: 8589934591G\nhigh_gm_size: 8589934591G",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := parseDescription(s)
		if got.max < 0 || got.memory > 1<<63 {
			t.Fatalf("%q: %+v", s, got)
		}
		for k, v := range got.attrs {
			if k == "" || v == "" {
				t.Fatalf("%q: empty attribute in %q", s, got.attrs)
			}
		}
		if diff := cmp.Diff(got, parseDescription(s), cmp.AllowUnexported(facts{})); diff != "" {
			t.Fatalf("%q is read in two ways:\n%s", s, diff)
		}
	})
}
