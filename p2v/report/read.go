package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of a report. A server with 16 GPUs, 200 disks and 300 containers stays far below.
const (
	MaxBytes  = 16 << 20 // of the document
	maxItems  = 4096     // of any list
	maxString = 4096     // bytes of any string
	maxDepth  = 32       // of lists and objects in one another

	maxSamples = 1 << 40 // of a series
)

// Read reads a report that comes from elsewhere. It refuses what is larger than a report can
// be, of another version, or has a field, a number or a string that none has.
func Read(r io.Reader) (Report, error) {
	var out Report
	data, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	switch {
	case err != nil:
		return out, fmt.Errorf("cannot read the inspection: %w", err)
	case len(data) > MaxBytes:
		return out, fmt.Errorf("cannot read the inspection: it is larger than %d bytes", MaxBytes)
	}
	if err := depth(data); err != nil {
		return out, fmt.Errorf("cannot read the inspection: %w", err)
	}
	// The version first: a newer one has fields that are unknown here.
	var head struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return out, fmt.Errorf("cannot read the inspection: %w", err)
	}
	switch {
	case head.Version == nil:
		return out, errors.New("cannot read the inspection: it has no version: is this what \"gpuvirt p2v inspect\" wrote?")
	case *head.Version != Version:
		return out, fmt.Errorf("cannot read the inspection: its version is %d, this gpuvirt reads %d: inspect with the same version of gpuvirt", *head.Version, Version)
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&out); err != nil {
		return Report{}, fmt.Errorf("cannot read the inspection: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Report{}, errors.New("cannot read the inspection: something follows it")
	}
	if err := out.Check(); err != nil {
		return Report{}, fmt.Errorf("cannot read the inspection: %w", err)
	}
	return out, nil
}

// depth refuses nesting that no report has, before a decoder recurses into it.
func depth(data []byte) error {
	deep, in, escaped := 0, false, false
	for _, c := range data {
		switch {
		case escaped:
			escaped = false
		case in && c == '\\':
			escaped = true
		case c == '"':
			in = !in
		case in:
		case c == '{' || c == '[':
			if deep++; deep > maxDepth {
				return fmt.Errorf("lists and objects are nested deeper than %d", maxDepth)
			}
		case c == '}' || c == ']':
			deep--
		}
	}
	return nil
}

// Check refuses what no inspector writes: strings and lists beyond any measure, characters
// that change what a terminal shows, numbers below zero, series whose parts disagree.
func (r Report) Check() error { return check(reflect.ValueOf(r), "") }

func check(v reflect.Value, path string) error {
	switch v.Kind() { //nolint:exhaustive // the kinds that a report is made of and that can be wrong
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return check(v.Elem(), path)
	case reflect.String:
		return checkString(v.String(), path)
	case reflect.Float64:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) || f < 0 {
			return fmt.Errorf("%s is %v, which it cannot be", path, f)
		}
	case reflect.Slice:
		if v.Len() > maxItems {
			return fmt.Errorf("%s has %d items, more than %d", path, v.Len(), maxItems)
		}
		for i := range v.Len() {
			if err := check(v.Index(i), fmt.Sprintf("%s.%d", path, i)); err != nil {
				return err
			}
		}
	case reflect.Struct:
		return checkStruct(v, path)
	}
	return nil
}

func checkStruct(v reflect.Value, path string) error {
	if s, ok := v.Interface().(Series); ok {
		if err := s.check(); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if !field.IsExported() {
			continue // of time.Time
		}
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if path != "" {
			name = path + "." + name
		}
		if err := check(v.Field(i), name); err != nil {
			return err
		}
	}
	return nil
}

func checkString(s, path string) error {
	switch {
	case len(s) > maxString:
		return fmt.Errorf("%s has %d bytes, more than %d", path, len(s), maxString)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s is no UTF-8", path)
	}
	if i := strings.IndexFunc(s, func(c rune) bool { return c != '\t' && !unicode.IsPrint(c) }); i >= 0 {
		return fmt.Errorf("%s has a character that cannot be shown, at byte %d", path, i)
	}
	return nil
}

func (s Series) check() error {
	seen, last := 0, math.MinInt
	for _, b := range s.Buckets {
		if b.Count <= 0 || b.Index <= last || b.Index > 1<<14 || b.Index < -1<<14 {
			return errors.New("its buckets are out of order or empty")
		}
		if seen += b.Count; seen > s.Samples {
			break
		}
		last = b.Index
	}
	if s.Samples < 0 || s.Samples > maxSamples || seen > s.Samples {
		return errors.New("its buckets have more samples than it has, or it has more than anybody takes")
	}
	return nil
}
