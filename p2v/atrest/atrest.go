// Package atrest makes disks whose server does not run look like a server that does: images and
// block devices of this host, and disks that a rescue system exports by NBD. A migration reads
// them as it reads a server that it reaches by ssh, through the same peers: what would run
// there runs here.
//
// There is no machine behind it, so no program can be run. Nothing is ever written to the disks,
// and nobody else should: whether somebody did is watched as far as that is to be seen, and where
// it cannot be ruled out the disk is read as a whole again.
package atrest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"

	"gpuvirt/gpu"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/nbd"
)

// A Disk is one of a server that is off.
type Disk struct {
	Name string // as the server's kernel had it: nvme0n1
	ID   string // what tells it from all other disks, as block.Disk has it
	Size int64  // bytes, when the server was inspected

	// One of these. Image is the absolute path of a raw image, or of a block device of this
	// host; NBD the URI of an export. With Dial, which connects to who exports it, the URI is only
	// what it is called.
	Image string
	NBD   string
	Dial  func(ctx context.Context) (net.Conn, error)
}

// Options say what may be read, and how.
type Options struct {
	// Folders are those below which images, devices and sockets of NBD may lie, such as /dev: what
	// a path may lead to is up to whoever sets them. None lets none be used.
	Folders []string
	NBD     nbd.Options
	Log     *slog.Logger // nil: nothing is logged
}

// A Server is what p2v takes for one. Its methods may be called concurrently.
type Server struct {
	log    *slog.Logger
	media  map[string]medium // by the name of the disk
	blocks *block.Server

	ctx  context.Context // ends with Close
	stop context.CancelCauseFunc

	mu     sync.Mutex
	closed bool
	peers  sync.WaitGroup // under mu where one is added
}

// A medium is what a disk is read from.
type medium interface {
	block(Disk) block.Disk
	// ready makes sure that it can be reached.
	ready(ctx context.Context) error
	// same makes sure that it is what would be opened now. The kinds of its errors are those of Dial.
	same(ctx context.Context) error
	// mark returns something that is another one as soon as it cannot be ruled out that the disk was
	// written to since.
	mark(ctx context.Context) (any, error)
	close() error
}

// Dial opens the disks. The kinds of its errors: gpu.CodeUnavailable where it may pass by itself;
// gpu.CodeInvalid, gpu.CodeNotFound and gpu.CodeForbidden where what is named cannot be used;
// gpu.CodeBusy where somebody else writes to it, or may; gpu.CodeConflict where the disk is not as
// long as the one that was inspected; those of nbd.Dial.
func Dial(ctx context.Context, disks []Disk, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{log: o.Log, media: map[string]medium{}}
	s.ctx, s.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := s.open(ctx, disks, o); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open(ctx context.Context, disks []Disk, o Options) (err error) {
	if len(disks) == 0 {
		return gpu.Errorf(gpu.CodeInvalid, "cannot read a server that is off: no disks are named")
	}
	var served []block.Disk
	for _, d := range disks {
		if _, twice := s.media[d.Name]; twice || d.Name == "" || d.ID == "" || d.Size < 1 || (d.Image == "") == (d.NBD == "") {
			return gpu.Errorf(gpu.CodeInvalid, "cannot read disk %q: it takes a name of its own, an identity, a size, and either an image or an export", d.Name)
		}
		m, size, err := openMedium(ctx, d, o)
		if err != nil {
			return gpu.Wrap(err, gpu.CodeUnavailable, "cannot read disk %q", d.Name)
		}
		s.media[d.Name] = m
		if size != d.Size {
			return gpu.Errorf(gpu.CodeConflict, "cannot read disk %q: %s has %d bytes, and the disk had %d when the server was inspected", d.Name, where(d), size, d.Size).
				WithHint("it is another disk, or was cut short; an image has to be as long as its disk, to the byte")
		}
		served = append(served, m.block(d))
	}
	if s.blocks, err = block.NewServer(served, o.Log); err != nil {
		return gpu.Errorf(gpu.CodeConflict, "cannot read a server that is off: %w", err)
	}
	return nil
}

func openMedium(ctx context.Context, d Disk, o Options) (medium, int64, error) {
	if d.Image != "" {
		i, err := openImage(d.Image, o.Folders)
		if err != nil {
			return nil, 0, err
		}
		return i, i.size, nil
	}
	o.NBD.Dial = d.Dial
	e, err := openExport(ctx, d.NBD, o)
	if err != nil {
		return nil, 0, err
	}
	return e, e.client.Size(), nil
}

// where is what a disk is read from, for people.
func where(d Disk) string {
	if d.Image != "" {
		return fmt.Sprintf("%q", d.Image)
	}
	return fmt.Sprintf("%q", d.NBD)
}

// Same makes sure that what is read is what Dial would open now. An error of gpu.CodeUnavailable
// says that to open it anew may help: there is another file in the place of an image.
func (s *Server) Same(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(s.media)) {
		if err := s.media[name].same(ctx); err != nil {
			return gpu.Wrap(err, gpu.CodeUnavailable, "cannot read disk %q", name)
		}
	}
	return nil
}

// Place does nothing: what p2v would run on the server is here already.
func (s *Server) Place(context.Context, string, io.Reader, int64) (string, error) { return "", nil }

// Unplace does nothing.
func (s *Server) Unplace(context.Context, string) error { return nil }

// Run refuses: there is no machine.
func (s *Server) Run(_ context.Context, _ io.Reader, _ io.Writer, program string, _ ...string) error {
	return gpu.Errorf(gpu.CodeConflict, "cannot run %q: the server is off, and only its disks are here", program)
}

// Close ends all that was opened, and waits for it.
func (s *Server) Close() error {
	s.stop(net.ErrClosed)
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		s.peers.Wait()
		return nil
	}
	var errs []error
	for _, m := range s.media {
		errs = append(errs, m.close()) // which ends a read that waits
	}
	s.peers.Wait()
	if s.blocks != nil {
		errs = append(errs, s.blocks.Close())
	}
	return errors.Join(errs...)
}
