package report

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestCleanString(t *testing.T) {
	for in, want := range map[string]string{
		"plain\tü":           "plain\tü",
		"a\nb":               `a\nb`,
		"\x1b[31mred":        `\x1b[31mred`,
		"\xff\xfe":           `\xff\xfe`,
		"right\u202eto left": `right\u202eto left`,
		"real \uFFFD":        "real \uFFFD",
	} {
		if got := CleanString(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := CleanString(strings.Repeat("ü", maxString)); len(got) > maxString || !strings.HasSuffix(got, "ü…") {
		t.Errorf("%d bytes, %q", len(got), got[len(got)-8:])
	}
}

// Whatever a source has in its names, the document that comes of it is read.
func TestCleanIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := func(what string) string { return string(rapid.SliceOf(rapid.Byte()).Draw(t, what)) }
		r := Report{
			Version: Version, Hostname: text("hostname"),
			Processes: []Process{{Exe: text("exe"), Args: []string{text("arg"), rapid.String().Draw(t, "arg")}, Share: math.NaN()}},
			Usage:     &Usage{Processes: []ProcessUsage{{Exe: text("exe")}}},
		}
		r.Clean()
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read(bytes.NewReader(data)); err != nil {
			t.Error(err)
		}
	})
}

func TestCleanCutsListsAndSaysSo(t *testing.T) {
	r := Report{Version: Version, Pins: make([]Pin, maxItems+1)}
	r.Clean()
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	if len(r.Unseen) != 1 || r.Unseen[0].What != "pins" || r.Disks == nil {
		t.Errorf("%+v", r.Unseen)
	}
}
