package block

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Time limits of a server. A write may take long, as a puller with a small
// bandwidth reads slowly; it only has to end when nobody reads any more.
const (
	headerTime = time.Minute
	idleTime   = 10 * time.Minute
	writeTime  = 15 * time.Minute
)

// A Disk is one that a server may read.
type Disk struct {
	Name          string // what requests call it
	Path          string // where it is, /dev/nvme0n1
	ID            string // what tells it from all other disks: a WWN, a serial number. At most MaxID bytes
	Serial, Model string // for people, may be empty

	// Reader, in place of Path, is a disk of another host. It is read at places that are
	// multiples of 4096, several at once, and is not closed. An error that is ErrAway ends the
	// connection to the puller, who comes again; any other is told as one of the disk.
	Reader io.ReaderAt
	Size   int64 // of Reader, bytes
}

// ErrAway is an error of a Disk's Reader: it was not reached, which may pass.
var ErrAway = errors.New("the disk is not reached")

// An Info tells of a disk that is served.
type Info struct {
	Name      string `json:"name"`
	ID        string `json:"id"`
	Serial    string `json:"serial,omitempty"`
	Model     string `json:"model,omitempty"`
	Size      int64  `json:"size"`      // bytes
	BlockSize int    `json:"blockSize"` // bytes, the logical block size
	ReadOnly  bool   `json:"readOnly"`
}

var diskName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// A Server answers for a fixed set of disks, which it opens for reading only.
type Server struct {
	log     *slog.Logger
	disks   []served // in the order given
	encoder *zstd.Encoder

	mu  sync.Mutex
	cut map[cutting]geometry // with hashes of zeros, which take time
}

type cutting struct {
	size  int64
	chunk int
}

type served struct {
	Info
	reader
	file *device // nil where a reader was brought
}

// NewServer opens the disks. Close closes them.
func NewServer(disks []Disk, log *slog.Logger) (*Server, error) {
	s, err := newServer(log)
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		if err := s.open(d); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func newServer(log *slog.Logger) (*Server, error) {
	// Level and checksum: a frame has a hash already, and a faster link than
	// the fastest level is one that needs no compression.
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), zstd.WithEncoderConcurrency(workers()))
	if err != nil {
		return nil, fmt.Errorf("cannot prepare compression: %w", err)
	}
	return &Server{log: log, encoder: e, cut: map[cutting]geometry{}}, nil
}

func (s *Server) open(d Disk) error {
	if !diskName.MatchString(d.Name) {
		return fmt.Errorf("cannot serve disk %q: a name is up to 64 letters, digits and ._-", d.Name)
	}
	if len(d.ID) > MaxID {
		return fmt.Errorf("cannot serve disk %q: its identity is longer than %d bytes", d.Name, MaxID)
	}
	if _, ok := s.disk(d.Name); ok {
		return fmt.Errorf("cannot serve disk %q: the name is given twice", d.Name)
	}
	info := Info{Name: d.Name, ID: d.ID, Serial: d.Serial, Model: d.Model}
	if d.Reader != nil {
		if d.Path != "" || d.Size < 1 {
			return fmt.Errorf("cannot serve disk %q: a reader takes a size and no path", d.Name)
		}
		info.Size, info.BlockSize, info.ReadOnly = d.Size, 512, true
		s.disks = append(s.disks, served{Info: info, reader: lent{d.Reader}})
		return nil
	}
	dev, err := openDevice(d.Path)
	if err != nil {
		return fmt.Errorf("cannot serve disk %q: %w", d.Name, err)
	}
	info.Size, info.BlockSize, info.ReadOnly = dev.size, dev.blockSize, dev.readOnly
	s.disks = append(s.disks, served{Info: info, reader: dev, file: dev})
	return nil
}

// Disks tells what is served.
func (s *Server) Disks() []Info {
	infos := make([]Info, 0, len(s.disks))
	for _, d := range s.disks {
		infos = append(infos, d.Info)
	}
	return infos
}

func (s *Server) disk(name string) (served, bool) {
	for _, d := range s.disks {
		if d.Name == name {
			return d, true
		}
	}
	return served{}, false
}

// Close closes the disks, after the last Serve has returned.
func (s *Server) Close() error {
	var errs []error
	for _, d := range s.disks {
		if d.file != nil {
			errs = append(errs, d.file.close())
		}
	}
	return errors.Join(append(errs, s.encoder.Close())...)
}

// Serve opens the disks and answers on one connection until the peer closes it
// or ctx ends; the error is then nil. It closes the connection. The time limits
// need a connection with deadlines, see Stdio.
func Serve(ctx context.Context, conn net.Conn, disks []Disk, log *slog.Logger) error {
	s, err := NewServer(disks, log)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	return errors.Join(s.Serve(ctx, conn), s.Close())
}

