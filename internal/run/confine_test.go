package run

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEnvironmentAndFolder(t *testing.T) {
	dir := t.TempDir()
	p := Program{Env: []string{"TMPDIR=/one", "TMPDIR=" + dir}, Dir: dir}
	out, err := p.Run(t.Context(), "sh", "-c", `echo "$TMPDIR"; pwd; echo "$LC_ALL"`)
	if want := dir + "\n" + dir + "\nC"; out != want || err != nil {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
	// What one program gets, another does not.
	out, err = Program{}.Run(t.Context(), "sh", "-c", `echo "[$TMPDIR]"`)
	if out != "[]" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

// What the kernel says of a confined program.
func TestConfined(t *testing.T) {
	c := Confine{FileBytes: 1 << 20, OpenFiles: 100, CPU: time.Minute, Idle: true}
	out, err := Program{Confine: &c}.Run(t.Context(), "sh", "-c",
		`grep NoNewPrivs: /proc/self/status; ulimit -c; ulimit -f; ulimit -n; ulimit -t; nice; ionice`)
	want := "NoNewPrivs:\t1\n0\n2048\n100\n60\n19\nidle"
	if d := cmp.Diff(want, out); d != "" || err != nil {
		t.Error(err, d)
	}
	out, err = Program{Confine: &Confine{}}.Run(t.Context(), "sh", "-c", `grep NoNewPrivs: /proc/self/status; ulimit -c`)
	if want := "NoNewPrivs:\t1\n0"; out != want || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

func TestConfinedAsAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root becomes another")
	}
	c := Confine{UID: 65533, GID: 65532, Groups: []uint32{7, 9}, Processes: 50}
	out, err := Program{Confine: &c}.Run(t.Context(), "sh", "-c",
		`id -u; id -g; id -G; grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d 'a-zA-Z:\t\n0'; prlimit --nproc --raw --noheadings -o SOFT`)
	// The line of capabilities is empty where all of them are zeros.
	if want := "65533\n65532\n65532 7 9\n50"; out != want || err != nil {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
	c.Groups = nil
	if out, err = (Program{Confine: &c}).Run(t.Context(), "id", "-G"); out != "65532" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

// A program that fills the disk is stopped.
func TestConfinedFileSize(t *testing.T) {
	file := filepath.Join(t.TempDir(), "big")
	p := Program{Confine: &Confine{FileBytes: 1 << 16}}
	_, err := p.Run(t.Context(), "dd", "if=/dev/zero", "of="+file, "bs=1M", "count=10")
	if _, ok := errors.AsType[*ExitError](err); !ok {
		t.Error(err)
	}
	if st, err := os.Stat(file); err != nil || st.Size() > 1<<16 {
		t.Error(st, err)
	}
}

func TestConfinedThatIsNotThere(t *testing.T) {
	_, err := Program{Confine: &Confine{}}.Run(t.Context(), filepath.Join(t.TempDir(), "none"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	_, err = Program{Confine: &Confine{}}.Run(t.Context(), "sh", "-c", "echo broken; exit 3")
	if want := `"sh": exit status 3: broken`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

const dying = "GPUVIRT_TEST_DIES_WITH_US"

// A confined program does not outlive a process that was killed.
func TestConfinedDiesWithUs(t *testing.T) {
	if os.Getenv(dying) != "" {
		_, err := Program{Confine: &Confine{}}.Run(t.Context(), "sh", "-c", `echo $$ >"$0"; exec cat "$0.fifo"`, os.Getenv(dying))
		t.Fatal(err) // it is killed before it gets here
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	if err := syscall.Mkfifo(pidFile, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(pidFile+".fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConfinedDiesWithUs$")
	cmd.Env = append(os.Environ(), dying+"="+pidFile)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(pidFile) // waits for it
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for deadline := time.Now().Add(10 * time.Second); !ended(pid); {
		if time.Now().After(deadline) {
			t.Fatalf("process %d goes on", pid)
		}
		<-time.After(10 * time.Millisecond)
	}
}
