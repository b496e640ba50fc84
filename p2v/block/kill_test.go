package block

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// childEnv makes the test binary a process that pulls: folder, socket, size.
const childEnv = "GPUVIRT_BLOCK_PULL"

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		if err := pullAsChild(strings.Split(args, ",")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func pullAsChild(args []string) error {
	var size int64
	if _, err := fmt.Sscan(args[2], &size); err != nil {
		return err
	}
	m, err := OpenMirror(Spec{
		Path: filepath.Join(args[0], "0.raw"), Map: filepath.Join(args[0], "0.map"),
		ID: "wwn-1", Size: size, ChunkSize: MinChunkSize,
	})
	if err != nil {
		return err
	}
	var limit Limit
	limit.Set(size) // a second for all of it
	p, err := Pull(context.Background(), m, "sda", Options{
		Dial: dialUnix(args[1]), Limit: &limit, Connections: 2, commitEvery: 20 * time.Millisecond,
	})
	if err != nil {
		return err
	}
	return errors.Join(json.NewEncoder(os.Stdout).Encode(p), m.Close())
}

// A pulling process is killed at ten points. The next one goes on from what was
// durable, and not a chunk of that is sent again.
func TestKilledProcessGoesOn(t *testing.T) {
	const size, chunks, kills, talk = 256 * MinChunkSize, 256, 10, 32 << 10
	disk := randomDisk(t, size, 5)
	s := serve(t, disk)
	// However late a kill comes, no process has got so much by then that it could end: it is
	// let have two connections, each of a quarter of what is missing.
	var missing, let atomic.Int64
	c := carry(t, s.socket, func() int64 {
		if let.Add(-1) < 0 {
			return 0
		}
		return missing.Load() / 4
	})
	dir := t.TempDir()
	held := int64(0)
	for killed := range kills {
		missing.Store((chunks - held) * MinChunkSize)
		let.Store(2)
		before, point := c.bytes.Load(), rand.Int64N(missing.Load()/4)
		child := startChild(t, dir, c.socket, size)
		if done := child.after(t, func() bool { return c.bytes.Load()-before > point }); done != nil {
			t.Fatalf("it ended after %d kills: %+v", killed, done)
		}
		if came := c.bytes.Load() - before; came > (chunks-held)*(MinChunkSize+headSize)+talk {
			t.Errorf("%d bytes came for %d missing chunks", came, chunks-held)
		}
		now := honestHeld(t, dir, disk)
		if now < held {
			t.Errorf("%d chunks were held, after a kill %d are", held, now)
		}
		held = now
	}
	t.Logf("%d chunks of %d are held after %d kills", held, chunks, kills)
	let.Store(1 << 30)
	missing.Store(1 << 60)
	child := startChild(t, dir, c.socket, size)
	if p := child.after(t, func() bool { return false }); p == nil || p.Changed != chunks-held {
		t.Errorf("%d chunks were held, and the last pass was %+v", held, p)
	}
	sameFiles(t, disk, filepath.Join(dir, "0.raw"))
}

type child struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

func startChild(t *testing.T, dir, socket string, size int64) *child {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s,%s,%d", childEnv, dir, socket, size))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &child{cmd: cmd, out: bufio.NewReader(out)}
}

// after kills the child when it is time, and returns what it did if it ended
// before that.
func (c *child) after(t *testing.T, kill func() bool) *Pass {
	t.Helper()
	ended := make(chan []byte, 1)
	go func() {
		line, _ := c.out.ReadBytes('\n')
		ended <- line
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var line []byte
	for running := true; running; {
		select {
		case line = <-ended:
			running = false
		case <-tick.C:
			if kill() {
				if err := c.cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				line = <-ended
				running = false
			}
		}
	}
	err := c.cmd.Wait()
	if len(line) == 0 {
		if status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
			t.Fatal("the child failed:", err)
		}
		return nil
	}
	p := new(Pass)
	if err := json.Unmarshal(line, p); err != nil {
		t.Fatal(err)
	}
	return p
}

// honestHeld counts the records of a map, each of which must be true.
func honestHeld(t *testing.T, dir, disk string) (held int64) {
	t.Helper()
	m := mirrorOf(t, dir, disk, MinChunkSize)
	defer m.Close()
	records, err := m.table.read(0, int(m.Chunks()))
	if err != nil {
		t.Fatal(err)
	}
	b := newBuffer(MinChunkSize)
	for i, h := range records {
		if h == (Hash{}) {
			continue
		}
		held++
		data, err := m.reader.read(b, m.offset(int64(i)), m.length(int64(i)))
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(data) != h {
			t.Fatalf("the map lies about chunk %d", i)
		}
	}
	return held
}
