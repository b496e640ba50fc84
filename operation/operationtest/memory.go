package operationtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	"gpuvirt/operation"
)

// Memory is an operation.Store in memory. It keeps what it is given as JSON, as a
// store on disk would, so that nothing is shared with the caller.
type Memory struct {
	mu     sync.Mutex
	ops    map[string][]byte
	keys   map[string]string // key to operation id
	rows   map[string]json.RawMessage
	writes int
	room   int // writes before fail
	fail   error
}

// NewMemory returns an empty Memory.
func NewMemory() *Memory {
	return &Memory{ops: map[string][]byte{}, keys: map[string]string{}, rows: map[string]json.RawMessage{}}
}

// Fail has every write but the next few return err, as a disk that is about to be
// full would; a nil err ends it.
func (m *Memory) Fail(few int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.room, m.fail = few, err
}

// full returns the error of a write that finds no room. The caller holds mu.
func (m *Memory) full() error {
	if m.fail != nil && m.room <= 0 {
		return m.fail
	}
	m.room--
	return nil
}

// Writes returns how many writes took effect.
func (m *Memory) Writes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writes
}

// Row returns the value of a record, nil if there is none.
func (m *Memory) Row(kind, key string) json.RawMessage {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rows[kind+"\x00"+key]
}

// AddOperation is operation.Store's.
func (m *Memory) AddOperation(op operation.Operation, rows []operation.Row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.ops[op.ID]; ok {
		return fmt.Errorf("operation %q exists", op.ID)
	}
	if err := m.free(op); err != nil {
		return err
	}
	return m.write(op, rows)
}

// SaveOperation is operation.Store's.
func (m *Memory) SaveOperation(op operation.Operation, rows []operation.Row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.ops[op.ID]; !ok {
		return fmt.Errorf("operation %q: %w", op.ID, operation.ErrNotFound)
	}
	if op.Holds() {
		if err := m.free(op); err != nil {
			return err
		}
	}
	return m.write(op, rows)
}

// free checks that no other operation holds a key of this one.
func (m *Memory) free(op operation.Operation) error {
	for _, key := range op.Keys {
		if holder, held := m.keys[key]; held && holder != op.ID {
			other, err := m.read(holder)
			if err != nil {
				return err
			}
			return &operation.ConflictError{Key: key, Holder: holder, Summary: other.Summary}
		}
	}
	return nil
}

func (m *Memory) write(op operation.Operation, rows []operation.Row) error {
	data, err := json.Marshal(op)
	if err != nil {
		return err
	}
	if err := m.full(); err != nil {
		return err
	}
	m.writes++
	m.ops[op.ID] = data
	maps.DeleteFunc(m.keys, func(_, holder string) bool { return holder == op.ID })
	if op.Holds() {
		for _, key := range op.Keys {
			m.keys[key] = op.ID
		}
	}
	for _, r := range rows {
		if r.Value == nil {
			delete(m.rows, r.Kind+"\x00"+r.Key)
		} else {
			m.rows[r.Kind+"\x00"+r.Key] = slices.Clone(r.Value)
		}
	}
	return nil
}

func (m *Memory) read(id string) (operation.Operation, error) {
	data, ok := m.ops[id]
	if !ok {
		return operation.Operation{}, fmt.Errorf("operation %q: %w", id, operation.ErrNotFound)
	}
	var op operation.Operation
	err := json.Unmarshal(data, &op)
	return op, err
}

// Operation is operation.Store's.
func (m *Memory) Operation(id string) (operation.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.read(id)
}

// Operations is operation.Store's.
func (m *Memory) Operations() ([]operation.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ops := []operation.Operation{}
	for id := range m.ops {
		op, err := m.read(id)
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	slices.SortFunc(ops, func(a, b operation.Operation) int { return cmp.Compare(a.ID, b.ID) })
	return ops, nil
}

// DeleteOperations is operation.Store's.
func (m *Memory) DeleteOperations(ids []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if op, err := m.read(id); err == nil && op.Holds() {
			return fmt.Errorf("operation %q holds keys", id)
		}
	}
	if err := m.full(); err != nil {
		return err
	}
	m.writes++
	for _, id := range ids {
		delete(m.ops, id)
	}
	return nil
}

// Close does nothing.
func (m *Memory) Close() error { return nil }

// MemorySubject is Memory as the subject of a walk.
func MemorySubject() Subject {
	var (
		mu     sync.Mutex
		stores = map[string]*Memory{}
	)
	return Subject{
		Open: func(dir string) (Store, error) {
			mu.Lock()
			defer mu.Unlock()
			if stores[dir] == nil {
				stores[dir] = NewMemory()
			}
			return stores[dir], nil
		},
		Row: func(key, value string) operation.Row {
			if value == "" {
				return operation.Delete("thing", key)
			}
			return operation.Put("thing", key, value)
		},
		Rows: func(s Store) (map[string]string, error) {
			m := s.(*Memory)
			m.mu.Lock()
			defer m.mu.Unlock()
			all := map[string]string{}
			for id, data := range m.rows {
				var value string
				if err := json.Unmarshal(data, &value); err != nil {
					return nil, err
				}
				all[id[len("thing\x00"):]] = value
			}
			return all, nil
		},
	}
}
