package guest

import (
	"slices"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
)

// pins rewrites where the GPUs of the server are named to their numbers in the VM, line by
// line, as far as those are certain.
func (m *maker) pins() {
	lines, _ := m.repin()
	for _, l := range lines {
		m.line(l.File, l.Old, l.New, l.Items...)
	}
	if !slices.ContainsFunc(m.plan.Changes, func(c assess.GuestChange) bool { return c.ID == "pins-by-hand" }) {
		m.pinned()
	}
}

// pinned leaves where they are named and no line is rewritten.
func (m *maker) pinned() {
	_, left := m.repin()
	for _, p := range left {
		by := ByNobody
		if p.Person {
			by = ByPerson
		}
		m.leave(by, p.Why, p.Item)
	}
}

func (m *maker) repin() ([]assess.Rewrite, []assess.Pinned) {
	return assess.Repin(m.Report, m.plan.Fittings, func(file, line string) bool { return m.done[lineKey(file, line)] })
}

func lineKey(file, line string) string {
	return editKey(convert.Edit{Kind: convert.EditLine, Path: file, Old: line})
}
