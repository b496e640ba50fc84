package packaging

import (
	"os"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"
)

// What the role of the Ansible collection installs for conversions is what the packages suggest,
// and its libvirt is the one that they recommend.
func TestRoleInstallsWhatPackagesName(t *testing.T) {
	read := func(path string, into any) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(data, into); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	var role struct {
		Libvirt map[string][]string `yaml:"gpuvirt_libvirt_packages"`
		P2V     map[string][]string `yaml:"gpuvirt_p2v_packages"`
	}
	read("../ansible/roles/host/vars/main.yml", &role)
	var nfpm struct {
		Overrides map[string]struct{ Recommends, Suggests []string }
	}
	read("nfpm.yaml", &nfpm)
	for family, packager := range map[string]string{"Debian": "deb", "RedHat": "rpm"} {
		has := nfpm.Overrides[packager]
		if !slices.Equal(role.P2V[family], has.Suggests) || len(has.Suggests) == 0 {
			t.Errorf("%s: for conversions the role installs %q, the package suggests %q", family, role.P2V[family], has.Suggests)
		}
		if libvirt := role.Libvirt[family]; len(libvirt) == 0 || !slices.Contains(has.Recommends, libvirt[0]) {
			t.Errorf("%s: the role installs %q, the package recommends %q", family, libvirt, has.Recommends)
		}
	}
}
