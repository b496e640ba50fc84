package convert

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// What is read of a qcow2 file's header, in QEMU's docs/interop/qcow2.txt: numbers are
// big-endian.
const (
	qcow2Magic       = 0x514649fb // "QFI\xfb"
	qcow2Header      = 104        // bytes, of version 3
	qcow2ExtFormat   = 0xe2792aca // extension: the format of the backing file
	qcow2External    = 1 << 2     // incompatible feature: the data lie in another file
	qcow2MaxName     = 1023
	qcow2MaxHeadRoom = 64 << 10 // bytes that are looked through for extensions
)

var errNoOverlay = errors.New("it is no overlay any more")

// checkHeader tells whether a qcow2 file has just the given raw file below it. It is
// looked at here, without QEMU: whoever took over a program that wrote to the file could
// have named any file of the host in it, which the VM would then show.
func checkHeader(path, mirror string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0) //nolint:gosec // no link is followed, and no more than the header read
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || !st.Mode().IsRegular() || sys.Nlink != 1 {
		return fmt.Errorf("%w: it is no file of its own", errNoOverlay)
	}
	head := make([]byte, min(st.Size(), qcow2MaxHeadRoom))
	if _, err := io.ReadFull(f, head); err != nil {
		return err
	}
	if len(head) < qcow2Header || binary.BigEndian.Uint32(head) != qcow2Magic || binary.BigEndian.Uint32(head[4:]) != 3 {
		return fmt.Errorf("%w: its header is not of qcow2, version 3", errNoOverlay)
	}
	if binary.BigEndian.Uint64(head[72:])&qcow2External != 0 {
		return fmt.Errorf("%w: its data lie in another file", errNoOverlay)
	}
	at, size := binary.BigEndian.Uint64(head[8:]), uint64(binary.BigEndian.Uint32(head[16:]))
	if at > uint64(len(head)) || size > qcow2MaxName || at+size > uint64(len(head)) {
		return fmt.Errorf("%w: its header names no file below it", errNoOverlay)
	}
	if below := string(head[at : at+size]); below != mirror {
		return fmt.Errorf("%w: the file below it is %q", errNoOverlay, tidy(below))
	}
	if format := backingFormat(head); format != "raw" {
		return fmt.Errorf("%w: the file below it is taken for %q", errNoOverlay, tidy(format))
	}
	return nil
}

// backingFormat is the format that the header says the backing file has; empty: QEMU would
// have to guess.
func backingFormat(head []byte) string {
	next := uint64(binary.BigEndian.Uint32(head[100:]))
	for next+8 <= uint64(len(head)) {
		kind, size := binary.BigEndian.Uint32(head[next:]), uint64(binary.BigEndian.Uint32(head[next+4:]))
		data := next + 8
		if kind == 0 || data+size > uint64(len(head)) {
			return ""
		}
		if kind == qcow2ExtFormat {
			return string(head[data : data+size])
		}
		next = data + (size+7)/8*8
	}
	return ""
}
