package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"gpuvirt/gpu"
	"gpuvirt/p2v/report"
)

// What both sides begin with.
const (
	magicHello    = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption   = 0x49484156454f5054 // "IHAVEOPT"
	magicOldStyle = 0x00420281861253
	magicReply    = 0x0003e889045565a9
	magicRequest  = 0x25609513
	magicSimple   = 0x67446698
)

// Flags of the handshake, the same for both sides.
const (
	flagFixed    = 1 << 0
	flagNoZeroes = 1 << 1
)

// Options, replies to them, and what is told of an export.
const (
	optStartTLS = 5
	optGo       = 7

	repACK  = 1
	repInfo = 3
	repErr  = 1 << 31

	infoExport    = 0
	infoBlockSize = 3
)

// Flags of an export.
const (
	flagHasFlags  = 1 << 0
	flagReadOnly  = 1 << 1
	flagMultiConn = 1 << 8
)

const (
	cmdRead = 0
	cmdDisc = 2
)

// Limits of what a server says.
const (
	maxReplyData = 8 << 10 // bytes; a string has at most 4096
	maxReplies   = 64      // to one option
	maxMinimum   = 64 << 10
	defaultMost  = 32 << 20 // of a read, where the server names no limit; NBD's own
	maxRead      = 4 << 20  // of one that we ask for
)

// These are as they are on the wire, big endian.
type (
	hello struct {
		Magic, Style uint64
		Flags        uint16
	}
	option struct {
		Magic          uint64
		Option, Length uint32
	}
	optionReply struct {
		Magic                uint64
		Option, Type, Length uint32
	}
	exportInfo struct {
		Size  uint64
		Flags uint16
	}
	blockSizeInfo struct{ Minimum, Preferred, Most uint32 }
	request       struct {
		Magic          uint32
		Flags, Type    uint16
		Handle, Offset uint64
		Length         uint32
	}
	reply struct {
		Magic, Error uint32
		Handle       uint64
	}
)

// A brokenError says that a server does not keep to the protocol. Nothing can be read on that
// connection any more.
type brokenError struct{ text string }

func (e *brokenError) Error() string { return "the server does not speak NBD as it has to: " + e.text }

func broken(format string, args ...any) error { return &brokenError{fmt.Sprintf(format, args...)} }

// An export is what a server says of one.
type export struct {
	size      int64 // bytes
	readOnly  bool
	multiConn bool
	minimum   int64 // of which places and lengths of reads are multiples, bytes
	most      int64 // of a read, bytes
}

// greet hears that the server is one of NBD, and says that so are we.
func greet(rw io.ReadWriter) error {
	var h hello
	if err := binary.Read(rw, binary.BigEndian, &h); err != nil {
		return err
	}
	switch {
	case h.Magic == magicHello && h.Style == magicOldStyle:
		return broken("it is of the old style, without TLS and names")
	case h.Magic != magicHello || h.Style != magicOption:
		return broken("it begins with %#x %#x", h.Magic, h.Style)
	case h.Flags&flagFixed == 0:
		return broken("its newstyle is not the fixed one")
	}
	return binary.Write(rw, binary.BigEndian, uint32(h.Flags&(flagFixed|flagNoZeroes)))
}

// ask sends an option.
func ask(w io.Writer, opt uint32, data []byte) error {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.BigEndian, option{magicOption, opt, uint32(len(data))}) //nolint:gosec // G115: a name and a few numbers
	b.Write(data)
	_, err := w.Write(b.Bytes())
	return err
}

// hear reads one reply to an option. A refusal is an error. Not a byte more than the reply is
// read: what an attacker puts behind it before TLS begins must not be taken for something said
// within.
func hear(r io.Reader, opt uint32) (kind uint32, data []byte, err error) {
	var h optionReply
	if err := binary.Read(r, binary.BigEndian, &h); err != nil {
		return 0, nil, err
	}
	switch {
	case h.Magic != magicReply || h.Option != opt:
		return 0, nil, broken("%#x to option %d answers option %d", h.Magic, opt, h.Option)
	case h.Length > maxReplyData:
		return 0, nil, broken("a reply of %d bytes to option %d", h.Length, opt)
	}
	data = make([]byte, h.Length)
	if _, err := io.ReadFull(r, data); err != nil {
		return 0, nil, err
	}
	if h.Type&repErr != 0 {
		return 0, nil, refusal(opt, h.Type, string(data))
	}
	return h.Type, data, nil
}

