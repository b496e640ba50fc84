package convert

import (
	"errors"
	"strings"
	"testing"
)

// An appliance that dies before it has seen a disk is started again.
func TestApplianceThatDiesIsStartedAgain(t *testing.T) {
	h := newHost(t)
	h.tell("v2v", "dies-once")
	c := New(h.cfg)
	got, err := c.Convert(t.Context(), h.job(c))
	if err != nil || len(got.Warnings) != 2 || !strings.Contains(got.Warnings[0], "started again") || len(got.Phases) != 7 {
		t.Errorf("%+v, %v", got, err)
	}
	h.clean()
}

// But not for ever, and not where it has written.
func TestApplianceThatGoesOnDying(t *testing.T) {
	for text, tries := range map[string]int{
		"libguestfs error: guestfs_launch failed, see earlier error messages":           launches,
		"libguestfs error: command: appliance closed the connection unexpectedly.":      1,
		"not enough free space for conversion on filesystem ‘/’.  5.0 MB free < 100 MB": 1,
	} {
		h := newHost(t)
		h.tell("v2v", "error")
		h.tell("error", text)
		c := New(h.cfg)
		_, err := c.Convert(t.Context(), h.job(c))
		if _, ok := errors.AsType[*Failure](err); !ok || strings.Count(h.seen("tries"), ".") != tries {
			t.Errorf("%q: %d tries, %v", text, strings.Count(h.seen("tries"), "."), err)
		}
		h.clean()
	}
}
