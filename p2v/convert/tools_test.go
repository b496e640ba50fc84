package convert

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

func TestProbe(t *testing.T) {
	h := newHost(t)
	got, err := New(h.cfg).Probe(t.Context())
	if err != nil || got.Ready() != nil {
		t.Fatal(err, got.Ready())
	}
	if got.InPlace.Version != "2.2.0" || !got.InPlace.Has("in-place") || !got.InPlace.Has("--root") || got.InPlace.Has("--no-fstrim") {
		t.Errorf("%+v", got.InPlace)
	}
	if got.Customize.Version != "1.48.2" || got.QemuImg.Version != "7.2.22" {
		t.Errorf("%+v, %+v", got.Customize, got.QemuImg)
	}
	var missing []string
	for _, m := range got.Missing {
		missing = append(missing, m.Name)
	}
	if d := cmp.Diff([]string{"virt-v2v", "virt-v2v-inspector", "qemu-nbd"}, missing); d != "" {
		t.Error(d)
	}
}

// A look runs nothing, and does not wait for who does: the appliance may be tried for minutes.
func TestLook(t *testing.T) {
	h := newHost(t)
	c := New(h.cfg)
	c.probing.Lock()
	defer c.probing.Unlock()
	if err := c.Look(); err != nil || h.seen("called") != "" || h.seen("tried") != "" {
		t.Errorf("%v, called %q", err, h.seen("called"))
	}
	h.cfg.User = "gpuvirt-nobody-has-this"
	if err := New(h.cfg).Look(); err == nil || !strings.Contains(err.Error(), h.cfg.User) {
		t.Error(err)
	}
}

func TestProbeMissing(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"virt-v2v-in-place", "qemu-img"} {
		if err := os.Remove(filepath.Join(h.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	c := New(h.cfg)
	got, err := c.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = got.Ready()
	wantCode(t, err, gpu.CodeUnavailable)
	e, ok := errors.AsType[*gpu.Error](err)
	if !ok || !strings.Contains(e.Detail, "virt-v2v-in-place, qemu-img is missing") ||
		!strings.Contains(e.Hint, "debian: virt-v2v qemu-utils") || !strings.Contains(e.Hint, "rhel: virt-v2v qemu-img") {
		t.Errorf("%+v", e)
	}
	if h.seen("tried") != "" {
		t.Error("the appliance was tried")
	}
	if looked := c.Look(); looked == nil || looked.Error() != err.Error() {
		t.Errorf("by a look: %v, want %v", looked, err)
	}
	_, err = c.Convert(t.Context(), Job{})
	wantCode(t, err, gpu.CodeUnavailable)
	// Who installs them need not restart anything.
	for _, name := range []string{"virt-v2v-in-place", "qemu-img"} {
		text, err := os.ReadFile(filepath.Join("testdata/bin", name))
		if err != nil {
			t.Fatal(err)
		}
		h.tell(name, string(text))
		if err := os.Chmod(filepath.Join(h.bin, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, err = c.Probe(t.Context()); err != nil || got.Ready() != nil {
		t.Error(err, got.Ready())
	}
}

func TestAppliance(t *testing.T) {
	for _, c := range []struct {
		name, answers string
		kvm           bool
		want          ApplianceState
		tried         string
	}{
		{"kvm works", "tcg ok\nkvm ok\n", true, ApplianceKVM, "tcg\nkvm"},
		{"kvm does not", "tcg ok\nkvm broken\n", true, ApplianceTCG, "tcg\nkvm"},
		{"no kvm", "tcg ok\nkvm ok\n", false, ApplianceTCG, "tcg"},
		{"nothing works", "tcg broken\nkvm broken\n", true, ApplianceBroken, "tcg\ntcg\ntcg"}, // an emulator may die once
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.tell("appliance", c.answers)
			if c.kvm {
				h.tell("kvm", "")
			}
			conv := New(h.cfg)
			got, err := conv.Probe(t.Context())
			if err != nil || got.Appliance.State != c.want || h.seen("tried") != c.tried {
				t.Fatalf("%+v, %q, %v", got.Appliance, h.seen("tried"), err)
			}
			if broken := got.Ready() != nil; broken != (c.want == ApplianceBroken) {
				t.Error(got.Ready())
			}
			h.clean()
			if c.want == ApplianceBroken {
				return // tried again each time: somebody may mend it
			}
			// It is remembered, also by the next daemon, and until the host starts anew.
			for _, again := range []*Converter{conv, New(h.cfg)} {
				got, err = again.Probe(t.Context())
				if err != nil || got.Appliance.State != c.want || h.seen("tried") != c.tried {
					t.Errorf("%+v, %q, %v", got.Appliance, h.seen("tried"), err)
				}
			}
			h.cfg.Boot = "second"
			if _, err := New(h.cfg).Probe(t.Context()); err != nil || h.seen("tried") != c.tried+"\n"+c.tried {
				t.Errorf("%q, %v", h.seen("tried"), err)
			}
		})
	}
}

// A KVM that hangs costs its limit once, and then nobody waits for it.
func TestApplianceHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for ten seconds")
	}
	t.Parallel()
	h := newHost(t)
	h.tell("appliance", "tcg ok\nkvm hangs\n")
	h.tell("kvm", "")
	got, err := New(h.cfg).Probe(t.Context())
	if err != nil || got.Appliance.State != ApplianceTCG || !strings.Contains(got.Appliance.Detail, errNotUp.Error()) {
		t.Errorf("%+v, %v", got.Appliance, err)
	}
}

func TestProbeCancelled(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(h.cfg).Probe(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Each program that is needed can be installed by name.
func TestPackagesAreNamed(t *testing.T) {
	for _, name := range slices.Concat(needed, []string{nameV2V, nameInspector, nameQemuNBD, nameTestTool}) {
		for _, id := range []string{"debian", "ubuntu", "rhel", "fedora", "suse"} {
			if packages[name][id] == "" {
				t.Errorf("%s has no package on %s", name, id)
			}
		}
	}
}
