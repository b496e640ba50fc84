package p2v

import (
	"errors"
	"testing"

	"gpuvirt/p2v/block"
)

type folder struct{ free int64 }

type mirror struct {
	in   *folder
	need int64
}

func (m *mirror) Room() (need, free int64, err error) { return m.need, m.in.free, nil }

func (m *mirror) store(n int64) { m.need -= n; m.in.free -= n }

// Two passes do not count on the same room.
func TestClaims(t *testing.T) {
	in := &folder{free: 1100}
	a, b := &mirror{in, 600}, &mirror{in, 500}
	c := claims{keep: 100}
	release, err := c.claim("a", a)
	if err != nil {
		t.Fatal(err)
	}
	full := func() bool {
		_, err := c.claim("b", b)
		no, is := errors.AsType[*block.SpaceError](err)
		return is && no.Need == 500 && no.Free == 400
	}
	if !full() {
		t.Error("there is room for both")
	}
	if a.store(300); !full() { // what it has stored is not claimed any more, and not free
		t.Error("there is room for both, now that half of one is stored")
	}
	if _, err := c.claim("done", &mirror{in: in}); err != nil {
		t.Errorf("one that needs nothing: %v", err)
	}
	if err := c.check("a", a); err != nil {
		t.Error(err)
	}
	in.free = 99 // others have grown
	if no, is := errors.AsType[*block.SpaceError](c.check("a", a)); !is || no.Need != 300 || no.Free != 0 {
		t.Errorf("the last of it is taken: %v", no)
	}
	if err := c.check("done", &mirror{in: in}); err != nil {
		t.Errorf("one that needs nothing: %v", err)
	}
	in.free = 800
	release()
	if _, err := c.claim("b", b); err != nil {
		t.Error(err)
	}
}
