package inspect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/report"
)

// Whatever a server's files hold, there is a report, and the other side reads it.
func TestGarbledFiles(t *testing.T) {
	for seed := range uint64(6) {
		s := debianA100(t)
		rnd := rand.New(rand.NewPCG(seed, 7))
		s.must(filepath.WalkDir(s.root, func(name string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			return os.WriteFile(name, garble(rnd, text), 0o600)
		}))
		_ = s.inspect()
	}
}

func garble(rnd *rand.Rand, text []byte) []byte {
	switch rnd.IntN(5) {
	case 0:
		return nil
	case 1:
		return text[:rnd.IntN(len(text)+1)]
	case 2:
		return bytes.Repeat(text, 50)
	case 3:
		for range 1 + len(text)/20 {
			if len(text) > 0 {
				text[rnd.IntN(len(text))] = byte(rnd.IntN(256))
			}
		}
		return text
	}
	out := make([]byte, rnd.IntN(5000))
	for n := range out {
		out[n] = byte(rnd.IntN(256))
	}
	return out
}

// Whatever its programs print, too.
func TestGarbledPrograms(t *testing.T) {
	for seed := range uint64(6) {
		s := rhelH100(t)
		rnd := rand.New(rand.NewPCG(seed, 9))
		answers, err := filepath.Glob(filepath.Join(s.bin, "*.txt"))
		s.must(err)
		for _, name := range answers {
			text, err := os.ReadFile(name)
			s.must(err)
			s.must(os.WriteFile(name, garble(rnd, text), 0o600))
		}
		_ = s.inspect()
	}
}

func TestHostileServer(t *testing.T) {
	s := debianA100(t)
	// A name that would write on a terminal, and one that is no UTF-8.
	s.process(1000, "/tmp/\x1b[2J\nroot ok\xff", "/system.slice/x\n.service", []string{"\x1b]0;owned\x07", strings.Repeat("A", 60_000)},
		[]string{strings.Repeat("B", 300_000)}, []string{"/dev/nvidia0"}, nil)
	s.dir("proc/1001/fd") // ended while it was looked at
	s.link("proc/1001/fd/3", "/dev/nvidia0")
	s.file("srv/repository/\x1b[31m/config.pbtxt", "x")
	for _, name := range []string{"etc/fstab", "etc/crypttab", "var/lib/dpkg/status", "proc/self/mountinfo", "etc/X11/xorg.conf"} {
		s.remove(name)
		s.must(syscall.Mkfifo(filepath.Join(s.root, name), 0o600))
	}
	s.remove("srv/models")
	s.link("srv/models", "/srv") // round and round
	r := s.inspect()
	if n := len(r.Processes); n != 4 {
		t.Errorf("%d processes", n)
	}
	for _, p := range r.Processes {
		if p.PID == 1000 && (p.Exe != `/tmp/\x1b[2J\nroot ok\xff` || len(p.Args) != 2 || len(p.Args[1]) > maxArg) {
			t.Errorf("%q, %d args", p.Exe, len(p.Args))
		}
	}
}

