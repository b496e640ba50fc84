package freeze

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"gpuvirt/p2v/lines"
)

const (
	// sayLimit is how long an answer may take to be taken from us.
	sayLimit = 10 * time.Second
	// heardLimit is how long we wait until the client has heard the acknowledgement of off.
	heardLimit = 2 * time.Second
	// silence is how long a client may say nothing while the server is frozen: a cable that was
	// pulled ends no connection.
	silence = time.Minute
)

// Config is what Serve and Guard work with. The zero value of each but Guard is that of the
// server they run on.
type Config struct {
	// Root is below which /proc, /sys and /dev are. Default "/".
	Root string
	// Kernel freezes, thaws and powers off.
	Kernel Kernel
	// Systemctl stops and starts services.
	Systemctl Systemctl
	// Guard are the arguments with which this program calls Guard. Without them nobody
	// thaws where the program is killed.
	Guard []string
	// Silence is how long a client may say nothing while the server is frozen. Default a minute.
	Silence time.Duration
}

func (c Config) filled() Config {
	c.Silence = cmp.Or(c.Silence, silence)
	c.Root = cmp.Or(c.Root, "/")
	if c.Kernel == nil {
		c.Kernel = linux{}
	}
	if c.Systemctl == nil {
		c.Systemctl = systemctl
	}
	return c
}

// A server is the side of the source.
type server struct {
	cfg   Config
	tree  *tree
	disks []string
	conn  io.ReadWriteCloser

	lines chan []byte
	over  chan struct{} // closed when nothing more can be read

	rest  *rest // nil: nothing is frozen
	until time.Time
	due   *time.Timer
	why   string // why nothing is frozen any more
	// stay is set where the client was told that the server powers off, and it did not: the
	// client may have ended, and something else may run in its place by now. Only the time and
	// the client thaw then.
	stay bool

	done sync.WaitGroup
}

// errTold ends a client that does not keep to what is agreed.
var errTold = errors.New("the client said something before it was answered")

// Serve freezes what lies on the disks when it is told to, and thaws it: at the latest when it
// returns, unless the server powers off. It returns when the connection, which it closes, or ctx
// ends.
func Serve(ctx context.Context, conn io.ReadWriteCloser, disks []string, cfg Config) (err error) {
	s := &server{cfg: cfg.filled(), disks: disks, conn: conn, lines: make(chan []byte), over: make(chan struct{}), due: stopped(), why: "nothing is frozen"}
	defer s.done.Wait()
	closed := sync.OnceValue(conn.Close)
	defer closed() //nolint:errcheck // what was to be said has been said
	s.cfg.Kernel.Pin()
	root, err := os.OpenRoot(s.cfg.Root)
	if err != nil {
		return errors.Join(err, s.say(hello{Version: version, Error: err.Error()}))
	}
	defer root.Close() //nolint:errcheck // it was only read from
	s.tree = &tree{root}
	facts, err := s.facts()
	if err != nil {
		return errors.Join(err, s.say(hello{Version: version, Error: oneLine(err)}))
	}
	if err := s.say(hello{Version: version, Facts: facts}); err != nil {
		return err
	}
	quit := make(chan struct{})
	s.done.Go(func() { s.read(quit) })
	// Thawing comes before all else, and does not wait for the client to go.
	defer func() {
		err = errors.Join(err, s.release("the connection is closed"))
		close(quit)
		_ = closed()
	}()
	return s.run(ctx)
}

func (s *server) facts() (Facts, error) {
	if err := s.tree.checkDisks(s.disks); err != nil {
		return Facts{}, err
	}
	f, err := s.tree.facts()
	if err != nil {
		return f, err
	}
	found, err := s.tree.find(s.disks)
	for _, fs := range found {
		f.Filesystems = append(f.Filesystems, fs.Filesystem)
	}
	return f, err
}

// read hands out what the client says, until it has gone.
func (s *server) read(quit <-chan struct{}) {
	defer close(s.over)
	said := bufio.NewScanner(s.conn)
	said.Buffer(make([]byte, 0, 4096), maxQuestion)
	for said.Scan() {
		select {
		case s.lines <- slices.Clone(said.Bytes()):
		case <-quit:
			return
		}
	}
}

// run answers until the client has gone, or said what it may not.
func (s *server) run(ctx context.Context) error {
	for {
		quit, over := ctx.Done(), s.over
		if s.stay {
			quit, over = nil, nil
		}
		var lone <-chan struct{}
		var silent <-chan time.Time
		if s.rest != nil && !s.stay {
			lone = s.rest.guard.lone()
			silent = time.After(s.cfg.Silence)
		}
		select {
		case <-quit:
			return context.Cause(ctx)
		case <-over:
			return nil
		case <-s.due.C:
			_ = s.release("the time limit is over") // the client is told that when it asks
		case <-lone:
			_ = s.release("its guard has ended")
		case <-silent:
			_ = s.release("nothing was heard of the client for " + s.cfg.Silence.String())
		case line := <-s.lines:
			if err := s.answer(ctx, line); err != nil {
				return err
			}
		}
	}
}

