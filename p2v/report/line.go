package report

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
)

// A Line is one line of an inspection that is sent while it is made: JSON without line
// breaks. The first has the report without its usage; then come parts of the usage, each of
// what was seen since the one before; then the end. Exactly one field is set.
type Line struct {
	Report *Report `json:"report,omitempty"`
	Usage  *Usage  `json:"usage,omitempty"`
	End    bool    `json:"end,omitempty"`
}

// maxLines is how many lines an inspection may have: a part a minute for two months.
const maxLines = 100_000

// Write writes the line.
func (l Line) Write(w io.Writer) error {
	data, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("cannot write the inspection: %w", err)
	}
	if len(data) > MaxBytes {
		return fmt.Errorf("cannot write the inspection: it would be larger than %d bytes", MaxBytes)
	}
	if _, err = w.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("cannot write the inspection: %w", err)
	}
	return nil
}

// ReadLines reads an inspection that is sent line by line and gives each line to a function,
// as soon as it is there, until the end or until that fails. Each is checked as Read does.
// Where the sender ends without an end the error wraps io.ErrUnexpectedEOF: what was given
// by then is good.
func ReadLines(r io.Reader, each func(Line) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for n := range maxLines {
		data, err := line(in)
		if err != nil {
			return fmt.Errorf("cannot read line %d of the inspection: %w", n+1, err)
		}
		l, err := parse(data, n == 0)
		if err != nil {
			return fmt.Errorf("cannot read line %d of the inspection: %w", n+1, err)
		}
		if err := each(l); err != nil || l.End {
			return err
		}
	}
	return fmt.Errorf("cannot read the inspection: it has more than %d lines", maxLines)
}

// line reads one line, of bounded size.
func line(in *bufio.Reader) ([]byte, error) {
	var out []byte
	for {
		piece, err := in.ReadSlice('\n')
		if len(out)+len(piece) > MaxBytes {
			return nil, fmt.Errorf("it is larger than %d bytes", MaxBytes)
		}
		out = append(out, piece...)
		switch {
		case err == nil:
			return out, nil
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

func parse(data []byte, first bool) (Line, error) {
	var raw struct {
		Report json.RawMessage `json:"report"`
		Usage  json.RawMessage `json:"usage"`
		End    bool            `json:"end"`
	}
	if err := depth(data); err != nil {
		return Line{}, err
	}
	if err := strict(data, &raw); err != nil {
		return Line{}, err
	}
	set := 0
	for _, is := range []bool{raw.Report != nil, raw.Usage != nil, raw.End} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return Line{}, errors.New("it has to have one of report, usage and end")
	case first != (raw.Report != nil):
		return Line{}, errors.New("the report has to come first, and once")
	case raw.End:
		return Line{End: true}, nil
	case raw.Report != nil:
		r, err := Read(bytes.NewReader(raw.Report))
		return Line{Report: &r}, err
	}
	var u Usage
	if err := strict(raw.Usage, &u); err != nil {
		return Line{}, err
	}
	return Line{Usage: &u}, check(reflect.ValueOf(u), "usage")
}

func strict(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows it")
	}
	return nil
}
