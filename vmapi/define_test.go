package vmapi

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// madeDoc is the definition of a VM as a migration makes it.
func madeDoc(t *testing.T, uuid, name, mark string) string {
	t.Helper()
	doc, err := Marked("<domain type='kvm'><name>"+name+"</name><uuid>"+uuid+"</uuid><os><type>hvm</type></os><devices>"+
		"<disk type='file' device='disk'><source file='/srv/0.qcow2'/><target dev='vda'/></disk></devices></domain>", mark)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// made is a VM of migration M1.
func madeVM(t *testing.T) *fakeVM {
	t.Helper()
	return &fakeVM{uuid: uuidA, name: "moved", doc: madeDoc(t, uuidA, "moved", "M1")}
}

// blockersOf names what an error says is in the way.
func blockersOf(err error) (out []string) {
	if e, ok := errors.AsType[*gpu.Error](err); ok {
		for _, b := range e.Blockers {
			out = append(out, b.Kind+" "+b.ID+" "+b.Name)
		}
	}
	return out
}

func TestDefine(t *testing.T) {
	withDevice := madeVM(t)
	withDevice.config = []libvirtxml.DomainHostdev{hostdev(gpu.Alias(mdev1), gpu.Handle{MdevUUID: mdev1})}
	another := madeVM(t)
	another.doc = madeDoc(t, uuidA, "moved", "M2")
	transient := madeVM(t)
	transient.running, transient.transient = true, true
	doc := madeDoc(t, uuidA, "moved", "M1")
	for _, tc := range []struct {
		name    string
		vm      *fakeVM
		doc     string
		code    gpu.Code
		part    string
		blocker string
		calls   []string
	}{
		{name: "new", calls: []string{"define"}},
		{name: "there, with a device by now", vm: withDevice},
		{name: "runs, without a definition", vm: transient, calls: []string{"define"}},
		{name: "of another migration", vm: another, code: gpu.CodeConflict, part: `of migration "M2"`, blocker: "vm " + uuidA + " moved"},
		{name: "not ours", vm: &fakeVM{uuid: uuidA, name: "moved"}, code: gpu.CodeConflict, part: "none that gpuvirt made", blocker: "vm " + uuidA + " moved"},
		{name: "that UUID", vm: &fakeVM{uuid: uuidA, name: "web1"}, code: gpu.CodeConflict, part: `VM "web1" has the UUID`, blocker: "vm " + uuidA + " web1"},
		{name: "that name", vm: &fakeVM{uuid: uuidB, name: "moved"}, code: gpu.CodeConflict, part: "of that name, " + uuidB, blocker: "vm " + uuidB + " moved"},
		{name: "no mark", doc: "<domain><name>moved</name><uuid>" + uuidA + "</uuid></domain>", code: gpu.CodeInvalid, part: "no mark"},
		{name: "no UUID", doc: "<domain><name>moved</name></domain>", code: gpu.CodeInvalid, part: "not a UUID"},
		{name: "no name", doc: madeDoc(t, uuidA, "", "M1"), code: gpu.CodeInvalid, part: "no name"},
		{name: "no XML", doc: "<domain", code: gpu.CodeInvalid, part: "cannot parse"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lv := &fakeLibvirt{}
				if tc.vm != nil {
					lv.vms = append(lv.vms, tc.vm)
				}
				c := start(t, lv, Config{})
				if tc.doc == "" {
					tc.doc = doc
				}
				err := c.Define(t.Context(), tc.doc)
				wantCode(t, err, tc.code, tc.part)
				if tc.blocker != "" {
					if diff := cmp.Diff([]string{tc.blocker}, blockersOf(err)); diff != "" {
						t.Errorf("blockers (-want +got):\n%s", diff)
					}
				}
				if diff := cmp.Diff(tc.calls, lv.changes()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if tc.code != "" {
					return
				}
				vm, err := c.VM(t.Context(), "moved")
				if err != nil || vm.UUID != uuidA || vm.Mark != "M1" || !vm.Persistent || (tc.vm == withDevice) != (len(vm.Hostdevs) == 1) {
					t.Errorf("%+v, %v", vm, err)
				}
			})
		})
	}
}

