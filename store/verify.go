package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt maps its file and follows the page numbers it finds there: in a torn file
// it panics, or faults past the end of the mapping, which cannot be caught. So the
// file is read through before bbolt sees it, with plain reads and every number
// checked. The layout is bbolt's version 2, unchanged since 2014; its numbers are
// in the machine's byte order.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	headerSize  = 16 // id uint64, flags uint16, count uint16, overflow uint32
	elementSize = 16
	metaSize    = 64
	bucketSize  = 16 // root uint64, sequence uint64; root 0: its page follows inline

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketLeaf   = 0x01 // flag of a leaf element

	noFreelist  = ^uint64(0)
	maxPageSize = 16 << 20
)

// A boltFile is a bbolt file that is being read through.
type boltFile struct {
	r        io.ReaderAt
	pageSize uint64
	pages    uint64 // high water mark: pages in use are below it
	seen     []bool // by page: it belongs to something
}

// verify reads a bbolt file through: its newest valid meta page, and every page
// that is reachable from there.
func verify(r io.ReaderAt, size int64) error {
	m, err := newestMeta(r)
	if err != nil {
		return err
	}
	if m.pages > uint64(size)/m.pageSize {
		return fmt.Errorf("the file is cut short: it has %d bytes of %d", size, m.pages*m.pageSize)
	}
	b := &boltFile{r: r, pageSize: m.pageSize, pages: m.pages, seen: make([]bool, m.pages)}
	b.seen[0], b.seen[1] = true, true
	if err := b.tree(m.root, nil, 0); err != nil {
		return err
	}
	if m.freelist == noFreelist {
		return nil
	}
	return b.freelist(m.freelist)
}

type meta struct{ pageSize, root, freelist, pages, txid uint64 }

// newestMeta returns the valid one of the two meta pages, or the newer. bbolt
// writes them in turn, so that one is whole even if the other write was torn.
func newestMeta(r io.ReaderAt) (meta, error) {
	first, err := readMeta(r, 0)
	if err == nil {
		if second, err := readMeta(r, int64(first.pageSize)); err == nil && second.txid > first.txid {
			return second, nil
		}
		return first, nil
	}
	// The first page does not tell the page size: try all.
	for at := int64(1024); at <= maxPageSize; at *= 2 {
		if second, err := readMeta(r, at); err == nil && second.pageSize == uint64(at) {
			return second, nil
		}
	}
	return meta{}, fmt.Errorf("no valid meta page: %w", err)
}

func readMeta(r io.ReaderAt, at int64) (meta, error) {
	buf := make([]byte, headerSize+metaSize)
	if _, err := r.ReadAt(buf, at); err != nil {
		return meta{}, err
	}
	buf = buf[headerSize:]
	n := binary.NativeEndian
	sum := fnv.New64a()
	sum.Write(buf[:metaSize-8])
	switch {
	case n.Uint32(buf) != boltMagic:
		return meta{}, errors.New("wrong magic number")
	case n.Uint32(buf[4:]) != boltVersion:
		return meta{}, fmt.Errorf("version %d of the file format is unknown", n.Uint32(buf[4:]))
	case n.Uint64(buf[metaSize-8:]) != sum.Sum64():
		return meta{}, errors.New("wrong checksum")
	}
	m := meta{
		pageSize: uint64(n.Uint32(buf[8:])), root: n.Uint64(buf[16:]), freelist: n.Uint64(buf[32:]),
		pages: n.Uint64(buf[40:]), txid: n.Uint64(buf[48:]),
	}
	if m.pageSize < 1024 || m.pageSize > maxPageSize || m.pageSize&(m.pageSize-1) != 0 || m.pages < 4 || m.pages > 1<<40 {
		return meta{}, fmt.Errorf("%d pages of %d bytes cannot be", m.pages, m.pageSize)
	}
	return m, nil
}

// page reads a page with its overflow and marks it as belonging to something.
func (b *boltFile) page(id uint64) (data []byte, flags uint16, count int, err error) {
	if id >= b.pages {
		return nil, 0, 0, fmt.Errorf("page %d is beyond the last", id)
	}
	head := make([]byte, headerSize)
	if _, err := b.r.ReadAt(head, int64(id*b.pageSize)); err != nil {
		return nil, 0, 0, fmt.Errorf("cannot read page %d: %w", id, err)
	}
	n := binary.NativeEndian
	if found := n.Uint64(head); found != id {
		return nil, 0, 0, fmt.Errorf("page %d says it is page %d", id, found)
	}
	length := uint64(n.Uint32(head[12:])) + 1
	if length > b.pages-id {
		return nil, 0, 0, fmt.Errorf("page %d goes beyond the last", id)
	}
	for i := id; i < id+length; i++ {
		if b.seen[i] {
			return nil, 0, 0, fmt.Errorf("page %d is used twice", i)
		}
		b.seen[i] = true
	}
	data = make([]byte, length*b.pageSize)
	if _, err := b.r.ReadAt(data, int64(id*b.pageSize)); err != nil {
		return nil, 0, 0, fmt.Errorf("cannot read page %d: %w", id, err)
	}
	return data, n.Uint16(head[8:]), int(n.Uint16(head[10:])), nil
}