// A driver that does not answer does not hold the inspection up, and its program is called
// once only.
func TestHangingProgram(t *testing.T) {
	s := debianA100(t)
	s.program("nvidia-smi", "echo x >> "+s.bin+"/called\ntrap '' TERM\nwhile :; do sleep 0.05; done")
	called := func() string {
		text, err := os.ReadFile(filepath.Join(s.bin, "called"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return string(text)
	}
	var r report.Report
	limit := 300 * time.Millisecond
	for ; called() == "" && limit < time.Minute; limit *= 2 { // it is ended before it has begun on a busy machine
		var err error
		if r, err = s.inspector(func(o *Options) { o.CallLimit = limit }).Inspect(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(asText(t, r), "it did not answer within "+(limit/2).String()) {
		t.Errorf("%+v", r.Unseen)
	}
	if text := called(); text != "x\n" {
		t.Errorf("called %q", text)
	}
	if len(r.GPUs) != 3 || r.GPUs[1].Model == "" || len(r.Disks) != 1 {
		t.Errorf("the rest is not told: %+v", r.GPUs)
	}
}

func TestEndlessOutput(t *testing.T) {
	s := debianA100(t)
	s.program("nvidia-smi", "exec cat /dev/zero")
	i := s.inspector(func(o *Options) { o.CallLimit = 300 * time.Millisecond })
	r, err := i.Inspect(t.Context())
	if err != nil || len(r.Disks) != 1 {
		t.Error(err)
	}
}

// A part that hangs in the kernel is given up, and said.
func TestHangingPart(t *testing.T) {
	i := newServer(t).inspector(func(o *Options) { o.PartLimit = 100 * time.Millisecond })
	var r report.Report
	release := make(chan struct{})
	defer close(release)
	got := part(t.Context(), i, &r, "disks", func(*scene) []report.Disk { <-release; return make([]report.Disk, 1) })
	want := []report.Unseen{{What: "disks", Reason: "it did not answer within 100ms"}}
	if diff := cmp.Diff(want, r.Unseen); diff != "" || got != nil {
		t.Errorf("%v\n%s", got, diff)
	}
}

// A tree of a million files is not walked to its end, and what was not seen is said.
func TestBigTree(t *testing.T) {
	s := newServer(t)
	s.files(anyServer)
	for n := range 20 {
		for m := range 20 {
			s.dir(fmt.Sprintf("srv/data/%d/%d", n, m))
			for k := range 5 {
				s.must(os.Symlink("/etc/passwd", filepath.Join(s.root, fmt.Sprintf("srv/data/%d/%d/%d", n, m, k))))
			}
		}
	}
	i := s.inspector(nil)
	sc := &scene{Inspector: i, ctx: t.Context()}
	w := sc.walker(1500)
	seen := 0
	w.walk("srv", 9, func(entry) { seen++ })
	if !w.ended || seen > 1500 || seen < 1200 {
		t.Errorf("%d seen, ended %v", seen, w.ended)
	}
}

func TestPartitionTables(t *testing.T) {
	const block = 512
	boot := func() []byte {
		b := make([]byte, 40*block)
		b[510], b[511] = 0x55, 0xaa
		return b
	}
	mbr := boot()
	binary.LittleEndian.PutUint32(mbr[440:], 0xdeadbeef)
	mbr[446], mbr[446+4], mbr[446+16+4] = 0x80, 0x83, 0x8e
	gpt := boot()
	gpt[446+4] = 0xee
	copy(gpt[block:], "EFI PART")
	binary.LittleEndian.PutUint64(gpt[block+72:], 2)
	binary.LittleEndian.PutUint32(gpt[block+80:], 128)
	binary.LittleEndian.PutUint32(gpt[block+84:], 128)
	e := gpt[2*block+128:] // the second
	copy(e, []byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b})
	copy(e[56:], []byte{'E', 0, 'F', 0, 'I', 0})
	wild := bytes.Clone(gpt)
	binary.LittleEndian.PutUint64(wild[block+72:], 1<<62)
	filesystem := boot()
	copy(filesystem[446:], "not a partition table, but code")
	for name, test := range map[string]struct {
		head  []byte
		table string
		n     int
		want  report.Partition
	}{
		"mbr":         {mbr, "mbr", 2, report.Partition{Type: "0x8e", UUID: "deadbeef-02"}},
		"gpt":         {gpt, "gpt", 2, report.Partition{Type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", UUID: "00000000-0000-0000-0000-000000000000", Label: "EFI"}},
		"gpt, wild":   {wild, "gpt", 2, report.Partition{}},
		"a boot code": {filesystem, "", 2, report.Partition{}},
		"nothing":     {make([]byte, 40*block), "", 2, report.Partition{}},
		"short":       {mbr[:100], "", 2, report.Partition{}},
	} {
		table, parts := Table(test.head, block)
		if diff := cmp.Diff(test.want, parts[test.n]); table != test.table || diff != "" {
			t.Errorf("%s: %q\n%s", name, table, diff)
		}
	}
}

func TestLUKSTokens(t *testing.T) {
	head := make([]byte, 16<<10)
	copy(head, "LUKS\xba\xbe\x00\x02")
	text, err := json.Marshal(map[string]any{"tokens": map[string]any{"0": map[string]any{"type": "systemd-tpm2", "tpm2-blob": "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	copy(head[4096:], text)
	if diff := cmp.Diff([]string{"systemd-tpm2"}, tokens(head)); diff != "" {
		t.Error(diff)
	}
	for _, none := range [][]byte{nil, head[:4096], make([]byte, 16<<10), bytes.Replace(head, []byte(`"tokens"`), []byte(`"tokens`), 1)} {
		if got := tokens(none); got != nil {
			t.Errorf("%q", got)
		}
	}
}
