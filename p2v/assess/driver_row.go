package assess

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A RowError says what is wrong with a row of the table of drivers.
type RowError struct {
	Key string // the value that is meant; empty: the row
	Err error
}

func (e *RowError) Error() string {
	if e.Key == "" {
		return e.Err.Error()
	}
	return e.Key + ": " + e.Err.Error()
}

// Unwrap returns what is wrong.
func (e *RowError) Unwrap() error { return e.Err }

// DriverRow reads a row of the table of drivers as an operator writes it, in words such as
// "branch=620 vgpu=21 previous=595 certain=documented" or "compute_capability=13.0 since=620
// modules=open", and returns it as it is always written. Its errors are a *RowError.
func DriverRow(text string) (string, error) {
	row, err := readRow(text)
	if err != nil {
		return "", err
	}
	var words []string
	for i := range row.NumField() {
		if f := row.Field(i); !f.IsZero() {
			words = append(words, fmt.Sprintf("%s=%v", keyOf(row.Type(), i), f))
		}
	}
	return strings.Join(words, " "), nil
}

// Extend lays an operator's rows over this table: those of the same branch or architecture are
// replaced, others added. It fails where a row is none, and where two of them are of one.
func (d Drivers) Extend(rows ...string) (Drivers, error) {
	var more Drivers
	for _, text := range rows {
		row, err := readRow(text)
		if err != nil {
			return d, fmt.Errorf("cannot read row %q of the table of drivers: %w", text, err)
		}
		switch r := row.Interface().(type) {
		case Branch:
			if _, twice := more.branch(r.Branch); twice {
				return d, fmt.Errorf("the table of drivers has two rows of branch %d", r.Branch)
			}
			if r.Certain == "" && r.VGPU != "" {
				r.Certain = "inferred" // nobody says that it was read
			}
			more.Branches = append(more.Branches, r)
		case Architecture:
			if slices.ContainsFunc(more.Architectures, r.same) {
				return d, fmt.Errorf("the table of drivers has two rows of compute capability %s", r.Capability)
			}
			more.Architectures = append(more.Architectures, r)
		}
	}
	out := more
	for _, b := range d.Branches {
		if _, replaced := more.branch(b.Branch); !replaced {
			out.Branches = append(out.Branches, b)
		}
	}
	for _, a := range d.Architectures {
		if !slices.ContainsFunc(more.Architectures, a.same) {
			out.Architectures = append(out.Architectures, a)
		}
	}
	slices.SortFunc(out.Branches, func(a, b Branch) int { return a.Branch - b.Branch })
	return out, nil
}

func (a Architecture) same(o Architecture) bool { return a.Capability == o.Capability }

// readRow reads the words of a row as a Branch or an Architecture.
func readRow(text string) (reflect.Value, error) {
	words := map[string]string{}
	var keys []string
	for _, word := range strings.Fields(text) {
		key, value, found := strings.Cut(word, "=")
		if !found {
			return reflect.Value{}, &RowError{Err: fmt.Errorf("%q is not of the form name=value", word)}
		}
		if _, twice := words[key]; twice {
			return reflect.Value{}, &RowError{Key: key, Err: errors.New("it stands there twice")}
		}
		words[key] = value
		keys = append(keys, key)
	}
	var row any = &Branch{}
	if _, is := words["compute_capability"]; is {
		row = &Architecture{}
	}
	v := reflect.ValueOf(row).Elem()
	for _, key := range keys {
		if err := setField(v, key, words[key]); err != nil {
			return v, err
		}
	}
	var err error
	switch r := row.(type) {
	case *Branch:
		if words["branch"] == "" {
			return v, &RowError{Err: errors.New("a row says branch or compute_capability")}
		}
		err = r.check()
	case *Architecture:
		err = r.check()
	}
	return v, err
}

func keyOf(t reflect.Type, i int) string {
	name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
	return name
}

func setField(v reflect.Value, key, text string) error {
	var names []string
	for i := range v.NumField() {
		name := keyOf(v.Type(), i)
		names = append(names, name)
		if name != key {
			continue
		}
		switch f := v.Field(i); f.Kind() { //nolint:exhaustive // rows have no others
		case reflect.Int:
			n, err := strconv.Atoi(text)
			if err != nil {
				return &RowError{Key: key, Err: fmt.Errorf("%q is no whole number", text)}
			}
			f.SetInt(int64(n))
		case reflect.Bool:
			if text != "true" && text != "false" {
				return &RowError{Key: key, Err: fmt.Errorf("%q is neither true nor false", text)}
			}
			f.SetBool(text == "true")
		default:
			f.SetString(text)
		}
		return nil
	}
	return &RowError{Err: fmt.Errorf("%q is none of %s", key, strings.Join(names, ", "))}
}

var (
	releaseNumber = regexp.MustCompile(`^[0-9]{1,3}$`)
	versionNumber = regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,3}$`)
)

// aBranch refuses a number that is no branch.
func aBranch(key string, n int) error {
	if n < 100 || n > 9999 {
		return &RowError{Key: key, Err: fmt.Errorf("%d is no branch", n)}
	}
	return nil
}

// aWord refuses a text that is not empty and that ok does not like.
func aWord(key, text, kind string, ok func(string) bool) error {
	if text != "" && !ok(text) {
		return &RowError{Key: key, Err: fmt.Errorf("%q is %s", text, kind)}
	}
	return nil
}

func among(words ...string) func(string) bool {
	return func(s string) bool { return slices.Contains(words, s) }
}

// check refuses a branch that makes no sense.
func (b Branch) check() error {
	if err := aBranch("branch", b.Branch); err != nil {
		return err
	}
	for _, before := range []struct {
		key string
		n   int
	}{{"previous", b.Previous}, {"previous_long_term", b.PreviousLongTerm}} {
		switch err := aBranch(before.key, before.n); {
		case before.n == 0:
		case err != nil:
			return err
		case before.n >= b.Branch:
			return &RowError{Key: before.key, Err: fmt.Errorf("a branch before %d is not older", b.Branch)}
		}
	}
	certain := among("documented", "inferred")
	return firstOf(
		aWord("vgpu", b.VGPU, "no release", releaseNumber.MatchString), aWord("cuda", b.CUDA, "no version", versionNumber.MatchString),
		aWord("certain", b.Certain, "none of documented, inferred", certain), aWord("long_term_certain", b.LongTermCertain, "none of documented, inferred", certain),
	)
}

// check refuses an architecture that makes no sense.
func (a Architecture) check() error {
	if a.Capability == "" {
		return &RowError{Err: errors.New("an architecture has no compute_capability")}
	}
	if err := firstOf(aWord("compute_capability", a.Capability, "no version", versionNumber.MatchString), aBranch("since", a.Since)); err != nil {
		return err
	}
	if a.Until != 0 && a.Until < a.Since {
		return &RowError{Key: "until", Err: fmt.Errorf("%d is older than %d", a.Until, a.Since)}
	}
	return aWord("modules", a.Modules, "none of open, proprietary", among("open", "proprietary"))
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
