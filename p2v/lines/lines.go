// Package lines carries questions to a program on a source, and its answers back: each is a
// value of JSON in a line of its own. The program is not trusted: lines are bounded, and hold
// one value without fields that nobody knows.
package lines

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
)

// A BrokenError is what is wrong with the connection or with what came by it.
type BrokenError struct{ Err error }

func (e *BrokenError) Error() string { return e.Err.Error() }

func (e *BrokenError) Unwrap() error { return e.Err }

// A Conn is a connection to a program that answers in lines. After an error it is closed or of no
// use any more; the error is a *BrokenError, or the cause of the context's end. One at a time may
// use it; Close may be called at any time.
type Conn struct {
	conn  io.ReadWriteCloser
	lines *bufio.Scanner
}

// New speaks through a connection, and hears lines of a length in bytes at most.
func New(conn io.ReadWriteCloser, most int) *Conn {
	c := &Conn{conn: conn, lines: bufio.NewScanner(conn)}
	c.lines.Buffer(make([]byte, 0, min(most, 4096)), most)
	return c
}

// Ask says a question and hears the answer. When the context ends before, the connection is closed.
func (c *Conn) Ask(ctx context.Context, question, answer any) error {
	text, err := json.Marshal(question)
	if err != nil {
		return &BrokenError{err}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	_, err = c.conn.Write(append(text, '\n'))
	if stop(); err != nil {
		return because(ctx, err)
	}
	return c.Hear(ctx, answer)
}

// Hear hears a line. When the context ends before, the connection is closed.
func (c *Conn) Hear(ctx context.Context, v any) error {
	defer context.AfterFunc(ctx, func() { _ = c.conn.Close() })()
	if !c.lines.Scan() {
		err := c.lines.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return because(ctx, err)
	}
	if err := Decode(c.lines.Bytes(), v); err != nil {
		return &BrokenError{err}
	}
	return nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.conn.Close() }

func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &BrokenError{err}
}

// Decode decodes the one value of a line, all of whose fields are known.
func Decode(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one value in a line")
	}
	return nil
}