// Serve answers on one connection, as the function Serve does. Several may run
// at once.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	l := newListener(conn)
	ended := make(chan struct{}) // with the last request answered
	hs := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		WriteTimeout:      writeTime, // a frame begins it anew
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				close(ended)
			}
		},
	}
	stop := context.AfterFunc(ctx, func() { hangUp(l.conn) })
	defer stop()
	err := hs.Serve(l)
	<-ended
	if errors.Is(err, errServed) {
		return nil
	}
	return fmt.Errorf("cannot serve: %w", err)
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /disks", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(s.Disks()); err != nil {
			s.log.Debug("cannot answer", "err", err)
		}
	})
	mux.HandleFunc("POST /disks/{name}/changed", s.changed)
	mux.HandleFunc("GET /disks/{name}/hashes", s.hashes)
	return mux
}

// changed answers with the chunks of the list in the body that are not as the
// list says. Query: chunk, the chunk size; zstd=1 lets chunks be compressed.
func (s *Server) changed(w http.ResponseWriter, r *http.Request) {
	d, g, ok := s.asks(w, r)
	if !ok {
		return
	}
	asks, err := readAsks(w, r, g)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	packed := r.URL.Query().Get("zstd") == "1"
	s.stream(w, r, d, g, len(asks), func(pos int, b *buffer) reply {
		a := asks[pos]
		data, err := d.read(b, g.offset(a.index), g.length(a.index))
		if err != nil {
			return d.failed(g, a.index, err)
		}
		hash, zero := g.hash(a.index, data)
		switch {
		case hash == a.held:
			return reply{head: head{kind: frameSame, pos: pos + 1}}
		case zero:
			return reply{head: head{kind: frameZero, pos: pos, hash: hash}}
		case packed:
			return s.pack(b, head{kind: frameRaw, pos: pos, length: len(data), hash: hash})
		default:
			h := head{kind: frameRaw, pos: pos, length: len(data), hash: hash}
			return reply{head: h, frame: b.frame(len(data))}
		}
	})
}

// pack compresses the chunk in b, if that saves an eighth: below it, unpacking
// costs more than the bytes.
func (s *Server) pack(b *buffer, h head) reply {
	data := b.data()[:h.length]
	if cap(b.packed) < headSize+len(data) {
		b.packed = make([]byte, headSize, headSize+len(data)+len(data)/8)
	}
	b.packed = s.encoder.EncodeAll(data, b.packed[:headSize])
	if n := len(b.packed) - headSize; n <= len(data)-len(data)/8 {
		h.kind, h.length = frameZstd, n
		return reply{head: h, frame: b.packed}
	}
	return reply{head: h, frame: b.frame(len(data))}
}

// hashes answers with the hash of each chunk of a range. Query: chunk, the
// chunk size; from, the first chunk; n, how many.
func (s *Server) hashes(w http.ResponseWriter, r *http.Request) {
	d, g, ok := s.asks(w, r)
	if !ok {
		return
	}
	from, err1 := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
	n, err2 := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
	if err1 != nil || err2 != nil || n < 1 || n > maxAsk || from < 0 || from > g.count()-n {
		http.Error(w, fmt.Sprintf("from and n must name 1 to %d of the %d chunks", maxAsk, g.count()), http.StatusBadRequest)
		return
	}
	s.stream(w, r, d, g, int(n), func(pos int, b *buffer) reply {
		i := from + int64(pos)
		data, err := d.read(b, g.offset(i), g.length(i))
		if err != nil {
			return d.failed(g, i, err)
		}
		hash, _ := g.hash(i, data)
		return reply{head: head{kind: frameHash, pos: pos, hash: hash}}
	})
}

// asks finds out what a request is about, or answers that it cannot.
func (s *Server) asks(w http.ResponseWriter, r *http.Request) (served, geometry, bool) {
	d, ok := s.disk(r.PathValue("name"))
	if !ok {
		http.Error(w, "no such disk is served", http.StatusNotFound)
		return d, geometry{}, false
	}
	chunk, err := strconv.Atoi(r.URL.Query().Get("chunk"))
	if err == nil {
		var g geometry
		if g, err = s.geometry(d.Size, chunk); err == nil {
			return d, g, true
		}
	}
	http.Error(w, err.Error(), http.StatusBadRequest)
	return d, geometry{}, false
}

func (s *Server) geometry(size int64, chunk int) (geometry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.cut[cutting{size, chunk}]
	if ok {
		return g, nil
	}
	g, err := newGeometry(size, chunk)
	if err == nil {
		s.cut[cutting{size, chunk}] = g
	}
	return g, err
}

func (d served) failed(g geometry, i int64, err error) reply {
	if errors.Is(err, ErrAway) {
		return reply{err: err}
	}
	off := firstBad(d.reader, g.offset(i), g.length(i))
	return reply{err: &SourceError{Disk: d.Name, Offset: off, Cause: err.Error()}}
}

func readAsks(w http.ResponseWriter, r *http.Request, g geometry) ([]ask, error) {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(headerTime)); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAsk*int64(askSize)))
	if err != nil {
		return nil, err
	}
	// None for what comes after: the server listens for the peer's end meanwhile.
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return parseAsks(body, g)
}
