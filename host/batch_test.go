package host_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

func wishes(words ...string) (out []gpu.NamedWish) {
	for _, word := range words {
		var w gpu.NamedWish
		if n, err := fmt.Sscan(strings.NewReplacer("=", " ", ":", " ").Replace(word), &w.Name, &w.Wish.VM, &w.Wish.Profile); n != 3 || err != nil {
			panic(word)
		}
		out = append(out, w)
	}
	return out
}

func (l *lab) apply(words ...string) operation.Operation {
	l.t.Helper()
	_, op, err := l.ApplyAssignments(l.t.Context(), "test", wishes(words...), gpu.Idempotency{})
	if err != nil || op == nil {
		l.t.Fatalf("%+v, %v", op, err)
	}
	return l.finish(*op, nil)
}

// Several wishes are one operation; the same again is nothing.
func TestApplyTogether(t *testing.T) {
	l := newLab(t, sim.T4("0000:08:00.0", 0), sim.T4("0000:88:00.0", 1), sim.Mbochs())
	l.manage("0000:08:00.0", "0000:88:00.0", "mbochs")
	all := []string{"a=web1:T4-4Q", "b=web1:T4-4Q", "c=web2:T4-4Q", "d=db1:mbochs-large", "e=db1:mbochs-small"}
	plan, err := l.PlanApplyAssignments(t.Context(), wishes(all...))
	if err != nil || plan.Refusal != nil || len(plan.Steps) != 10 {
		t.Fatalf("%+v, %v", plan, err)
	}
	for i, s := range plan.Steps {
		if (s.Kind == "partition.make") != (i < 5) {
			t.Errorf("step %d of 10 is %+v: all is made before a vm is touched", i, s)
		}
	}
	if op := l.apply(all...); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	on := map[string]gpu.ID{}
	as, err := l.Assignments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range as {
		on[a.Name] = a.GPU
		if a.State != gpu.AssignmentAttached {
			t.Errorf("%+v", a)
		}
	}
	// Two of one VM come from two cards (T41), the third is packed beside one of them.
	if len(as) != 5 || on["a"] == on["b"] || on["d"] != "mbochs" {
		t.Errorf("%v", on)
	}
	writes, _ := l.sim.Writes()
	again, op, err := l.ApplyAssignments(t.Context(), "test", wishes(all...), gpu.Idempotency{})
	if err != nil || op != nil || len(again) != 5 {
		t.Errorf("the same again: %+v, %+v, %v", again, op, err)
	}
	if plan, err := l.PlanApplyAssignments(t.Context(), wishes(all...)); err != nil || plan.Changes || plan.Refusal != nil {
		t.Errorf("the same again, dry: %+v, %v", plan, err)
	}
	// One more beside what is there: only that one is carried out.
	if op := l.apply(append(all, "f=web2:mbochs-small")...); op.Status != operation.Done || len(op.Steps) != 2 {
		t.Errorf("%+v", op)
	}
	if after, _ := l.sim.Writes(); len(after) != len(writes)+1 {
		t.Errorf("%+v", after[len(writes):])
	}
}

// One wish that cannot be fulfilled is a reason to do nothing at all.
func TestApplyAllOrNothing(t *testing.T) {
	l := newLab(t, sim.T4("0000:08:00.0", 0), sim.Mbochs())
	l.manage("0000:08:00.0", "mbochs")
	for name, tc := range map[string]struct {
		words []string
		code  gpu.Code
		text  string
	}{
		"the last one does not fit": {
			[]string{"a=web1:T4-8Q", "b=web2:T4-8Q", "c=db1:T4-8Q"}, gpu.CodeNoCapacity, `cannot carry out assignment "c"`,
		},
		"another size of one card": {[]string{"a=web1:T4-8Q", "b=web2:T4-4Q"}, gpu.CodeNoCapacity, `"b"`},
		"shared memory": {
			[]string{"a=web1:mbochs-large", "b=web1:mbochs-large", "c=web1:mbochs-large", "d=web1:mbochs-large", "e=web2:mbochs-small"},
			gpu.CodeNoCapacity, `"e"`,
		},
		"two of one vm and card": {[]string{"a=web1:T4-8Q", "b=web1:T4-8Q"}, gpu.CodeProfileNotCreatable, "takes a second one only from another card"},
		"no such vm":             {[]string{"a=web1:T4-8Q", "b=nobody:T4-8Q"}, gpu.CodeVMNotFound, `"b"`},
	} {
		_, op, err := l.ApplyAssignments(t.Context(), "test", wishes(tc.words...), gpu.Idempotency{})
		if gpu.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) || op != nil {
			t.Errorf("%s: %+v, %v", name, op, err)
		}
		if plan, err := l.PlanApplyAssignments(t.Context(), wishes(tc.words...)); err != nil || plan.Refusal == nil {
			t.Errorf("%s: the dry run: %+v, %v", name, plan, err)
		}
	}
	if w, err := l.sim.Writes(); len(w) != 0 || err != nil {
		t.Errorf("%+v, %v", w, err)
	}
	if as, err := l.Assignments(t.Context()); len(as) != 0 || err != nil {
		t.Errorf("%+v, %v", as, err)
	}
}

// What fails in the middle takes the others with it, those that a VM has already too.
func TestApplyIsUndoneWhole(t *testing.T) {
	l := newLab(t, sim.Mbochs())
	l.manage("mbochs")
	before := l.attach("old", gpu.Wish{VM: "web1", Profile: "mbochs-small"})
	l.stop()
	a := &asked{Libvirt: l.sim.Libvirt, fail: []error{nil, gpu.Errorf(gpu.CodeForeignDevice, "cannot attach")}}
	l.vms = a
	l.start()
	op := l.apply("a=web1:mbochs-small", "b=web2:mbochs-small", "old=web1:mbochs-small")
	if op.Status != operation.Undone {
		t.Errorf("%+v", op)
	}
	as, err := l.Assignments(t.Context())
	if err != nil || len(as) != 1 || as[0].Partition != before.Partition || as[0].State != gpu.AssignmentAttached {
		t.Errorf("%+v, %v", as, err)
	}
	ps, err := l.Partitions(t.Context())
	if err != nil || len(ps) != 1 {
		t.Errorf("%+v, %v", ps, err)
	}
	vm, err := l.VM(t.Context(), "web1")
	if err != nil || len(slices.DeleteFunc(vm.Hostdevs, func(d gpu.Hostdev) bool { return !strings.HasPrefix(d.Alias, gpu.AliasPrefix) })) != 1 {
		t.Errorf("%+v, %v", vm, err)
	}
}

// Where nobody knows how many of a profile fit, as NVIDIA's library does not say what its
// types are, the driver has the last word.
func TestApplyWithoutSizes(t *testing.T) {
	l := newL40SLab(t, false)
	l.off("web1", "web2")
	l.sim.NVML.Fail("GetSupportedVgpus", mig.ErrFunctionNotFound, 1_000_000)
	all := []string{"a=web1:L40S-24Q", "b=web2:L40S-24Q", "c=db1:L40S-24Q"}
	if op := l.apply(all...); op.Status != operation.Undone || op.Problem.Code != string(gpu.CodeNoCapacity) {
		t.Errorf("three of two: %s, %+v", op.Status, op.Problem)
	}
	l.attached(0)
	if op := l.apply(all[:2]...); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
	l.attached(2)
}
