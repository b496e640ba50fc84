package block

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Sizes that both sides agree on.
const (
	askSize    = 8 + len(Hash{})    // index, hash held
	maxAsk     = 4096               // chunks in a request
	headSize   = 1 + 3 + 4 + 4 + 32 // kind, zeros, position, length, hash
	maxMessage = 4096               // bytes of the JSON in an error frame
	maxList    = 1 << 20            // bytes of the JSON that lists disks
)

// The kinds of frame in an answer. The position is one in the request's list.
const (
	frameZero  = 1 + iota // the chunk at position is all zeros, no data follows
	frameRaw              // length bytes of the chunk follow
	frameZstd             // length bytes follow, the chunk compressed
	frameHash             // the hash of the chunk at position, no data follows
	frameSame             // all before position is settled
	frameEnd              // all is settled, position is the count of chunks asked for
	frameError            // length bytes of JSON follow, a SourceError, and nothing after
)

type head struct {
	kind   byte
	pos    int
	length int
	hash   Hash
}

func (h head) put(b []byte) {
	b[0], b[1], b[2], b[3] = h.kind, 0, 0, 0
	binary.BigEndian.PutUint32(b[4:], uint32(h.pos))
	binary.BigEndian.PutUint32(b[8:], uint32(h.length))
	copy(b[12:headSize], h.hash[:])
}

// parseHead checks what can be said without the request: the position fits the
// largest request, and the length the kind.
func parseHead(b []byte, chunk int) (head, error) {
	h := head{
		kind:   b[0],
		pos:    int(binary.BigEndian.Uint32(b[4:])),
		length: int(binary.BigEndian.Uint32(b[8:])),
		hash:   Hash(b[12:headSize]),
	}
	var most int
	switch h.kind {
	case frameRaw, frameZstd:
		most = chunk
	case frameError:
		most = maxMessage
	case frameZero, frameHash, frameSame, frameEnd:
	default:
		return head{}, badData("a frame of unknown kind %d", h.kind)
	}
	if b[1]|b[2]|b[3] != 0 || h.pos > maxAsk || h.length > most {
		return head{}, badData("a frame of kind %d with position %d and length %d", h.kind, h.pos, h.length)
	}
	return h, nil
}

// An ask is one line of a request: a chunk and what the puller holds of it.
type ask struct {
	index int64
	held  Hash
}

func putAsks(asks []ask) []byte {
	b := make([]byte, 0, len(asks)*askSize)
	for _, a := range asks {
		b = binary.BigEndian.AppendUint64(b, uint64(a.index))
		b = append(b, a.held[:]...)
	}
	return b
}

// parseAsks refuses what is not on the disk and what is not in order.
func parseAsks(b []byte, g geometry) ([]ask, error) {
	if len(b) == 0 || len(b)%askSize != 0 || len(b) > maxAsk*askSize {
		return nil, fmt.Errorf("a list of %d bytes is not 1 to %d times %d", len(b), maxAsk, askSize)
	}
	asks := make([]ask, 0, len(b)/askSize)
	next := uint64(0)
	for ; len(b) > 0; b = b[askSize:] {
		i := binary.BigEndian.Uint64(b)
		if i < next || i >= uint64(g.count()) {
			return nil, fmt.Errorf("chunk %d is out of order, or not among the %d of the disk", i, g.count())
		}
		next = i + 1
		asks = append(asks, ask{index: int64(i), held: Hash(b[8:askSize])})
	}
	return asks, nil
}

// A SourceError is a read that failed on the source. It does not go away by
// asking again, and the chunk is not copied.
type SourceError struct {
	Disk   string `json:"disk"`
	Offset int64  `json:"offset"` // bytes; the first block that cannot be read
	Cause  string `json:"cause"`
}

func (e *SourceError) Error() string {
	return fmt.Sprintf("cannot read disk %q of the source at byte %d: %s", e.Disk, e.Offset, e.Cause)
}

// message is the error as the data of a frame. Its disk has a short name, and
// causes are the kernel's.
func (e *SourceError) message() []byte {
	b, err := json.Marshal(e)
	if err != nil || len(b) > maxMessage {
		return []byte("{}")
	}
	return b
}

// parseMessage reads what message made. What a source says is kept short and
// free of control characters, as it ends in logs and on terminals.
func parseMessage(b []byte) error {
	e := new(SourceError)
	if err := json.Unmarshal(b, e); err != nil {
		return badData("an error that cannot be read: %w", err)
	}
	e.Disk, e.Cause = plain(e.Disk), plain(e.Cause)
	return e
}

func plain(s string) string {
	quoted := strconv.QuoteToASCII(s[:min(len(s), 200)])
	return quoted[1 : len(quoted)-1]
}

// ErrBadData says that a source sent what the protocol does not allow: a wrong
// hash, a length or a position that was not asked for. Nothing of it is written.
var ErrBadData = errors.New("the source sent bad data")

func badData(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrBadData, fmt.Errorf(format, args...))
}
