package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"gpuvirt/internal/run"
)

// What the ends of Serve say at most, bytes. JSON takes six for one that it escapes.
const (
	maxRequest = 64 << 10
	maxReply   = 2*6*MaxOutput + 4<<10
)

type remoteRequest struct {
	Command []string `json:"command"`
}

type remoteReply struct {
	Exit   int    `json:"exit"`
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
	Cut    bool   `json:"cut,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Serve runs the one program that is asked for on in, without a shell, and says on out what
// came of it. The program ends with in, or with ctx. It is how a Remote runs programs on a
// source.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := json.NewDecoder(io.LimitReader(in, maxRequest))
	var q remoteRequest
	if err := lines.Decode(&q); err != nil || len(q.Command) == 0 {
		return fmt.Errorf("cannot understand what is to be run: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // nobody says more: it has gone
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	stdout, err := run.Program{Limit: MaxOutput, Apart: true}.Run(ctx, q.Command[0], q.Command[1:]...)
	r := remoteReply{Stdout: stdout, Cut: len(stdout) >= MaxOutput}
	if exit, ended := errors.AsType[*run.ExitError](err); ended {
		r.Exit, r.Stderr = exit.Code, exit.Output
	} else if err != nil {
		r.Error = err.Error()
	}
	return json.NewEncoder(out).Encode(r)
}

// Remote runs programs where Serve is spoken with, over a connection for each.
type Remote struct {
	Open func(ctx context.Context) (io.ReadWriteCloser, error)
}

// Run runs a program there.
func (r Remote) Run(ctx context.Context, argv []string) (Outcome, error) {
	text, err := json.Marshal(remoteRequest{argv})
	if err != nil {
		return Outcome{}, err
	}
	if len(text) > maxRequest-1 {
		return Outcome{}, fmt.Errorf("cannot run %q on the source: it is too long", argv[0])
	}
	conn, err := r.Open(ctx)
	if err != nil {
		return Outcome{}, err
	}
	defer conn.Close() //nolint:errcheck // what was to be heard has been
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var reply remoteReply
	_, err = conn.Write(append(text, '\n'))
	if err == nil {
		err = json.NewDecoder(io.LimitReader(conn, maxReply)).Decode(&reply)
	}
	switch {
	case ctx.Err() != nil:
		return Outcome{}, context.Cause(ctx)
	case err != nil:
		return Outcome{}, fmt.Errorf("cannot run %q on the source: %w", argv[0], err)
	case reply.Error != "":
		return Outcome{}, fmt.Errorf("cannot run %q on the source: %s", argv[0], oneLine(reply.Error, 300))
	}
	return Outcome{
		Exit: reply.Exit, Stdout: reply.Stdout[:min(len(reply.Stdout), MaxOutput)], Stderr: reply.Stderr[:min(len(reply.Stderr), MaxOutput)], Cut: reply.Cut,
	}, nil
}
