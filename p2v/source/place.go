package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"gpuvirt/gpu"
)

// Programs are put into a folder of the server's memory: one on a tmpfs, on which programs
// may run. The disks, which are to be copied as they are, stay as they are. $1 is the name of
// our folder and $2 the program's size. Two things are not obvious: our folder is made anew,
// so that nobody else's is used who was there first; and it is one line without a quote, as
// whatever shell the user has there reads it.
const placeScript = `umask 077; why=; ` +
	`for d in /dev/shm "/run/user/$(id -u)" /run /tmp; do ` +
	`test -d "$d" && test -w "$d" || continue; ` +
	`test "$(stat -f -c %T "$d" 2>/dev/null)" = tmpfs || { why="$why $d is no tmpfs,"; continue; }; ` +
	`f="$d/$1"; if test -d "$f" && test -O "$f" && ! test -L "$f"; then rm -f "$f/gpuvirt" "$f/try"; rmdir "$f"; fi; ` +
	`mkdir "$f" 2>/dev/null || { why="$why $f is in the way,"; continue; }; ` +
	`echo "#!/bin/sh" >"$f/try" && chmod 700 "$f/try" && "$f/try" 2>/dev/null; ran=$?; rm -f "$f/try"; ` +
	`test "$ran" = 0 || { rmdir "$f"; why="$why $d does not let programs run,"; continue; }; ` +
	`cat >"$f/gpuvirt" && test "$(wc -c <"$f/gpuvirt")" -eq "$2" && chmod 700 "$f/gpuvirt" && { echo "$f"; exit 0; }; ` +
	`rm -f "$f/gpuvirt"; rmdir "$f"; why="$why $d has no room for $2 bytes,"; break; ` +
	`done; echo "${why%,}" >&2; exit 75`

const removeScript = `for d in /dev/shm "/run/user/$(id -u)" /run /tmp; do ` +
	`f="$d/$1"; test -d "$f" && test -O "$f" && ! test -L "$f" || continue; ` +
	`rm -f "$f/gpuvirt" "$f/try"; rmdir "$f" || exit 75; done`

// placed is what a folder of ours may be called by a server.
var placed = regexp.MustCompile(`^/(dev/shm|run|run/user/[0-9]+|tmp)/[.]gpuvirt-[A-Za-z0-9]+$`)

// Place puts a program into the server's memory and returns its folder there; the program is
// "gpuvirt" in it. The id, letters and digits, tells whose it is: what an earlier Place with
// it left is replaced. Where there is no such place the error is gpu.CodeUnavailable's kind
// no more: it does not pass by itself.
func (c *Conn) Place(ctx context.Context, id string, program io.Reader, size int64) (string, error) {
	if !ids.MatchString(id) {
		return "", gpu.Errorf(gpu.CodeInternal, "cannot bring the inspector: %q is no id", id)
	}
	if err := c.sameMachine(ctx); err != nil {
		return "", err
	}
	var out bounded
	err := c.script(ctx, program, &out, "cat", placeScript, ".gpuvirt-"+id, strconv.FormatInt(size, 10))
	exit, exited := errors.AsType[*ExitError](err)
	switch {
	case exited && exit.Code == 75:
		return "", gpu.Errorf(gpu.CodeConflict, "cannot bring the inspector to %s: no folder of its memory takes it:%s", name(c.source), " "+strings.TrimSpace(exit.Output)).
			WithHint("run \"gpuvirt p2v inspect\" there by hand, and carry the file here")
	case err != nil:
		return "", err
	}
	folder := strings.TrimSpace(out.String())
	if !placed.MatchString(folder) || !strings.HasSuffix(folder, "/.gpuvirt-"+id) {
		return "", gpu.Errorf(gpu.CodeConflict, "cannot bring the inspector to %s: the server says that it put it into %q", name(c.source), folder).
			WithHint("what its shell prints when it is not asked anything must go away: see ~%s/.bashrc there", c.source.User)
	}
	return folder, nil
}

// sameMachine refuses a server that our programs do not run on.
func (c *Conn) sameMachine(ctx context.Context) error {
	var out bounded
	if err := c.Run(ctx, nil, &out, "uname", "-s", "-m"); err != nil {
		return err
	}
	want := map[string]string{"amd64": "Linux x86_64", "arm64": "Linux aarch64"}[runtime.GOARCH]
	if got := strings.TrimSpace(out.String()); got != want {
		return gpu.Errorf(gpu.CodeConflict, "cannot bring the inspector to %s: it is %q, and this host's is for %q", name(c.source), got, want).
			WithHint("run the \"gpuvirt p2v inspect\" of that machine's kind there, and carry the file here")
	}
	return nil
}

// Unplace removes what a Place with this id put there, whole or half. It is fine where
// nothing is there any more.
func (c *Conn) Unplace(ctx context.Context, id string) error {
	if !ids.MatchString(id) {
		return gpu.Errorf(gpu.CodeInternal, "cannot remove the inspector: %q is no id", id)
	}
	return c.script(ctx, nil, io.Discard, "rm", removeScript, ".gpuvirt-"+id)
}

// ids are what tells our folders apart.
var ids = regexp.MustCompile(`^[A-Za-z0-9]+$`)

// script runs a script of ours, in sh whatever the user's shell is.
func (c *Conn) script(ctx context.Context, stdin io.Reader, stdout io.Writer, program, text string, args ...string) error {
	if strings.ContainsAny(text, "'\n") {
		return gpu.Errorf(gpu.CodeInternal, "cannot run a script on the server: it has a quote or a line end in it")
	}
	command := "sh -c '" + text + "' sh"
	for _, a := range args {
		if !word.MatchString(a) {
			return gpu.Errorf(gpu.CodeInternal, "cannot run a script on the server: %q could mean something else to its shell", a)
		}
		command += " " + a
	}
	return c.run(ctx, stdin, stdout, program, command)
}

// bounded takes the first bytes of what a server says.
type bounded struct{ bytes.Buffer }

const maxBounded = 4 << 10

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxBounded {
		return 0, fmt.Errorf("the server says more than %d bytes", maxBounded)
	}
	return b.Buffer.Write(p)
}
