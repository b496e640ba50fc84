package report

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes a report one that Read accepts: what cannot be shown in a string is escaped,
// as "\n" or "\x1b" are in Go, long strings and lists are cut, a number that is none
// becomes 0. Lists without items become empty ones. A list that was cut is told in Unseen.
func (r *Report) Clean() {
	var cut []Unseen
	clean(reflect.ValueOf(r).Elem(), "", &cut)
	for _, u := range cut {
		if len(r.Unseen) < maxItems {
			r.Unseen = append(r.Unseen, u)
		}
	}
}

// Clean is as that of a report, for a part that travels by itself.
func (u *Usage) Clean() {
	var cut []Unseen // the series tell of themselves how much they have seen
	clean(reflect.ValueOf(u).Elem(), "usage", &cut)
}

// CleanString escapes what cannot be shown and cuts a string to what a report may hold.
func CleanString(s string) string {
	shown := func(r rune) bool { return r == '\t' || unicode.IsPrint(r) }
	if len(s) <= maxString && utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !shown(r) }) < 0 {
		return s
	}
	const end = "…"
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		piece := s[i : i+n]
		if r == utf8.RuneError && n == 1 || !shown(r) {
			quoted := strconv.QuoteToASCII(piece)
			piece = quoted[1 : len(quoted)-1]
		}
		if b.Len()+len(piece) > maxString-len(end) {
			b.WriteString(end)
			break
		}
		b.WriteString(piece)
		i += n
	}
	return b.String()
}

func clean(v reflect.Value, path string, cut *[]Unseen) {
	switch v.Kind() { //nolint:exhaustive // as in check
	case reflect.Pointer:
		if !v.IsNil() {
			clean(v.Elem(), path, cut)
		}
	case reflect.String:
		v.SetString(CleanString(v.String()))
	case reflect.Float64:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) || f < 0 {
			v.SetFloat(0)
		}
	case reflect.Slice:
		if v.Len() > maxItems {
			*cut = append(*cut, Unseen{What: path, Reason: fmt.Sprintf("there are %d, of which the first %d are told", v.Len(), maxItems)})
			v.Set(v.Slice(0, maxItems))
		}
		for i := range v.Len() {
			clean(v.Index(i), fmt.Sprintf("%s.%d", path, i), cut)
		}
	case reflect.Struct:
		cleanStruct(v, path, cut)
	}
}

func cleanStruct(v reflect.Value, path string, cut *[]Unseen) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if !field.IsExported() {
			continue // of time.Time
		}
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if path != "" {
			name = path + "." + name
		}
		f := v.Field(i)
		if f.Kind() == reflect.Slice && f.IsNil() && !strings.Contains(options, "omitempty") {
			f.Set(reflect.MakeSlice(f.Type(), 0, 0))
		}
		clean(f, name, cut)
	}
}
