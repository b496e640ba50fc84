package daemon

import (
	"strings"
	"testing"
)

// What a hook sends is checked as strictly as all else, and names no VM that libvirt would have
// to be asked for (T45).
func TestCheckStartRefuses(t *testing.T) {
	h := newHarness(t)
	for _, tc := range []struct{ target, body, want string }{
		{"/v1/vms/web1/check-start", `{"devices":[]}`, `vm "web1" is no UUID`},
		{"/v1/vms/" + web1 + "/check-start", `{}`, `"devices" is missing`},
		{"/v1/vms/" + web1 + "/check-start", `{"devices":[{}]}`, `"devices[0]" must have either`},
		{"/v1/vms/" + web1 + "/check-start", `{"devices":[{"mdev_uuid":"` + mdev1 + `","pci_address":"0000:41:00.4"}]}`, `"devices[0]" must have either`},
		{"/v1/vms/" + web1 + "/check-start", `{"devices":[{"pci_address":"0000:41:00.4"},{"mdev_uuid":"x"}]}`, `"devices[1].mdev_uuid" is no UUID`},
		{"/v1/vms/" + web1 + "/check-start", `{"devices":[{"pci_address":"x"}]}`, `"devices[0].pci_address" is malformed`},
		{"/v1/vms/" + web1 + "/check-start", `{"devices":[` + strings.Repeat(`{"pci_address":"0000:41:00.4"},`, 256) + `{"pci_address":"0000:41:00.4"}]}`, `"devices" has more than 256`},
	} {
		a := h.do(t, call{method: "POST", target: tc.target, body: tc.body, bad: true})
		if p := a.problem(t); a.status != 400 || !strings.Contains(p.Detail, tc.want) {
			t.Errorf("%.100s: %d %s, want %q", tc.body, a.status, p.Detail, tc.want)
		}
	}
}
