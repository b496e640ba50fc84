package report

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestLines(t *testing.T) {
	var b bytes.Buffer
	for _, l := range []Line{
		{Report: &Report{Version: Version, Hostname: "gpu7"}},
		{Usage: &Usage{Samples: 3}},
		{Usage: &Usage{Samples: 4}},
		{End: true},
	} {
		if err := l.Write(&b); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("what follows the end is not looked at\n")
	host, samples, ended := "", 0, false
	err := ReadLines(iotest.OneByteReader(&b), func(l Line) error {
		switch {
		case l.Report != nil:
			host = l.Report.Hostname
		case l.Usage != nil:
			samples += l.Usage.Samples
		default:
			ended = l.End
		}
		return nil
	})
	if err != nil || host != "gpu7" || samples != 7 || !ended {
		t.Errorf("%q, %d samples, ended %v, %v", host, samples, ended, err)
	}
}

func TestLinesRefused(t *testing.T) {
	const first = `{"report":{"version":1}}` + "\n"
	for name, test := range map[string]struct{ text, want string }{
		"nothing":            {"", "line 1 of the inspection: unexpected EOF"},
		"cut":                {first + `{"usage":{}}` + "\n" + `{"us`, "line 3 of the inspection: unexpected EOF"},
		"no report first":    {`{"usage":{}}` + "\n", "has to come first"},
		"a second report":    {first + first, "has to come first, and once"},
		"two things":         {`{"report":{"version":1},"end":true}` + "\n", "has to have one of"},
		"none":               {"{}\n", "has to have one of"},
		"an unknown field":   {first + `{"usages":{}}` + "\n", "unknown field"},
		"unknown in a part":  {first + `{"usage":{"x":1}}` + "\n", "unknown field"},
		"an escape":          {first + `{"usage":{"source":"\u001b[2J"}}` + "\n", "usage.source has a character"},
		"a series":           {first + `{"usage":{"gpus":[{"memory_bytes":{"samples":-1}}]}}` + "\n", "usage.gpus.0.memory_bytes"},
		"a report's version": {`{"report":{"version":9}}` + "\n", "its version is 9"},
		"deep":               {strings.Repeat("[", 100) + "\n", "nested deeper"},
		"a long line":        {strings.Repeat(" ", MaxBytes+1), "larger than"},
		"one line twice":     {first + `{"end":true}{"end":true}` + "\n", "something follows"},
	} {
		err := ReadLines(strings.NewReader(test.text), func(Line) error { return nil })
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if err := ReadLines(strings.NewReader(first), func(Line) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	stop := errors.New("stop")
	if err := ReadLines(strings.NewReader(first), func(Line) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
}
