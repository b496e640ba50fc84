package main

import (
	"slices"
	"testing"

	"gpuvirt/api"
)

// What goes with a card is shown, and that no vm has it.
func TestCompanions(t *testing.T) {
	for _, c := range []struct {
		with []string
		want string
	}{{nil, ""}, {[]string{"0000:03:00.1"}, "0000:03:00.1 (to VFIO, and into no vm)"}, {[]string{"0000:03:00.1", "0000:03:00.2"}, "0000:03:00.1, 0000:03:00.2 (to VFIO, and into no vm)"}} {
		fields := partitionFields(api.Partition{Companions: c.with})
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == "Goes with it" })
		if i < 0 || fields[i].value != c.want {
			t.Errorf("%+v", fields)
		}
	}
}
