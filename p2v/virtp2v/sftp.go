package virtp2v

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"

	"golang.org/x/crypto/ssh"
)

// The messages of SFTP, version 3 (draft-ietf-secsh-filexfer-02), that copying files into a folder
// takes.
const (
	sftpInit     = 1
	sftpVersion  = 2
	sftpOpen     = 3
	sftpClose    = 4
	sftpWrite    = 6
	sftpLstat    = 7
	sftpSetstat  = 9
	sftpFsetstat = 10
	sftpRealpath = 16
	sftpStat     = 17
	sftpStatus   = 101
	sftpHandle   = 102
	sftpName     = 104
	sftpAttrs    = 105

	sftpOK          = 0
	sftpNoSuchFile  = 2
	sftpFailure     = 4
	sftpUnsupported = 8

	sftpPermissions = 4 // flag of attributes
	folderMode      = 0o40755

	maxPacket  = 256 << 10 // OpenSSH sends 32 KiB at once
	maxHandles = 16
)

// A transfer is one client that copies files.
type transfer struct {
	c       *conn
	handles map[string]upload
	made    int
}

type upload struct {
	folder *folder
	name   string
}

// sftp takes files as the subsystem does: what newer clients of ssh copy with.
func (c *conn) sftp(ch ssh.Channel) error {
	t := &transfer{c: c, handles: map[string]upload{}}
	head := make([]byte, 5)
	for {
		if _, err := io.ReadFull(ch, head); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		size := binary.BigEndian.Uint32(head)
		if size < 1 || size > maxPacket {
			return fmt.Errorf("a message of %d bytes is none", size)
		}
		body := make([]byte, size-1)
		if _, err := io.ReadFull(ch, body); err != nil {
			return err
		}
		answer, err := t.answer(head[4], body)
		if err != nil {
			return err
		}
		if _, err := ch.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...)); err != nil { //nolint:gosec // it is short
			return err
		}
	}
}

// answer is to one message. What x/crypto reads of ssh's own messages are the same strings and
// numbers.
func (t *transfer) answer(kind byte, body []byte) ([]byte, error) {
	if kind == sftpInit {
		return append([]byte{sftpVersion}, 0, 0, 0, 3), nil
	}
	var m struct {
		ID   uint32
		Path string // or a handle
		Rest []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	status := func(code uint32) ([]byte, error) {
		return message(sftpStatus, m.ID, code, map[uint32]string{sftpOK: "ok", sftpNoSuchFile: "it is not there", sftpFailure: "it is refused", sftpUnsupported: "it is not known here"}[code], ""), nil
	}
	switch kind {
	case sftpRealpath:
		return append(message(sftpName, m.ID, uint32(1), m.Path, m.Path), 0, 0, 0, 0), nil
	case sftpStat, sftpLstat:
		switch {
		case t.c.l.folder(t.c, m.Path) != nil:
			return message(sftpAttrs, m.ID, uint32(sftpPermissions), uint32(folderMode)), nil
		case m.Path == ".":
			return message(sftpAttrs, m.ID, uint32(sftpPermissions), uint32(folderMode)), nil
		}
		return status(sftpNoSuchFile)
	case sftpOpen:
		f := t.c.l.folder(t.c, path.Dir(m.Path))
		if f == nil || len(t.handles) >= maxHandles {
			return status(sftpFailure)
		}
		t.made++
		handle := strconv.Itoa(t.made)
		t.handles[handle] = upload{f, path.Base(m.Path)}
		f.create(path.Base(m.Path))
		return message(sftpHandle, m.ID, handle), nil
	case sftpWrite:
		var w struct {
			Offset uint64
			Data   string
		}
		u, open := t.handles[m.Path]
		if !open || ssh.Unmarshal(m.Rest, &w) != nil || w.Offset > maxFile || u.folder.write(u.name, w.Offset, []byte(w.Data)) != nil {
			return status(sftpFailure)
		}
		return status(sftpOK)
	case sftpClose:
		delete(t.handles, m.Path)
		return status(sftpOK)
	case sftpSetstat, sftpFsetstat:
		return status(sftpOK) // its mode and times
	}
	return status(sftpUnsupported)
}

// message is one with numbers and strings.
func message(kind byte, fields ...any) []byte {
	out := []byte{kind}
	for _, f := range fields {
		switch v := f.(type) {
		case uint32:
			out = binary.BigEndian.AppendUint32(out, v)
		case string:
			out = binary.BigEndian.AppendUint32(out, uint32(len(v))) //nolint:gosec // it is short
			out = append(out, v...)
		}
	}
	return out
}
