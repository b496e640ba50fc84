package operationtest

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"gpuvirt/operation"
)

// check compares what is left with what each operation had to come to.
func check(w *world, s Subject, dir string, ops []Op) error {
	store, err := s.Open(dir)
	if err != nil {
		return err
	}
	err = errors.Join(checkOps(w, s, store, ops), checkKeys(store, ops))
	if s.Check != nil {
		err = errors.Join(err, s.Check(store))
	}
	return errors.Join(err, store.Close())
}

func checkOps(w *world, s Subject, store Store, ops []Op) error {
	rows, err := s.Rows(store)
	if err != nil {
		return err
	}
	var (
		want  = map[string]string{} // value of each cell that was given one
		since = map[string]time.Time{}
		loose = map[string]bool{} // cells that a forgotten operation left behind
	)
	for _, o := range ops {
		op, err := store.Operation(o.ID)
		if err != nil {
			return err
		}
		if err := checkEnd(o, op); err != nil {
			return err
		}
		reserved := rows["reserved "+o.ID]
		delete(rows, "reserved "+o.ID)
		if (op.Status == operation.Undone) != (reserved == "") {
			return fmt.Errorf("%s is %s, and its reservation is %q", o.ID, op.Status, reserved)
		}
		for _, step := range o.Steps {
			if op.Status == operation.Failed {
				loose[step.Cell] = true
			}
			if op.Status == operation.Done && op.Updated.After(since[step.Cell]) {
				want[step.Cell], since[step.Cell] = o.ID, op.Updated
			}
		}
	}
	for _, o := range ops {
		for _, step := range o.Steps {
			if step.Cell == "" || loose[step.Cell] {
				delete(rows, step.Cell)
				continue
			}
			if got := w.cell(step.Cell); got != [2]string{want[step.Cell], want[step.Cell]} {
				return fmt.Errorf("machine has %q at %s, want %q", got, step.Cell, want[step.Cell])
			}
		}
	}
	for cell, value := range rows {
		if want[cell] != value {
			return fmt.Errorf("store has %q at %s, want %q", value, cell, want[cell])
		}
		delete(want, cell)
	}
	for cell, value := range want {
		if cell != "" && !loose[cell] {
			return fmt.Errorf("store has nothing at %s, want %q", cell, value)
		}
	}
	if got := w.cell("foreign/0"); got != [2]string{"somebody", "somebody"} {
		return fmt.Errorf("a foreign cell was changed: %q", got)
	}
	return nil
}

// checkEnd checks that an operation ended in a way it may.
func checkEnd(o Op, op operation.Operation) error {
	back, mayFail := o.turns()
	ok := false
	switch op.Status {
	case operation.Done:
		ok = !back && op.Problem == nil
	case operation.Undone:
		ok = back && op.Problem != nil
	case operation.Failed:
		ok = back && mayFail && o.Forget && op.Forgot && strings.Contains(op.Problem.Detail, "undo failed")
	case operation.Ready, operation.Running, operation.Waiting, operation.Undoing:
	}
	if !ok {
		return fmt.Errorf("%s ended %s (forgot: %v, problem: %v)", o.ID, op.Status, op.Forgot, op.Problem)
	}
	for _, step := range op.Steps {
		if step.Status == operation.StepDoing || step.Status == operation.StepUndoing || op.Status == operation.Done && step.Status != operation.StepDone {
			return fmt.Errorf("%s is %s with a step %s", o.ID, op.Status, step.Status)
		}
	}
	return nil
}

// checkKeys checks that all keys are free, with an operation that wants them all
// and is over as soon as it has them.
func checkKeys(store Store, ops []Op) error {
	probe := operation.Operation{ID: "probe", Status: operation.Done}
	for _, o := range ops {
		probe.Keys = append(probe.Keys, o.Slots...)
	}
	return store.AddOperation(probe, nil)
}
