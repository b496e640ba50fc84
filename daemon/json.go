package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// maxDepth is how deep a body may be nested; the deepest that makes sense has 2.
const maxDepth = 16

// decode reads a request's body into T, a struct. It is stricter than
// encoding/json: names are case-sensitive and may stand there once, null is no
// value, text must be UTF-8 and nothing may follow.
func decode[T any](q *request) (T, error) {
	var v T
	if len(bytes.TrimSpace(q.body)) == 0 {
		return v, invalid("the body is empty: it must be a JSON object")
	}
	if !utf8.Valid(q.body) {
		return v, invalid("the body is not valid UTF-8")
	}
	if err := checkShape(q.body, reflect.TypeFor[T]()); err != nil {
		return v, err
	}
	if err := json.Unmarshal(q.body, &v); err != nil {
		return v, jsonError(err)
	}
	return v, nil
}

func jsonError(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var moment *time.ParseError
	switch {
	case errors.As(err, &moment):
		return invalid("a time must be as RFC 3339 has it, such as 2027-02-21T11:00:00Z, not %s", quote(strings.Trim(moment.Value, `"`)))
	case errors.As(err, &syntax):
		return invalid("the body is not valid JSON: %w, at byte %d", err, syntax.Offset)
	case errors.As(err, &kind):
		return invalid("field %s must be %s, not %s", quote(kind.Field), nameOf(kind.Type), kind.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("the body is not valid JSON: it ends too early")
	}
	return invalid("the body is not valid JSON: %w", err)
}

func nameOf(t reflect.Type) string {
	switch t.Kind() { //nolint:exhaustive // what a body is made of; the rest is told as it is
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Map, reflect.Struct:
		return "an object"
	case reflect.Slice:
		return "an array"
	}
	return "a " + t.Kind().String()
}

// fieldsOf returns the JSON names of a struct's fields.
func fieldsOf(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

// typeIn is the type of what stands in a value of type t: of an object under a name. It is
// nil where the value should have nothing in it, which is told when it is read.
func typeIn(t reflect.Type, name string) reflect.Type {
	switch {
	case t == nil:
		return nil
	case t.Kind() == reflect.Struct:
		i := slices.Index(fieldsOf(t), name)
		if i < 0 {
			return nil
		}
		t = t.Field(i).Type
	case t.Kind() == reflect.Slice, t.Kind() == reflect.Map:
		t = t.Elem()
	default:
		return nil
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// A level is an object or array that is open while a body is read.
type level struct {
	object bool
	of     reflect.Type    // what it is read into, nil: nothing
	name   string          // under which it stands in its parent
	seen   map[string]bool // names so far, of an object
	key    string          // the name whose value comes next
	wants  bool            // an object: a name comes next
}

// checkShape reads a body token by token for what encoding/json would let pass.
func checkShape(body []byte, t reflect.Type) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var open []*level
	for first := true; ; first = false {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) && len(open) == 0 && !first {
			return nil
		}
		if err != nil {
			return jsonError(err)
		}
		if first && tok != json.Delim('{') {
			return invalid("the body must be a JSON object, not %s", tokenName(tok))
		}
		if !first && len(open) == 0 {
			return invalid("something follows the JSON object in the body")
		}
		if open, err = step(open, tok, t); err != nil {
			return err
		}
	}
}

// step follows one token of a body that is read into t.
func step(open []*level, tok json.Token, t reflect.Type) ([]*level, error) {
	var top *level
	if len(open) > 0 {
		top = open[len(open)-1]
	}
	if d, ok := tok.(json.Delim); ok && (d == '}' || d == ']') {
		return open[:len(open)-1], nil
	}
	if top != nil && top.object && top.wants {
		key := fmt.Sprint(tok) // a string: the decoder sees to that
		if top.of != nil && top.of.Kind() == reflect.Struct && !slices.Contains(fieldsOf(top.of), key) {
			return nil, invalid("field %s is unknown: there are %s", quote(pathOf(open, key)), strings.Join(fieldsOf(top.of), ", "))
		}
		if top.seen[key] {
			return nil, invalid("field %s stands there twice", quote(pathOf(open, key)))
		}
		top.seen[key], top.key, top.wants = true, key, false
		return open, nil
	}
	if top != nil {
		top.wants = top.object
	}
	if tok == nil {
		return nil, invalid("field %s must not be null: leave it out instead", quote(pathOf(open, top.key)))
	}
	if d, ok := tok.(json.Delim); ok {
		if len(open) == maxDepth {
			return nil, invalid("the body is nested deeper than %d levels", maxDepth)
		}
		l := &level{object: d == '{', of: t, wants: d == '{', seen: map[string]bool{}}
		if top != nil {
			l.name, l.of = top.key, typeIn(top.of, top.key)
		}
		open = append(open, l)
	}
	return open, nil
}

func pathOf(open []*level, key string) string {
	var names []string
	for _, l := range open[1:] {
		if l.name != "" { // what is in an array has none
			names = append(names, l.name)
		}
	}
	return strings.Join(append(names, key), ".")
}

func tokenName(tok json.Token) string {
	switch tok.(type) {
	case nil:
		return "null"
	case bool:
		return "true or false"
	case string:
		return "a string"
	case json.Delim:
		return "an array"
	}
	return "a number"
}
