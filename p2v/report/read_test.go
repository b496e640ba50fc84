package report

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// written is a report as an inspector writes it, with the change that the test makes.
func written(t *testing.T, change func(map[string]any)) string {
	t.Helper()
	r := Report{Version: Version, Hostname: "gpu7", GPUs: []GPU{{PCI: "0000:41:00.0", MemoryBytes: 80 << 30}}}
	u := GPUUsage{PCI: "0000:41:00.0"}
	u.Memory.Add(1 << 30)
	r.Usage = &Usage{GPUs: []GPUUsage{u}}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	if text, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestReadWhatWasWritten(t *testing.T) {
	text := written(t, func(map[string]any) {})
	r, err := Read(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Read(strings.NewReader(string(again)))
	if diff := cmp.Diff(r, second); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
}

// A report is from a machine that nobody trusts.
func TestReadRefuses(t *testing.T) {
	set := func(key string, v any) func(map[string]any) { return func(m map[string]any) { m[key] = v } }
	memory := func(change func(map[string]any)) string {
		return written(t, func(m map[string]any) {
			u := m["usage"].(map[string]any)["gpus"].([]any)[0].(map[string]any)
			change(u["memory_bytes"].(map[string]any))
		})
	}
	for name, test := range map[string]struct{ text, want string }{
		"nothing":        {"", "unexpected end"},
		"no object":      {"[]", "cannot unmarshal array"},
		"another file":   {"{}", "it has no version"},
		"newer":          {written(t, set("version", 2)), "its version is 2, this gpuvirt reads 1"},
		"unknown field":  {written(t, set("shell", "x")), `unknown field "shell"`},
		"two":            {written(t, func(map[string]any) {}) + "{}", "after top-level value"},
		"deep":           {strings.Repeat("[", 1<<20), "nested deeper than 32"},
		"deep in object": {`{"version":1,"x":` + strings.Repeat(`{"a":`, 100), "nested deeper than 32"},
		"large":          {strings.Repeat(" ", MaxBytes+1), "larger than 16777216 bytes"},
		"long string":    {written(t, set("hostname", strings.Repeat("a", 5000))), "hostname has 5000 bytes, more than 4096"},
		"terminal":       {written(t, set("hostname", "a\x1b[2Jb")), "hostname has a character that cannot be shown, at byte 1"},
		"newline":        {written(t, set("hostname", "a\nb")), "hostname has a character that cannot be shown"},
		"direction":      {written(t, set("hostname", "a\u202eb")), "hostname has a character that cannot be shown"},
		"negative size":  {written(t, set("memory", map[string]any{"total_bytes": -1})), "cannot unmarshal number -1"},
		"many items":     {written(t, set("pins", make([]Pin, 5000))), "pins has 5000 items, more than 4096"},
		"more in a bucket": {memory(func(m map[string]any) {
			m["buckets"] = []Bucket{{Index: 1, Count: 2}}
		}), "usage.gpus.0.memory_bytes: its buckets have more samples than it has"},
		"empty bucket": {memory(func(m map[string]any) {
			m["buckets"] = []Bucket{{Index: 1, Count: 0}}
		}), "usage.gpus.0.memory_bytes: its buckets are out of order or empty"},
		"below zero": {memory(func(m map[string]any) { m["max"] = -5 }), "usage.gpus.0.memory_bytes.max is -5, which it cannot be"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(strings.NewReader(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func FuzzRead(f *testing.F) {
	f.Add(`{"version":1,"hostname":"a"}`)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Read(strings.NewReader(text))
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read(strings.NewReader(string(again))); err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
	})
}