// refusal is why a server does not do what an option asks for.
func refusal(opt, kind uint32, text string) error {
	said := ""
	if text != "" {
		said = fmt.Sprintf(" (%s)", report.CleanString(text))
	}
	if opt == optStartTLS {
		return gpu.Errorf(gpu.CodeUnauthorized, "the server does not speak TLS%s", said).
			WithHint("start it with --tls=require; without TLS anybody in between can read the disk and change what is read")
	}
	switch kind &^ repErr {
	case 2:
		return gpu.Errorf(gpu.CodeForbidden, "the server refuses it%s", said)
	case 5:
		return gpu.Errorf(gpu.CodeInvalid, "the server wants TLS%s", said).WithHint("use nbds:// in place of nbd://")
	case 6:
		return gpu.Errorf(gpu.CodeNotFound, "the server has no such export%s", said)
	case 7:
		return gpu.Errorf(gpu.CodeUnavailable, "the server is being shut down%s", said)
	}
	return gpu.Errorf(gpu.CodeConflict, "the server refuses option %d with error %d%s", opt, kind&^repErr, said)
}

// startTLS asks for TLS. After it the server waits for the TLS handshake.
func startTLS(rw io.ReadWriter) error {
	if err := ask(rw, optStartTLS, nil); err != nil {
		return err
	}
	kind, data, err := hear(rw, optStartTLS)
	if err == nil && (kind != repACK || len(data) != 0) {
		return broken("reply %d with %d bytes to STARTTLS", kind, len(data))
	}
	return err
}

// begin asks for an export. After it the server answers requests.
func begin(rw io.ReadWriter, name string) (export, error) {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.BigEndian, uint32(len(name))) //nolint:gosec // G115: ParseURI bounds it
	b.WriteString(name)
	_ = binary.Write(&b, binary.BigEndian, []uint16{1, infoBlockSize})
	if err := ask(rw, optGo, b.Bytes()); err != nil {
		return export{}, err
	}
	e := export{minimum: 1, most: defaultMost}
	for range maxReplies {
		kind, data, err := hear(rw, optGo)
		switch {
		case err != nil:
			return e, err
		case kind == repACK && len(data) == 0:
			return e, e.check()
		case kind != repInfo:
			return e, broken("reply %d with %d bytes to GO", kind, len(data))
		}
		if err := e.take(data); err != nil {
			return e, err
		}
	}
	return e, broken("more than %d replies to GO", maxReplies)
}

// take takes in what is told of an export.
func (e *export) take(data []byte) error {
	r := bytes.NewReader(data)
	var kind uint16
	err := binary.Read(r, binary.BigEndian, &kind)
	switch {
	case err != nil:
	case kind == infoExport:
		var i exportInfo
		err = binary.Read(r, binary.BigEndian, &i)
		if i.Size > math.MaxInt64 {
			return broken("an export of %d bytes", i.Size)
		}
		e.size = int64(i.Size)
		e.readOnly = i.Flags&flagHasFlags != 0 && i.Flags&flagReadOnly != 0
		e.multiConn = i.Flags&flagHasFlags != 0 && i.Flags&flagMultiConn != 0
	case kind == infoBlockSize:
		var i blockSizeInfo
		err = binary.Read(r, binary.BigEndian, &i)
		e.minimum, e.most = int64(i.Minimum), int64(i.Most)
	default:
		return nil // what we did not ask for, and a server may tell
	}
	if err != nil || r.Len() != 0 {
		return broken("%d bytes on kind %d of what there is to tell of an export", len(data), kind)
	}
	return nil
}

// check refuses what cannot be read, and settles how much is read at once.
func (e *export) check() error {
	switch {
	case e.size < 1:
		return gpu.Errorf(gpu.CodeConflict, "the export is empty")
	case e.minimum < 1 || e.minimum > maxMinimum || e.minimum&(e.minimum-1) != 0:
		return broken("blocks of %d bytes", e.minimum)
	case e.most < e.minimum:
		return broken("reads of at least %d and at most %d bytes", e.minimum, e.most)
	}
	e.most = min(e.most, maxRead) &^ (e.minimum - 1)
	return nil
}
