package p2v

import (
	"sync"

	"gpuvirt/p2v/block"
)

// claims are what the passes under way may still store: the host's disk is there once, and
// the VMs that run have theirs on it.
type claims struct {
	keep   int64 // bytes that are left to others, always
	mu     sync.Mutex
	byPath map[string]roomy
}

// keepFree is what moves leave of the folder of mirrors, bytes.
const keepFree = 1 << 30

// A roomy tells how many bytes are still to be stored in it, and how many there is room for.
type roomy interface {
	Room() (need, free int64, err error)
}

// claim has room for a pass until it is released, or answers with a *block.SpaceError. A
// block device has its own room, and asks for none.
func (c *claims) claim(path string, m roomy) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	need, free, err := m.Room()
	if err != nil {
		return nil, err
	}
	free -= c.keep
	for other, o := range c.byPath {
		if other == path {
			continue
		}
		claimed, _, err := o.Room()
		if err != nil {
			return nil, err
		}
		free -= claimed
	}
	if need > 0 && need > free {
		return nil, &block.SpaceError{Path: path, Need: need, Free: max(0, free)}
	}
	if c.byPath == nil {
		c.byPath = map[string]roomy{}
	}
	c.byPath[path] = m
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.byPath, path)
	}, nil
}

// check answers with a *block.SpaceError where others have taken so much meanwhile that a pass
// would take the last of it.
func (c *claims) check(path string, m roomy) error {
	need, free, err := m.Room()
	if err == nil && need > 0 && free < c.keep {
		err = &block.SpaceError{Path: path, Need: need, Free: max(0, free-c.keep)}
	}
	return err
}
