package assess

import (
	"cmp"
	"encoding/json"
	"reflect"
	"slices"

	"gpuvirt/p2v/report"
)

// ordered are the lists of a report whose order says something.
var ordered = []string{"Args", "Lines", "Exact", "Buckets"}

// Canonical returns the report with its lists in one order, whatever theirs was: answers
// must not depend on it. The report that is given stays as it is.
func Canonical(r report.Report) report.Report {
	v := reflect.ValueOf(&r).Elem()
	sortLists(v)
	slices.SortStableFunc(r.GPUs, func(a, b report.GPU) int { return cmp.Compare(a.PCI, b.PCI) })
	slices.SortStableFunc(r.Disks, func(a, b report.Disk) int {
		return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	return r
}

func sortLists(v reflect.Value) {
	switch v.Kind() { //nolint:exhaustive // the others hold no lists
	case reflect.Pointer:
		if v.IsNil() || v.Elem().Kind() != reflect.Struct {
			return
		}
		fresh := reflect.New(v.Type().Elem())
		fresh.Elem().Set(v.Elem())
		v.Set(fresh)
		sortLists(fresh.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && !slices.Contains(ordered, f.Name) {
				sortLists(v.Field(i))
			}
		}
	case reflect.Slice:
		sortList(v)
	}
}

func sortList(v reflect.Value) {
	type item struct {
		value reflect.Value
		key   string
	}
	items := make([]item, v.Len())
	for i := range items {
		fresh := reflect.New(v.Type().Elem()).Elem()
		fresh.Set(v.Index(i))
		sortLists(fresh)
		key, err := json.Marshal(fresh.Interface())
		if err != nil { // a number that is none; report.Read lets none through
			key = nil
		}
		items[i] = item{fresh, string(key)}
	}
	slices.SortStableFunc(items, func(a, b item) int { return cmp.Compare(a.key, b.key) })
	out := reflect.MakeSlice(v.Type(), 0, len(items))
	for _, it := range items {
		out = reflect.Append(out, it.value)
	}
	v.Set(out)
}