// release thaws and starts what was stopped.
func (s *server) release(why string) error {
	if s.rest == nil {
		return nil
	}
	r := s.rest
	s.rest, s.stay = nil, false
	s.due.Stop()
	err := r.end()
	s.why = why + ", and all is thawed"
	if err != nil {
		s.why = why + ": " + oneLine(err)
	}
	s.done.Go(r.close)
	return err
}

// answer answers one question. An error ends the connection.
func (s *server) answer(ctx context.Context, line []byte) error {
	var q question
	if err := lines.Decode(line, &q); err != nil {
		return fmt.Errorf("cannot understand the client: %w", err)
	}
	if err := q.check(); err != nil {
		return err
	}
	if s.rest != nil && !time.Now().Before(s.until) {
		_ = s.release("the time limit is over")
	}
	var a answer
	var err error
	switch q.Do {
	case doFreeze:
		a, err = s.freeze(ctx, q)
		if errors.Is(err, errTold) {
			return err
		}
	case doQuiet:
		a.Written, err = s.quiet()
	case doThaw:
		err = s.release("the client has thawed it")
	case doOff:
		return s.off()
	case doHeard:
		return nil // that was answered when it failed
	}
	if err != nil {
		a = answer{Error: oneLine(err)}
	}
	return s.say(a)
}

func (s *server) quiet() ([]Written, error) {
	if s.rest == nil {
		return nil, errors.New(s.why)
	}
	now, err := s.tree.count(s.disks)
	if err != nil {
		return nil, err
	}
	return now.since(s.rest.before)
}

// freeze brings the server to rest, or leaves it as it was.
func (s *server) freeze(ctx context.Context, q question) (answer, error) {
	if s.rest != nil {
		return answer{}, errors.New("it is frozen already")
	}
	limit := time.Duration(q.LimitMS) * time.Millisecond
	s.until = time.Now().Add(limit)
	s.due.Reset(limit)
	g, err := startGuard(s.cfg.Guard, limit)
	if err != nil {
		s.due.Stop()
		return answer{}, err
	}
	s.rest = &rest{kernel: s.cfg.Kernel, systemctl: s.cfg.Systemctl, guard: g}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := make(chan error, 1)
	s.done.Go(func() { began <- s.rest.begin(ctx, s.tree, s.disks, q.Stop) })
	var enough error
	select {
	case err = <-began:
	case <-s.due.C:
		enough = errors.New("the time limit is over")
	case <-s.over:
		enough = io.ErrUnexpectedEOF
	case <-s.lines:
		enough = errTold
	case <-g.lone():
		enough = errors.New("its guard has ended")
	}
	if enough != nil {
		cancel(enough)
		err = cmp.Or(<-began, enough)
	}
	if err == nil {
		return answer{Filesystems: s.rest.filesystems()}, nil
	}
	return answer{}, errors.Join(err, s.release("it could not be frozen"))
}

// off powers the server off, once the client knows.
func (s *server) off() error {
	if s.rest == nil {
		return s.say(answer{Error: s.why})
	}
	if err := s.rest.guard.ask(note{Do: noteOff}); err != nil {
		return s.say(answer{Error: oneLine(errors.Join(err, s.release("it cannot be powered off")))})
	}
	if err := s.say(answer{}); err != nil {
		_ = s.rest.guard.tell(note{Do: noteOn}, nil) // it sees our end otherwise
		return err
	}
	// It is acknowledged. The client says when it has heard that, as what it was told may be
	// under way still: then, or when it cannot any more, there is nothing left to wait for.
	late := time.NewTimer(heardLimit)
	defer late.Stop()
	select {
	case <-s.lines:
	case <-s.over:
	case <-late.C:
	}
	err := s.cfg.Kernel.PowerOff()
	s.stay = true
	_ = s.rest.guard.tell(note{Do: noteOn, Stay: true}, nil)
	// Nobody may be there to hear it.
	_ = s.say(answer{Error: fmt.Sprintf("cannot power off: %v; it stays frozen until it is thawed, or until %s", err, s.until.UTC().Format(time.RFC3339))})
	return nil
}

// say says something, and closes the connection where it is not taken from us.
func (s *server) say(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	said := make(chan error, 1)
	s.done.Go(func() {
		_, err := s.conn.Write(append(text, '\n'))
		said <- err
	})
	late := time.NewTimer(sayLimit)
	defer late.Stop()
	select {
	case err = <-said:
	case <-late.C:
		_ = s.conn.Close()
		err = errors.Join(os.ErrDeadlineExceeded, <-said)
	}
	if err != nil {
		return fmt.Errorf("cannot answer the client: %w", err)
	}
	return nil
}
