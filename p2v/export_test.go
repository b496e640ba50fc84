package p2v

// InMemory says what is held for a move that is in no record: nothing, once it has ended.
func (m *Migrations) InMemory(name string) []string {
	var out []string
	m.keys.Lock()
	for volume := range m.secrets[name] {
		out = append(out, "the passphrase of "+volume)
	}
	m.keys.Unlock()
	m.claims.mu.Lock()
	for path := range m.claims.byPath {
		out = append(out, "room for "+path)
	}
	m.claims.mu.Unlock()
	if len(m.converting) > 0 {
		out = append(out, "the right to convert")
	}
	if _, trying := m.trying.Load(name); trying {
		out = append(out, "an attempt")
	}
	return out
}
