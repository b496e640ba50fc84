package guest

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
)

// evil is in no name that an edit takes.
const evil = "ev'il\n$(id)"

// spoil changes texts of a report into what somebody might write who wants to do harm.
func spoil(t *rapid.T, v reflect.Value) {
	switch v.Kind() { //nolint:exhaustive // the others hold no text
	case reflect.String:
		old := v.String()
		v.SetString(rapid.SampledFrom([]string{
			old, old, old, old, evil, old + evil, evil + old, "../" + old, old + "/../../etc/shadow", old + "\x00", old + "\xff", "/" + old, old + ":/etc/passwd", old + " --run-command reboot",
			"", old + `"`, `\`, strings.Repeat(old, 300), old + "\t",
		}).Draw(t, "text"))
	case reflect.Pointer:
		if !v.IsNil() {
			spoil(t, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			spoil(t, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				spoil(t, v.Field(i))
			}
		}
	}
}

func clone(t interface{ Fatal(...any) }, r report.Report) (out report.Report) {
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// Whatever a report says: there are edits and no error, all of them can be made, all changes
// are told of, and no text of the report is a path, a name or a command that it should not be.
func TestHostile(t *testing.T) {
	for _, name := range servers {
		r := inspected(t, name)
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				bad := clone(rt, r)
				spoil(rt, reflect.ValueOf(&bad).Elem())
				w := vgpus(bad, rapid.SampledFrom([]string{"card", "X-20C"}).Draw(rt, "profile"))
				p := planned(bad, w)
				edits, left, err := Edits(bad, p, brought(report.Report{}))
				if err != nil {
					rt.Fatal(err)
				}
				check(t, p, edits, left)
				for _, e := range edits {
					args, err := e.Render()
					if err != nil {
						rt.Fatal(err)
					}
					for _, a := range args {
						if strings.Contains(a, "$(id)") || strings.Contains(a, "/etc/shadow") || strings.Contains(a, "reboot") || strings.Contains(a, "..") {
							rt.Fatalf("%q", args)
						}
					}
					if strings.ContainsAny(e.What+e.Undo, "\n\x00") || !utf8.ValidString(e.What+e.Undo) {
						rt.Fatalf("%q", e.What)
					}
				}
				// A domain is defined or refused, and never another one.
				if d, err := Domain(bad, w, mapping(len(assess.Disks(bad, w)))); err == nil {
					if doc, err := d.XML(); err != nil || strings.Contains(doc, "ev&") || strings.Contains(doc, "$(id)") {
						rt.Fatal(doc, err)
					}
				}
				if t.Failed() {
					rt.FailNow()
				}
			})
		})
	}
}

// turn reverses all lists whose order says nothing.
func turn(v reflect.Value) {
	switch v.Kind() { //nolint:exhaustive // the others hold no list
	case reflect.Pointer:
		if !v.IsNil() {
			turn(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && !slices.Contains([]string{"Args", "Lines", "Exact", "Buckets"}, f.Name) {
				turn(v.Field(i))
			}
		}
	case reflect.Slice:
		swap := reflect.Swapper(v.Interface())
		for i := range v.Len() / 2 {
			swap(i, v.Len()-1-i)
		}
		for i := range v.Len() {
			turn(v.Index(i))
		}
	}
}

func TestOrderDoesNotMatter(t *testing.T) {
	for _, name := range servers {
		r := inspected(t, name)
		turned := clone(t, r)
		turn(reflect.ValueOf(&turned).Elem())
		if cmp.Equal(r, turned) {
			t.Fatal("nothing was turned")
		}
		w := vgpus(r, "X-20C")
		edits, left, err := Edits(r, planned(r, w), brought(r))
		if err != nil {
			t.Fatal(err)
		}
		again, leftAgain, err := Edits(turned, planned(turned, w), brought(r))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(edits, again); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if diff := cmp.Diff(left, leftAgain); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		m := mapping(len(assess.Disks(r, w)))
		one, err := Domain(r, w, m)
		if err != nil {
			t.Fatal(err)
		}
		if other, err := Domain(turned, w, m); err != nil || !cmp.Equal(one, other) {
			t.Error(err, cmp.Diff(one, other))
		}
	}
}
