package atrest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/nbd"
)

// probeTime is how long a server may take to say that it is there.
const probeTime = 30 * time.Second

// An export is a disk that is read by NBD.
type export struct {
	client *nbd.Client
	lent   bool // its connections are made by somebody else, who knows what they lead to
}

func openExport(ctx context.Context, uri string, o Options) (*export, error) {
	if err := mayConnect(uri, o.Folders); err != nil {
		return nil, err
	}
	c, err := nbd.Dial(ctx, uri, o.NBD)
	if err != nil {
		return nil, err
	}
	e := &export{c, o.NBD.Dial != nil}
	if err := checkRaw(e, "export the disk itself, or a raw image; of another format with qemu-nbd -r -f FORMAT"); err != nil {
		return nil, gpu.Wrap(errors.Join(err, c.Close()), gpu.CodeUnavailable, "cannot use %s", c.URI())
	}
	if !c.ReadOnly() {
		o.Log.WarnContext(ctx, "an export can be written to by whoever reaches it", "export", c.URI().String())
	}
	return e, nil
}

// mayConnect refuses a socket of this host that lies below none of the folders: many take orders
// from root.
func mayConnect(uri string, folders []string) error {
	u, err := nbd.ParseURI(uri)
	if err != nil || u.Network != "unix" {
		return err
	}
	for folder, inside := range above(u.Address, folders) {
		root, err := os.OpenRoot(folder)
		if err != nil {
			return gpu.Errorf(gpu.CodeInvalid, "cannot use %q: %w", u.Address, err)
		}
		info, err := root.Stat(inside)
		_ = root.Close()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return gpu.Errorf(gpu.CodeNotFound, "cannot use %q: it is not there", u.Address)
		case err != nil:
			return gpu.Errorf(gpu.CodeInvalid, "cannot use %q: %w", u.Address, err)
		case info.Mode().Type() != fs.ModeSocket:
			return gpu.Errorf(gpu.CodeInvalid, "cannot use %q: it is no socket", u.Address)
		}
		return nil
	}
	return elsewhere(u.Address, folders)
}

func (e *export) block(d Disk) block.Disk {
	return block.Disk{Name: d.Name, ID: d.ID, Reader: e, Size: d.Size}
}

// ReadAt tells a server that is away from a disk that cannot be read.
func (e *export) ReadAt(p []byte, off int64) (int, error) {
	n, err := e.client.ReadAt(p, off)
	if gpu.CodeOf(err) == gpu.CodeUnavailable {
		return n, fmt.Errorf("%w: %w", block.ErrAway, err)
	}
	// Place and disk are told by who asks.
	if cause := errors.Unwrap(err); cause != nil {
		err = cause
	}
	return n, err
}

func (e *export) ready(ctx context.Context) error { return e.client.Ready(ctx) }

// same compares the export as it is told now, over a new connection: an image that was lengthened, or
// has another in its place, has another size there, while the connections that there are may know
// the one that it had.
func (e *export) same(ctx context.Context) error {
	if e.lent {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	return e.client.Compare(ctx)
}

// mark is how often a connection was cut: while one lasts, the server that exports the disk was
// not started again, and so was nothing that could have written to it.
func (e *export) mark(ctx context.Context) (any, error) {
	if err := e.same(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if err := e.client.Probe(ctx); err != nil {
		return nil, err
	}
	return e.client.Cuts(), nil
}

func (e *export) close() error { return e.client.Close() }

var _ io.ReaderAt = (*export)(nil)
