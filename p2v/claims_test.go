package p2v

import (
	"errors"
	"strings"
	"testing"

	"gpuvirt/gpu"
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
		return is && no.Need == 500 && no.Free-no.Kept-no.Claimed == 400 && no.Kept == 100 && no.Missing() == 100
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
	if no, is := errors.AsType[*block.SpaceError](c.check("a", a)); !is || no.Need != 300 || no.Free != 99 || no.Kept != 100 || no.Missing() != 301 {
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

// What is ahead of a mirror takes what nobody else counts on, and others need not count on it.
func TestClaimsAhead(t *testing.T) {
	in := &folder{free: 100 + 600 + spareRoom}
	c := claims{keep: 100}
	release, err := c.claim("a", &mirror{in, 600})
	if err != nil {
		t.Fatal(err)
	}
	ahead := spare{&mirror{in, 1 << 40}}
	if _, err := c.claim("ahead", ahead); err != nil {
		t.Error(err)
	}
	in.free--
	if no, is := errors.AsType[*block.SpaceError](func() error { _, err := c.claim("ahead", ahead); return err }()); !is || no.Missing() != 1 {
		t.Errorf("it takes what another counts on: %v", no)
	}
	release()
	if _, err := c.claim("ahead", ahead); err != nil {
		t.Error(err)
	}
}

// Who makes disks of a VM hears what is kept free, and what copies under way count on.
func TestMakingDisks(t *testing.T) {
	c := claims{keep: 1}
	if err := c.making(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	c.keep = 1 << 60
	if err := c.making(t.TempDir()); gpu.CodeOf(err) != gpu.CodeNoCapacity || !strings.Contains(err.Error(), "1099511627776 MiB have to be free there") || strings.Contains(err.Error(), "copies") {
		t.Errorf("%v", err)
	}
	c.byPath = map[string]roomy{"a": &mirror{&folder{}, 600 << 20}}
	if err := c.making(t.TempDir()); err == nil || !strings.Contains(err.Error(), ", of which copies under way need 600 MiB: ") {
		t.Errorf("%v", err)
	}
}
