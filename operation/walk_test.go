package operation_test

import (
	"testing"

	"gpuvirt/operation/operationtest"
)

// T01: the process dies at every store write and every half move of hardware.
// T02: what an undo needs is stored before anything is touched.
func TestWalkT01T02(t *testing.T) {
	t.Parallel()
	operationtest.Walk(t, operationtest.MemorySubject(), 4)
}

func TestExhaustT01T02(t *testing.T) {
	t.Parallel()
	operationtest.Exhaust(t, operationtest.MemorySubject(), nil, []string{"do error at step 3", "abort obeyed at step 2"})
}
