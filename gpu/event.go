package gpu

import "time"

// An Event tells a listener that an object changed.
type Event struct {
	Seq    uint64
	Time   time.Time
	Type   string // "<noun>.<what>": "assignment.attached", "operation.updated", "vm.lifecycle", "gpu.changed"
	Object string // id or name of the object
	Detail map[string]string
}
