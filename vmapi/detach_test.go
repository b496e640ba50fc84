package vmapi

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// oneVM is a libvirt with a VM that has our device where scope says.
func oneVM(g guest, where gpu.Scope) (*fakeLibvirt, *fakeVM) {
	vm := &fakeVM{uuid: uuidA, name: "web1", running: true, guest: g}
	foreign := hostdev("hostdev0", gpu.Handle{MdevUUID: mdev2})
	mine := hostdev(gpu.Alias(mdev1), gpu.Handle{MdevUUID: mdev1})
	vm.live, vm.config = []libvirtxml.DomainHostdev{foreign}, []libvirtxml.DomainHostdev{foreign}
	if where.Live {
		vm.live = append(vm.live, mine)
	}
	if where.Config {
		vm.config = append(vm.config, mine)
	}
	return &fakeLibvirt{vms: []*fakeVM{vm}}, vm
}

func TestDetach(t *testing.T) {
	for _, tc := range []struct {
		name    string
		guest   guest
		has     gpu.Scope
		scope   gpu.Scope
		noAlias bool
		code    gpu.Code
		part    string
		calls   []string
		left    gpu.Scope
		takes   time.Duration // at most
	}{
		{name: "both", has: both, scope: both, calls: []string{"detach live", "detach config"}, takes: time.Second},
		{name: "T47 live only", has: both, scope: gpu.Scope{Live: true}, calls: []string{"detach live"}, left: gpu.Scope{Config: true}},
		{name: "T47 config only", has: both, scope: gpu.Scope{Config: true}, calls: []string{"detach config"}, left: gpu.Scope{Live: true}},
		{name: "gone already", scope: both},
		{name: "live gone already", has: gpu.Scope{Config: true}, scope: both, calls: []string{"detach config"}},
		{name: "event lost", guest: guestNoEvent, has: both, scope: both, calls: []string{"detach live", "detach config"}, takes: 3 * time.Second},
		{name: "VM stops instead", guest: guestStops, has: both, scope: both, calls: []string{"detach live", "detach config"}, takes: time.Second},
		{name: "VM is gone altogether", guest: guestVanishes, has: gpu.Scope{Live: true}, scope: both, calls: []string{"detach live"}, takes: time.Second},
		{
			name: "guest refuses", guest: guestRefuses, has: both, scope: both, code: gpu.CodeStuck, part: "refused",
			calls: []string{"detach live"}, left: both, takes: time.Second,
		},
		{
			name: "guest rejects at once", guest: guestRejects, has: both, scope: both, code: gpu.CodeStuck, part: "refused",
			calls: []string{"detach live"}, left: both, takes: time.Second,
		},
		{
			name: "guest does not answer", guest: guestSilent, has: both, scope: both, code: gpu.CodeStuck, part: "has not answered",
			calls: []string{"detach live"}, left: both, takes: 31 * time.Second,
		},
		{
			name: "old libvirt", noAlias: true, has: both, scope: both,
			calls: []string{"detach live", "detach-xml live", "detach config", "detach-xml config"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lv, vm := oneVM(tc.guest, tc.has)
				lv.noAlias = tc.noAlias
				c := start(t, lv, Config{})
				began := time.Now()
				err := c.Detach(t.Context(), uuidA, gpu.Alias(mdev1), tc.scope)
				wantCode(t, err, tc.code, tc.part)
				if d := time.Since(began); tc.takes != 0 && d > tc.takes {
					t.Errorf("took %s, want at most %s", d, tc.takes)
				}
				if diff := cmp.Diff(tc.calls, lv.changes()); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
				if e, _ := errors.AsType[*gpu.Error](err); tc.code == gpu.CodeStuck && (e == nil || e.Hint == "" || len(e.Blockers) != 1 || e.Blockers[0].Name != "web1") {
					t.Errorf("got %+v, want a hint and the VM as blocker", e)
				}
				if tc.guest == guestVanishes {
					return
				}
				got, err := c.VM(t.Context(), uuidA)
				if err != nil {
					t.Fatal(err)
				}
				if left := has(got, gpu.Alias(mdev1)); left != tc.left {
					t.Errorf("left %+v, want %+v", left, tc.left)
				}
				if len(vm.config) == 0 || source(vm.config[0]).MdevUUID != mdev2 {
					t.Error("a foreign device was touched")
				}
			})
		})
	}
}

func TestDetachWhileUnplugIsPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, vm := oneVM(guestSilent, both)
		c := start(t, lv, Config{DetachTimeout: 5 * time.Second})
		wantCode(t, c.Detach(t.Context(), uuidA, gpu.Alias(mdev1), both), gpu.CodeStuck, "has not answered")
		// Asked again, the guest lets go three seconds later.
		time.AfterFunc(3*time.Second, func() { lv.answer(vm, gpu.Alias(mdev1)) })
		wantCode(t, c.Detach(t.Context(), uuidA, gpu.Alias(mdev1), both), "", "")
		if diff := cmp.Diff([]string{"detach live", "detach live", "detach config"}, lv.changes()); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

func TestDetachCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, _ := oneVM(guestSilent, both)
		c := start(t, lv, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err := c.Detach(ctx, uuidA, gpu.Alias(mdev1), both)
		wantCode(t, err, gpu.CodeUnavailable, "may still let go")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled in its chain", err)
		}
	})
}

func TestDetachUntilTheCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, _ := oneVM(guestSilent, both)
		c := start(t, lv, Config{})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		wantCode(t, c.Detach(ctx, uuidA, gpu.Alias(mdev1), both), gpu.CodeStuck, "has not answered")
	})
}

// T23: if libvirt goes away while the guest is asked, nothing is concluded.
func TestT23DetachLosesLibvirt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, _ := oneVM(guestSilent, both)
		c := start(t, lv, Config{})
		time.AfterFunc(time.Second, func() {
			lv.set(func() { lv.refuse = errNoSocket })
			lv.die()
		})
		began := time.Now()
		wantCode(t, c.Detach(t.Context(), uuidA, gpu.Alias(mdev1), both), gpu.CodeUnavailable, "cannot reach libvirt")
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("took %s", d)
		}
	})
}

func TestDetachRefusesForeignAliases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv, _ := oneVM(guestPrompt, both)
		c := start(t, lv, Config{})
		wantCode(t, c.Detach(t.Context(), uuidA, "hostdev0", both), gpu.CodeInvalid, "does not match")
		if calls := lv.changes(); calls != nil {
			t.Errorf("calls %v, want none", calls)
		}
	})
}