// What libvirt has done is looked at, and where it is not known, that is said.
func TestDefineFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{lies: true}
		c := start(t, lv, Config{})
		doc := madeDoc(t, uuidA, "moved", "M1")
		wantCode(t, c.Define(t.Context(), doc), gpu.CodeConflict, "there is none")

		lv.set(func() {
			lv.lies, lv.fail = false, map[string]error{"define": virError(libvirt.ERR_CONFIG_UNSUPPORTED, "no UEFI here")}
		})
		wantCode(t, c.Define(t.Context(), doc), gpu.CodeInvalid, "no UEFI here")

		lv.set(func() { lv.fail, lv.hang = nil, map[string]chan struct{}{"define": make(chan struct{})} })
		wantCode(t, c.Define(t.Context(), doc), gpu.CodeUnavailable, "its outcome is not known")
		lv.set(func() { close(lv.hang["define"]); lv.hang = nil })
		synctest.Wait()
		wantCode(t, c.Define(t.Context(), doc), "", "")

		lv.die()
		synctest.Wait()
		wantCode(t, c.Define(t.Context(), doc), gpu.CodeUnavailable, "cannot reach libvirt")
	})
}

func TestUndefine(t *testing.T) {
	withDevices := madeVM(t)
	withDevices.config = []libvirtxml.DomainHostdev{hostdev(gpu.Alias(mdev1), gpu.Handle{MdevUUID: mdev1})}
	running := madeVM(t)
	running.running = true
	for _, tc := range []struct {
		name    string
		vm      *fakeVM
		mark    string
		fail    error
		code    gpu.Code
		part    string
		blocker string
		calls   []string
	}{
		{name: "made by us", vm: madeVM(t), calls: []string{"undefine " + uuidA}},
		{name: "gone"},
		{name: "gone meanwhile", vm: madeVM(t), fail: virError(libvirt.ERR_NO_DOMAIN, "Domain not found"), calls: []string{"undefine " + uuidA}},
		{name: "refused", vm: madeVM(t), fail: virError(libvirt.ERR_OPERATION_INVALID, "x"), code: gpu.CodeConflict, part: "x", calls: []string{"undefine " + uuidA}},
		{name: "of another migration", vm: madeVM(t), mark: "M2", code: gpu.CodeConflict, part: `one of migration "M1"`, blocker: "vm " + uuidA + " moved"},
		{name: "not ours", vm: &fakeVM{uuid: uuidA, name: "web1"}, code: gpu.CodeConflict, part: "none that gpuvirt made", blocker: "vm " + uuidA + " web1"},
		{name: "not ours, and no mark asked for", vm: &fakeVM{uuid: uuidA, name: "web1"}, mark: " ", code: gpu.CodeInvalid, part: "no mark"},
		{name: "runs", vm: running, code: gpu.CodeConflict, part: "it runs", blocker: "vm " + uuidA + " moved"},
		{name: "has a device", vm: withDevices, code: gpu.CodeConflict, part: "host devices", blocker: "partition " + mdev1 + " " + gpu.Alias(mdev1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lv := &fakeLibvirt{fail: map[string]error{"undefine " + uuidA: tc.fail}}
				if tc.vm != nil {
					lv.vms = append(lv.vms, tc.vm)
				}
				c := start(t, lv, Config{})
				if tc.mark == "" {
					tc.mark = "M1"
				}
				err := c.Undefine(t.Context(), uuidA, tc.mark)
				wantCode(t, err, tc.code, tc.part)
				if tc.blocker != "" {
					if diff := cmp.Diff([]string{tc.blocker}, blockersOf(err)); diff != "" {
						t.Errorf("blockers (-want +got):\n%s", diff)
					}
				}
				if diff := cmp.Diff(tc.calls, lv.changes()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}
