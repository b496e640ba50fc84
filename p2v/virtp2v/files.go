package virtp2v

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// A folder has what virt-p2v has copied there, as far as it is wanted.
type folder struct {
	conn *conn // which has made it

	mu    sync.Mutex
	files map[string][]byte
}

// mkdir makes a folder that lasts as long as the connection.
func (l *Listener) mkdir(c *conn, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.folders[name] != nil || len(c.folders) >= maxFolders || len(l.folders) >= maxAllFolders {
		return fmt.Errorf("mkdir: cannot make %s", name)
	}
	f := &folder{conn: c, files: map[string][]byte{}}
	l.folders[name], c.folders[name] = f, f
	return nil
}

// folder is one that the same machine has made; nil: there is none.
func (l *Listener) folder(c *conn, name string) *folder {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.folders[name]; f != nil && f.conn.from == c.from {
		return f
	}
	return nil
}

// take is what is in a folder of this connection; nil: there is none, or not what is needed.
func (l *Listener) take(c *conn, name string) map[string][]byte {
	f := l.folder(c, name)
	if f == nil || f.conn != c {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	files := f.files
	f.files = map[string][]byte{} // what comes now comes too late
	if files[filePhysical] == nil {
		return nil
	}
	return files
}

// write keeps what is wanted of a file, from its beginning on. physical.xml is wanted as a whole.
func (f *folder) write(name string, at uint64, data []byte) error {
	most, is := wanted()[name]
	if !is {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	have := f.files[name]
	if at > uint64(len(have)) && len(have) < most {
		return errors.New("it has a hole")
	}
	room := most - len(have)
	if at != uint64(len(have)) || len(data) > room {
		if name == filePhysical {
			return errors.New("it is too large, or comes in disorder")
		}
		if at != uint64(len(have)) {
			return nil
		}
	}
	f.files[name] = append(have, data[:min(len(data), room)]...)
	return nil
}

func (f *folder) create(name string) {
	if _, is := wanted()[name]; !is {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[name] = []byte{}
}

const maxFile = 64 << 20 // bytes that a file may have, also one that is not wanted

// scp takes files as "scp -t" does: what older clients of ssh copy with.
func (c *conn) scp(ch ssh.Channel, name string) error {
	in := bufio.NewReaderSize(ch, maxLine)
	refuse := func(format string, args ...any) error {
		err := fmt.Errorf("scp: "+format, args...)
		_, _ = fmt.Fprintf(ch, "\x02%v\n", err)
		return err
	}
	f := c.l.folder(c, name)
	if f == nil {
		return refuse("%s is not there", name)
	}
	for {
		if _, err := ch.Write([]byte{0}); err != nil {
			return err
		}
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		text := strings.TrimSuffix(string(line), "\n")
		if strings.HasPrefix(text, "T") {
			continue // its times
		}
		parts := strings.SplitN(text, " ", 3) // C0644 SIZE NAME
		if len(parts) != 3 || !strings.HasPrefix(parts[0], "C") || path.Base(parts[2]) != parts[2] {
			return refuse("only files are taken")
		}
		size, err := strconv.ParseUint(parts[1], 10, 31)
		if err != nil || size > maxFile {
			return refuse("%s is too large", parts[2])
		}
		if _, err := ch.Write([]byte{0}); err != nil {
			return err
		}
		if err := f.read(in, parts[2], size); err != nil {
			return refuse("%s: %v", parts[2], err)
		}
		if b, err := in.ReadByte(); err != nil || b != 0 {
			return refuse("%s has not come as a whole", parts[2])
		}
	}
}

// read takes a file of a size.
func (f *folder) read(in io.Reader, name string, size uint64) error {
	f.create(name)
	block := make([]byte, 32<<10)
	for at := uint64(0); at < size; {
		n, err := io.ReadFull(in, block[:min(uint64(len(block)), size-at)])
		if err != nil {
			return err
		}
		if err := f.write(name, at, block[:n]); err != nil {
			return err
		}
		at += uint64(n) //nolint:gosec // it is a length
	}
	return nil
}
