package p2v

import (
	"errors"
	"fmt"
	"sync"

	"gpuvirt/gpu"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/convert"
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
	others, err := c.others(path)
	if err != nil {
		return nil, err
	}
	no := block.SpaceError{Path: path, Need: need, Free: free, Kept: c.keep, Claimed: others}
	if need > 0 && no.Missing() > 0 {
		return nil, &no
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

// others is what passes over other disks may still store.
func (c *claims) others(path string) (n int64, err error) {
	for other, o := range c.byPath {
		if other == path {
			continue
		}
		claimed, _, err := o.Room()
		if err != nil {
			return 0, err
		}
		n += claimed
	}
	return n, nil
}

// making refuses to make disks of VMs in a folder in which there is less room than is kept free. How much
// they take nobody knows before.
func (c *claims) making(folder string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	free, err := block.Free(folder)
	if err != nil {
		return err
	}
	others, err := c.others("")
	if err != nil {
		return err
	}
	no := block.SpaceError{Path: folder, Free: free, Kept: c.keep, Claimed: others}
	if no.Missing() == 0 {
		return nil
	}
	said := fmt.Sprintf("%s have to be free there, and %s are", block.Mebibytes(c.keep), block.Mebibytes(free))
	if others > 0 {
		said += fmt.Sprintf(", of which copies under way need %s", block.Mebibytes(others))
	}
	return gpu.Errorf(gpu.CodeNoCapacity, "cannot make disks of a VM in %q: %s: %s are missing", folder, said, block.Mebibytes(no.Missing()+1<<20-1))
}

// full adds to an error of what is made in a folder how much room there is, if that was the cause.
func full(err error, folder string) error {
	made, is := errors.AsType[*convert.Failure](err)
	if !block.Full(err) && (!is || made.Kind != convert.KindHostSpace) {
		return err
	}
	free, askErr := block.Free(folder)
	if askErr != nil {
		return errors.Join(err, askErr)
	}
	return fmt.Errorf("%w; %q has room for %d bytes", err, folder, free)
}

// check answers with a *block.SpaceError where others have taken so much meanwhile that a pass
// would take the last of it.
func (c *claims) check(path string, m roomy) error {
	need, free, err := m.Room()
	if err == nil && need > 0 && free < c.keep {
		err = &block.SpaceError{Path: path, Need: need, Free: free, Kept: c.keep}
	}
	return err
}
