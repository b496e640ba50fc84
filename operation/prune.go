package operation

import "fmt"

// Prune removes the records of operations that have let go of their keys and are
// older than Config.KeepAge, or beyond the Config.KeepCount newest. It returns how
// many, and writes nothing where there are none.
func (e *Engine) Prune() (int, error) {
	ops, err := e.conf.Store.Operations()
	if err != nil {
		return 0, fmt.Errorf("cannot prune operations: %w", err)
	}
	var (
		now  = e.conf.Now()
		kept int
		old  []string
	)
	for i := len(ops) - 1; i >= 0; i-- {
		op := &ops[i]
		switch {
		case op.Holds():
		case e.conf.KeepAge > 0 && now.Sub(op.Updated) > e.conf.KeepAge, e.conf.KeepCount > 0 && kept >= e.conf.KeepCount:
			old = append(old, op.ID)
		default:
			kept++
		}
	}
	if len(old) == 0 {
		return 0, nil
	}
	if err := e.conf.Store.DeleteOperations(old); err != nil {
		return 0, fmt.Errorf("cannot prune operations: %w", err)
	}
	return len(old), nil
}