// tree walks the pages of a bucket. least is the key that its parent has for it.
func (b *boltFile) tree(id uint64, least []byte, depth int) error {
	data, flags, count, err := b.page(id)
	if err != nil {
		return err
	}
	switch {
	case depth > 64:
		return fmt.Errorf("page %d is too deep", id)
	case flags == leafPage:
		err = b.leaf(data, count, least)
	case flags == branchPage:
		err = b.branch(data, count, least, depth)
	default:
		err = fmt.Errorf("flags %#x are unknown", flags)
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (b *boltFile) branch(data []byte, count int, least []byte, depth int) error {
	if count == 0 {
		return errors.New("it has no children")
	}
	n := binary.NativeEndian
	for i := range count {
		at := headerSize + i*elementSize
		if at+elementSize > len(data) {
			return fmt.Errorf("%d elements do not fit", count)
		}
		key, err := slice(data, at, n.Uint32(data[at:]), n.Uint32(data[at+4:]))
		if err != nil {
			return err
		}
		if err := inOrder(least, key, i); err != nil {
			return err
		}
		least = key
		if err := b.tree(n.Uint64(data[at+8:]), key, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (b *boltFile) leaf(data []byte, count int, least []byte) error {
	n := binary.NativeEndian
	for i := range count {
		at := headerSize + i*elementSize
		if at+elementSize > len(data) {
			return fmt.Errorf("%d elements do not fit", count)
		}
		flags, pos, ksize, vsize := n.Uint32(data[at:]), n.Uint32(data[at+4:]), n.Uint32(data[at+8:]), n.Uint32(data[at+12:])
		key, err := slice(data, at, pos, ksize)
		if err != nil {
			return err
		}
		if err := inOrder(least, key, i); err != nil {
			return err
		}
		least = key
		value, err := slice(data, at, pos+ksize, vsize)
		if err != nil {
			return err
		}
		if flags&bucketLeaf == 0 {
			continue
		}
		if err := b.bucket(value); err != nil {
			return fmt.Errorf("bucket %q: %w", key, err)
		}
	}
	return nil
}

// bucket follows a bucket inside a bucket.
func (b *boltFile) bucket(value []byte) error {
	if len(value) < bucketSize {
		return errors.New("it is too short")
	}
	n := binary.NativeEndian
	if root := n.Uint64(value); root != 0 {
		return b.tree(root, nil, 1)
	}
	inline := value[bucketSize:]
	if len(inline) < headerSize || n.Uint16(inline[8:]) != leafPage {
		return errors.New("its inline page is no leaf")
	}
	return b.leaf(inline, int(n.Uint16(inline[10:])), nil)
}

// freelist checks that no free page belongs to anything.
func (b *boltFile) freelist(id uint64) error {
	data, flags, count, err := b.page(id)
	if err != nil {
		return err
	}
	if flags != freelistPage {
		return fmt.Errorf("page %d is no freelist", id)
	}
	n := binary.NativeEndian
	ids := data[headerSize:]
	if count == 0xFFFF { // too many for 16 bits: the first entry is the count
		many := n.Uint64(ids)
		if many > uint64(len(ids)) {
			return fmt.Errorf("page %d: %d free pages do not fit", id, many)
		}
		ids, count = ids[8:], int(many)
	}
	if count*8 > len(ids) {
		return fmt.Errorf("page %d: %d free pages do not fit", id, count)
	}
	for i := range count {
		free := n.Uint64(ids[i*8:])
		if free >= b.pages || b.seen[free] {
			return fmt.Errorf("page %d cannot be free", free)
		}
		b.seen[free] = true
	}
	return nil
}

// slice returns size bytes of a page, pos bytes after the element at.
func slice(data []byte, at int, pos, size uint32) ([]byte, error) {
	from := uint64(at) + uint64(pos)
	to := from + uint64(size)
	if to > uint64(len(data)) {
		return nil, errors.New("an element does not fit")
	}
	return data[from:to], nil
}

// inOrder checks that keys grow; the first of a page may be the one its parent has.
func inOrder(before, key []byte, i int) error {
	if c := bytes.Compare(before, key); c > 0 || c == 0 && i > 0 {
		return fmt.Errorf("key %q is out of order", key)
	}
	return nil
}
