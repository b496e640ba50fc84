package atrest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"path"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/freeze"
	"gpuvirt/p2v/track"
)

// A call is what p2v would run on a server.
type call struct {
	verb  string
	disks []string
	chunk int // bytes, of track
}

// parse reads the words of a call, [sudo -n --] …/gpuvirt p2v VERB [--chunk-bytes N] --disk NAME….
func parse(words []string) (call, error) {
	if len(words) > 3 && slices.Equal(words[:3], []string{"sudo", "-n", "--"}) {
		words = words[3:]
	}
	if len(words) < 3 || path.Base(words[0]) != "gpuvirt" || words[1] != "p2v" {
		return call{}, fmt.Errorf("%q is no program that is known here", words)
	}
	c := call{verb: words[2]}
	flags := flag.NewFlagSet(c.verb, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Func("disk", "", func(name string) error { c.disks = append(c.disks, name); return nil })
	flags.IntVar(&c.chunk, "chunk-bytes", block.DefaultChunkSize, "")
	if err := flags.Parse(words[3:]); err != nil {
		return c, err
	}
	if flags.NArg() > 0 || len(c.disks) == 0 || c.chunk < 1 {
		return c, errors.New("it names no disk, or is more than that")
	}
	return c, nil
}

// Open starts the peer that a program of ours on the server would be: "serve", "track" or
// "freeze". The context is for the start only.
func (s *Server) Open(ctx context.Context, program string, args ...string) (io.ReadWriteCloser, error) {
	c, err := parse(append([]string{program}, args...))
	if err != nil {
		return nil, gpu.Errorf(gpu.CodeInternal, "cannot run %q: %w", program, err)
	}
	for _, name := range c.disks {
		if s.media[name] == nil {
			return nil, gpu.Errorf(gpu.CodeInvalid, "cannot %s disk %q: it is none of this server", c.verb, name)
		}
	}
	var peer func(net.Conn) error
	switch c.verb {
	case "serve":
		for _, name := range c.disks {
			if err := s.media[name].ready(ctx); err != nil {
				return nil, err
			}
		}
		peer = func(far net.Conn) error { return s.blocks.Serve(s.ctx, far) }
	case "track":
		t := &tracker{s: s}
		if t.marks, err = s.marks(ctx, c.disks); err != nil {
			return nil, err
		}
		peer = func(far net.Conn) error { return track.Serve(far, t, c.chunk, nil) }
	case "freeze":
		peer = func(far net.Conn) error {
			return freeze.ServeOff(s.ctx, far, func(ctx context.Context) (func(context.Context) error, error) { return s.watch(ctx, c.disks) })
		}
	default:
		return nil, gpu.Errorf(gpu.CodeInternal, "cannot run %q of a server that is off", c.verb)
	}
	return s.start(c.verb, peer)
}

// start runs a peer until the other side closes, or the server.
func (s *Server) start(verb string, peer func(net.Conn) error) (io.ReadWriteCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot run %q: %w", verb, net.ErrClosed)
	}
	near, far := net.Pipe()
	s.peers.Go(func() {
		defer context.AfterFunc(s.ctx, func() { _ = far.Close() })()
		err := errors.Join(peer(far), far.Close())
		if err != nil && s.ctx.Err() == nil {
			s.log.Debug("a peer of a server that is off has ended", "verb", verb, "err", err)
		}
	})
	return near, nil
}

// marks are those of disks, by name.
func (s *Server) marks(ctx context.Context, disks []string) (map[string]any, error) {
	out := map[string]any{}
	for _, name := range disks {
		m, err := s.media[name].mark(ctx)
		if err != nil {
			return nil, err
		}
		out[name] = m
	}
	return out, nil
}

// errWritten says that a disk may not be as it was.
var errWritten = errors.New("the image was written to, or the server that exports it was away")

// A tracker tells that nothing was written, as long as that is sure. One peer asks it.
type tracker struct {
	s     *Server
	marks map[string]any
}

// Take is that of track.Tracker.
func (t *tracker) Take(disk string) ([]block.Range, error) {
	before, known := t.marks[disk]
	if !known {
		return nil, errors.New("it is not tracked")
	}
	now, err := t.s.media[disk].mark(t.s.ctx)
	if err != nil {
		t.marks[disk] = nil // whatever comes is another one, but of a device, which has no such error
		return nil, err
	}
	t.marks[disk] = now
	if now != before {
		return nil, errWritten
	}
	return nil, nil
}

// watch tells whether the disks are as they were when it was called.
func (s *Server) watch(ctx context.Context, disks []string) (func(context.Context) error, error) {
	before, err := s.marks(ctx, disks)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		for name, was := range before {
			now, err := s.media[name].mark(ctx)
			if err == nil && now != was {
				err = errWritten
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	}, nil
}
