package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
)

func snapshots() []api.Operation {
	step := func(a, b string, done int64) api.Operation {
		return api.Operation{Steps: []api.Step{
			{Kind: "partition.make", Summary: "mbochs-small on mbochs", Status: a},
			{Kind: "vm.attach", Summary: "to web1", Status: b, Done: done, Total: 4},
		}}
	}
	return []api.Operation{
		step("pending", "pending", 0), step("doing", "pending", 0), step("done", "doing", 1), step("done", "doing", 3),
		step("done", "failed", 3), step("undoing", "failed", 3), step("undone", "failed", 3),
	}
}

func TestProgressLines(t *testing.T) {
	var got bytes.Buffer
	p := &progress{out: &got}
	for _, op := range snapshots() {
		p.update(op)
	}
	p.end()
	want := "  partition.make        done      mbochs-small on mbochs\n" +
		"  vm.attach             failed    to web1\n" +
		"  partition.make        undone    mbochs-small on mbochs\n"
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestProgressLive(t *testing.T) {
	var got bytes.Buffer
	p := &progress{out: &got, live: true}
	for _, op := range snapshots()[:5] {
		p.update(op)
	}
	p.update(api.Operation{Steps: []api.Step{{Kind: "partition.make", Summary: strings.Repeat("long ", 30), Status: "undoing"}}})
	p.end()
	screen := strings.Split(strings.ReplaceAll(got.String(), "\r", "\\r"), "\n")
	want := []string{
		`\r  partition.make        doing     mbochs-small on mbochs\r                                                        \r  partition.make        done      mbochs-small on mbochs`,
		`\r  vm.attach             25%       to web1\r  vm.attach             75%       to web1\r                                         \r  vm.attach             failed    to web1`,
		`\r  partition.make        undoing   long long long long long long long long long…`,
		``,
	}
	if diff := cmp.Diff(want, screen); diff != "" {
		t.Error(diff)
	}
}

// What is slow gives a sign of life where no line is live.
func TestProgressSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got bytes.Buffer
		p := &progress{out: &got}
		doing := snapshots()[1]
		p.update(doing)
		<-time.After(slowAfter)
		p.update(doing)
		p.update(doing)
		p.update(snapshots()[2])
		want := "  partition.make        doing     mbochs-small on mbochs\n" +
			"  partition.make        done      mbochs-small on mbochs\n"
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Error(diff)
		}
	})
}
