package daemon

import (
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/api"
)

// The number of items on a page, and the length of a cursor.
const (
	defaultLimit = 100
	maxLimit     = 1000
	maxCursor    = 4096 // bytes
)

// page returns the items that the request's cursor and limit ask for, ordered by
// id. A cursor holds the last id of the page before, so that what is added or
// removed meanwhile neither repeats nor hides an item.
func page[T any](q *request, items []T, id func(T) string) (response, error) {
	list, err := pageOf(q, items, id)
	if err != nil {
		return response{}, err
	}
	return ok(list), nil
}

func pageOf[T any](q *request, items []T, id func(T) string) (api.List[T], error) {
	limit := defaultLimit
	if v, given := q.query["limit"]; given {
		n, err := strconv.Atoi(v)
		if err != nil {
			return api.List[T]{}, err
		}
		limit = n
	}
	slices.SortStableFunc(items, func(a, b T) int { return strings.Compare(id(a), id(b)) })
	if v, given := q.query["cursor"]; given {
		last, err := parseCursor(v)
		if err != nil {
			return api.List[T]{}, err
		}
		first, found := slices.BinarySearchFunc(items, last, func(item T, last string) int {
			return strings.Compare(id(item), last)
		})
		if found {
			first++
		}
		items = items[first:]
	}
	list := api.List[T]{Items: items}
	if len(items) > limit {
		list.Items = items[:limit]
		list.Next = formatCursor(id(items[limit-1]))
	}
	if list.Items == nil {
		list.Items = []T{}
	}
	return list, nil
}

// A cursor begins with this, so that another encoding can follow.
const cursorVersion = "1:"

func formatCursor(last string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(cursorVersion + last))
}

func parseCursor(v string) (string, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(v)
	last, isOurs := strings.CutPrefix(string(b), cursorVersion)
	if err != nil || !isOurs || len(v) > maxCursor {
		return "", errors.New("it does not come from this list")
	}
	return last, nil
}

func checkCursor(v string) error {
	_, err := parseCursor(v)
	return err
}

// filter keeps the items that equal every filter that the request gives.
func filter[T any](q *request, items []T, by map[string]func(T) string) []T {
	return slices.DeleteFunc(items, func(item T) bool {
		for name, get := range by {
			if want, given := q.query[name]; given && get(item) != want {
				return true
			}
		}
		return false
	})
}

// convert makes wire types of a list; the result is never nil.
func convert[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}
