package block

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MaxID is how long the identity of a disk may be, in bytes.
const MaxID = 256

// The map file: a header of one sector, so that it is written whole or not at
// all, and from byte 4096 on a hash for each chunk. Numbers are big endian.
//
//	 0  8  "GPUVBMAP"
//	 8  4  version
//	12  4  chunk size
//	16  8  size of the disk
//	24  2  length of the identity
//	26     the identity
//	480 32 SHA-256 of what is before
const (
	mapMagic    = "GPUVBMAP"
	mapVersion  = 1
	mapHeader   = 512
	mapSum      = mapHeader - sha256.Size
	mapRecords  = 4096
	recordBytes = len(Hash{})
)

// A MismatchError says that a map or a source is of another disk than the
// mirror that was asked for, or is cut in another way.
type MismatchError struct {
	Where string // what was looked at
	What  string // what differs
	Have  string
	Want  string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("cannot continue with %s: the %s is %s there, and %s is wanted", e.Where, e.What, e.Have, e.Want)
}

// A table is the map file: which chunks the mirror holds.
type table struct {
	file file
	name string
	geometry
	id string
}

// load reads the header. fresh says that there is none yet.
func (t *table) load() (fresh bool, err error) {
	head := make([]byte, mapHeader)
	n, err := t.file.ReadAt(head, 0)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return false, fmt.Errorf("cannot read map %q: %w", t.name, err)
	case n == 0 || isZero(head):
		return true, nil
	default:
		return false, t.check(head)
	}
}

func (t *table) header() []byte {
	b := make([]byte, 0, mapHeader)
	b = append(b, mapMagic...)
	b = binary.BigEndian.AppendUint32(b, mapVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(t.chunk))
	b = binary.BigEndian.AppendUint64(b, uint64(t.size))
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.id)))
	b = append(b, t.id...)
	b = append(b, make([]byte, mapSum-len(b))...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// check compares a header with the one that would be written now.
func (t *table) check(head []byte) error {
	want := t.header()
	if bytes.Equal(head, want) {
		return nil
	}
	where := fmt.Sprintf("map %q", t.name)
	differs := func(what string, have, want any) error {
		return &MismatchError{Where: where, What: what, Have: fmt.Sprint(have), Want: fmt.Sprint(want)}
	}
	if string(head[:8]) != mapMagic {
		return fmt.Errorf("cannot continue with %s: it is no map of gpuvirt", where)
	}
	if v := binary.BigEndian.Uint32(head[8:]); v != mapVersion {
		return differs("version", v, mapVersion)
	}
	sum := sha256.Sum256(head[:mapSum])
	idLen := int(binary.BigEndian.Uint16(head[24:]))
	if !bytes.Equal(sum[:], head[mapSum:]) || idLen > MaxID {
		return fmt.Errorf("cannot continue with %s: its header is damaged", where)
	}
	if id := string(head[26 : 26+idLen]); id != t.id {
		return differs("disk", fmt.Sprintf("%q", id), fmt.Sprintf("%q", t.id))
	}
	if size := int64(binary.BigEndian.Uint64(head[16:])); size != t.size {
		return sizeMismatch(where, size, t.size)
	}
	return differs("chunk size", binary.BigEndian.Uint32(head[12:]), t.chunk)
}

// sizeMismatch says also which way the disk went.
func sizeMismatch(where string, have, want int64) error {
	what := "size of the disk, which grew,"
	if want < have {
		what = "size of the disk, which shrank,"
	}
	return &MismatchError{Where: where, What: what, Have: fmt.Sprintf("%d bytes", have), Want: fmt.Sprintf("%d bytes", want)}
}

func (t *table) end() int64 { return mapRecords + t.count()*int64(recordBytes) }

// create writes the records, so that later writes find their room, and then
// the header.
func (t *table) create() error {
	if err := t.fill(); err != nil {
		return fmt.Errorf("cannot write map %q: %w", t.name, spaceError(err, t.name, t.end(), t.file))
	}
	return nil
}

func (t *table) fill() error {
	zeros := make([]byte, 1<<20)
	for off := int64(0); off < t.end(); off += int64(len(zeros)) {
		if _, err := t.file.WriteAt(zeros[:min(int64(len(zeros)), t.end()-off)], off); err != nil {
			return err
		}
	}
	if err := t.file.Sync(); err != nil {
		return err
	}
	if _, err := t.file.WriteAt(t.header(), 0); err != nil {
		return err
	}
	return t.file.Sync()
}

// read reads the records of n chunks.
func (t *table) read(from int64, n int) ([]Hash, error) {
	b := make([]byte, n*recordBytes)
	if _, err := t.file.ReadAt(b, mapRecords+from*int64(recordBytes)); err != nil {
		return nil, fmt.Errorf("cannot read map %q: %w", t.name, err)
	}
	hashes := make([]Hash, n)
	for i := range hashes {
		hashes[i] = Hash(b[i*recordBytes:])
	}
	return hashes, nil
}

func (t *table) write(i int64, h Hash) error {
	if _, err := t.file.WriteAt(h[:], mapRecords+i*int64(recordBytes)); err != nil {
		return fmt.Errorf("cannot write map %q: %w", t.name, err)
	}
	return nil
}

func (t *table) sync() error {
	if err := t.file.Sync(); err != nil {
		return fmt.Errorf("cannot sync map %q: %w", t.name, err)
	}
	return nil
}

// held counts the chunks that have a record.
func (t *table) held() (n int64, err error) {
	const most = 1 << 15
	for from := int64(0); from < t.count(); from += most {
		hashes, err := t.read(from, int(min(most, t.count()-from)))
		if err != nil {
			return 0, err
		}
		for _, h := range hashes {
			if h != (Hash{}) {
				n++
			}
		}
	}
	return n, nil
}
