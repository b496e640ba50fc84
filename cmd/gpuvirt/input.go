package main

import (
	"fmt"
	"io"
	"os"
)

// readFrom reads a file, or the standard input for "-".
func readFrom[T any](c *cli, file string, read func(io.Reader) (T, error)) (T, error) {
	in := c.in
	if file != "-" {
		f, err := os.Open(file) //nolint:gosec // whoever runs this names the file
		if err != nil {
			var none T
			return none, err
		}
		defer f.Close()
		in = f
	}
	out, err := read(in)
	if err != nil {
		err = fmt.Errorf("cannot read %s: %w", file, err)
	}
	return out, err
}
