package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
)

const domainWithDevice = `<domain><uuid>3f6d1a52-7c1e-4a55-9b0e-5d1f0a6b7c01</uuid><devices>
<hostdev type='mdev'><source><address uuid='83b8f4f2-509f-382f-3c1e-e6bfe0fa1001'/></source></hostdev></devices></domain>`

// Whoever does not answer, the hook has ended when its time is up, in the way that it was told
// to (T45): a daemon that takes the connection and hangs, and a libvirt that never ends what it
// writes.
func TestHookEndsInTime_T45(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for name, c := range map[string]struct {
		stdin  func(t *testing.T) io.Reader
		socket string
	}{
		"a daemon that hangs":     {func(*testing.T) io.Reader { return strings.NewReader(domainWithDevice) }, socket},
		"no daemon":               {func(*testing.T) io.Reader { return strings.NewReader(domainWithDevice) }, socket + "x"},
		"input that has no end":   {openPipe, socket},
		"input that goes on":      {func(*testing.T) io.Reader { return endless{} }, socket},
		"a definition that is no": {func(*testing.T) io.Reader { return strings.NewReader("virsh") }, socket},
	} {
		for strict, want := range map[bool]int{false: exitDone, true: exitFailed} {
			args := []string{"--socket", c.socket, "libvirt-hook", "--budget", "300ms"}
			if strict {
				args = append(args, "--refuse-unknown")
			}
			var out, errs strings.Builder
			begin := time.Now()
			got := run(t.Context(), append(args, "--", "web1", "prepare", "begin", "-"), streams{in: c.stdin(t), out: &out, err: &errs})
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("%s: it took %s", name, took)
			}
			// What goes to the standard output would be taken for another definition in some calls.
			if got != want || out.String() != "" || !strings.Contains(errs.String(), "web1") {
				t.Errorf("%s, strict: %t: exit status %d, want %d; %q, %q", name, strict, got, want, out.String(), errs.String())
			}
		}
	}
}

func openPipe(t *testing.T) io.Reader {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); r.Close() })
	return r
}

// endless is more than any definition.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, strings.Repeat("<", len(p))), nil }

// What the daemon does not know is not taken for well, nor for a reason.
func TestHookAndTheUnknown(t *testing.T) {
	f, socket := startFake(t)
	f.answers["POST vms/3f6d1a52-7c1e-4a55-9b0e-5d1f0a6b7c01/check-start"] = api.StartCheck{Findings: []api.StartFinding{{Code: "unavailable", Message: "the driver hangs"}}}
	for strict, want := range map[bool]int{false: exitDone, true: exitFailed} {
		args := []string{"--socket", socket, "libvirt-hook"}
		if strict {
			args = append(args, "--refuse-unknown")
		}
		var errs strings.Builder
		got := run(t.Context(), append(args, "web1", "prepare", "begin"), streams{in: strings.NewReader(domainWithDevice), out: io.Discard, err: &errs})
		if got != want || !strings.Contains(errs.String(), "the driver hangs") {
			t.Errorf("strict: %t: exit status %d, %q", strict, got, errs.String())
		}
	}
	if want := `POST /v1/vms/3f6d1a52-7c1e-4a55-9b0e-5d1f0a6b7c01/check-start {"devices":[{"mdev_uuid":"83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"}]}`; len(f.requests) == 0 || f.requests[0] != want {
		t.Errorf("asked %q", f.requests)
	}
}

func TestParseDomain(t *testing.T) {
	const id = "<uuid>3F6D1A52-7c1e-4a55-9b0e-5d1f0a6b7c01</uuid>"
	pci := func(address string) string {
		return "<domain>" + id + "<devices><hostdev type='pci'><source><address " + address + "/></source></hostdev></devices></domain>"
	}
	for text, want := range map[string][]api.Handle{
		"<domain>" + id + "</domain>":                                 {},
		pci("domain='0x0001' bus='0x41' slot='0x1f' function='0x7'"):  {{PCIAddress: "0001:41:1f.7"}},
		pci("bus='65' slot='0' function='0'"):                         {{PCIAddress: "0000:41:00.0"}},
		pci("domain='0x10000' bus='0xe1' slot='0x00' function='0x5'"): {{PCIAddress: "10000:e1:00.5"}},
		pci("domain='0' bus='0x141' slot='0' function='0'"):           nil,
		pci("domain='0' bus='1' slot='0x20' function='0'"):            nil,
		pci(""):                         nil,
		"<domain><devices/></domain>":   nil,
		"<network>" + id + "</network>": nil,
		"":                              nil,
		strings.Replace(domainWithDevice, "type='mdev'", "type='scsi'", 1):   {},
		strings.Replace(domainWithDevice, "83b8f4f2", "83B8F4F2", 1):         {{MdevUUID: "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"}},
		strings.Replace(domainWithDevice, "</devices>", "</devices><x/>", 1): {{MdevUUID: "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"}},
	} {
		d, err := parseDomain([]byte(text))
		if (err == nil) != (want != nil) {
			t.Errorf("%s: %+v, %v", text, d, err)
		} else if err == nil && (d.uuid != "3f6d1a52-7c1e-4a55-9b0e-5d1f0a6b7c01" || !cmp.Equal(d.devices, want)) {
			t.Errorf("%s: %+v, want %+v", text, d, want)
		}
	}
}
