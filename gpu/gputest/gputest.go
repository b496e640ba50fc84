// Package gputest holds the contract that every gpu.Backend keeps, as a test: on
// a simulated host, in the lab, and on a real GPU that may be used for it.
package gputest

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

// Options say what the contract is tried on.
type Options struct {
	// GPU is used for the trial. What is on it already must leave room for two
	// partitions of Profile, or one with Single, and nobody else may change it meanwhile.
	GPU gpu.ID
	// Profile is what is made. The GPU is filled with it, so one of which few fit is
	// quicker.
	Profile string
	// Other is another profile of the GPU: the same identity cannot have both.
	Other string
	// Want returns a new partition to make. Default: an mdev with a random UUID.
	Want func(profile string) gpu.Partition
	// Places tells that a partition's identity is its place: who asks for one that is
	// taken by the same profile gets what is there.
	Places bool
	// Single tells that a GPU has room for one partition only, which has one place: there
	// is no other identity that could be refused when it is taken, but Place refuses.
	Single bool
	// Vague tells that the backend does not know how many fit: one is available as long as
	// any is. Capacity is tried at the last place then, which falls to none.
	Vague bool
	// Racers is how many callers fight for the last place. Default 50.
	Racers int
}

// Backend tries the contract on a backend. It leaves the GPU as it found it.
func Backend(t *testing.T, b gpu.Backend, o Options) {
	t.Helper()
	if o.Want == nil {
		o.Want = func(profile string) gpu.Partition {
			return gpu.Partition{ID: NewUUID(), GPU: o.GPU, Kind: gpu.KindMdev, Profile: profile}
		}
	}
	if o.Racers == 0 {
		o.Racers = 50
	}
	for _, c := range []struct {
		name string
		test func(*trial)
	}{
		{"the gpu is listed once, in order", (*trial).listed},
		{"lists are sorted and do not change by being read", (*trial).stable},
		{"an unknown gpu is not found", (*trial).unknownGPU},
		{"an unknown profile is refused", (*trial).unknownProfile},
		{"made is listed, twice is once", (*trial).makeTwice},
		{"removed is gone, twice is fine", (*trial).removeTwice},
		{"what is free falls and comes back", (*trial).capacity},
		{"one identity has one profile", (*trial).otherProfile},
		{"a full gpu makes nothing by halves", (*trial).full},
		{"one place goes to one of many_T04", (*trial).race},
		{"a cancelled call changes nothing", (*trial).cancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := &trial{T: t, b: b, o: o}
			before, free := tr.partitions(), tr.free()
			c.test(tr)
			tr.clear()
			if diff := cmp.Diff(before, tr.partitions()); diff != "" {
				t.Errorf("the trial left other partitions behind than it found (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(free, tr.free()); diff != "" {
				t.Errorf("other things are free than before the trial (-before +after):\n%s", diff)
			}
		})
	}
}

// NewUUID returns a random UUID.
func NewUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// A trial is one part of the contract, with what it made so far.
type trial struct {
	*testing.T
	b gpu.Backend
	o Options

	mu   sync.Mutex
	made []gpu.Partition
}

func (t *trial) partitions() []gpu.Partition {
	t.Helper()
	out, err := t.b.Partitions(t.Context(), t.o.GPU)
	if err != nil {
		t.Fatalf("Partitions: %v", err)
	}
	return out
}

func (t *trial) profiles() []gpu.Profile {
	t.Helper()
	_, out, err := t.b.Look(t.Context(), t.o.GPU)
	if err != nil {
		t.Fatalf("Look: %v", err)
	}
	return out
}

// free returns what is available of each profile.
func (t *trial) free() map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, p := range t.profiles() {
		out[p.Name] = p.Available
	}
	return out
}

func (t *trial) make(want gpu.Partition) (gpu.Partition, error) {
	made, err := t.b.Make(t.Context(), want)
	if err == nil {
		t.mu.Lock()
		t.made = append(t.made, made)
		t.mu.Unlock()
	}
	return made, err
}

func (t *trial) mustMake() (want, made gpu.Partition) {
	t.Helper()
	want = t.o.Want(t.o.Profile)
	made, err := t.make(want)
	if err != nil {
		t.Fatalf("Make: %v", err)
	}
	return want, made
}

// fill makes partitions until only leave more fit.
func (t *trial) fill(leave int) {
	t.Helper()
	for n := t.free()[t.o.Profile]; n > leave; n = t.free()[t.o.Profile] {
		t.mustMake()
		if now := t.free()[t.o.Profile]; now > n || now == n && !t.o.Vague {
			t.Fatalf("%d of %s were available, and after making one %d are", n, t.o.Profile, now)
		}
	}
}

// fillVaguely makes partitions until one more fits: it is known only by trying.
func (t *trial) fillVaguely() {
	t.Helper()
	t.fill(0)
	last := t.made[len(t.made)-1]
	if err := t.b.Remove(t.Context(), last); err != nil {
		t.Fatalf("Remove: %v", err)
	}
}

func (t *trial) clear() {
	t.Helper()
	for _, p := range t.made {
		if err := t.b.Remove(context.WithoutCancel(t.Context()), p); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
}

func (t *trial) wantCode(what string, err error, code gpu.Code) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%s succeeded, want %s", what, code)
	case gpu.CodeOf(err) != code:
		t.Errorf("%s: %s (%v), want %s", what, gpu.CodeOf(err), err, code)
	case !strings.HasPrefix(err.Error(), "cannot "):
		t.Errorf("%s: %q does not begin with what could not be done", what, err)
	}
}

func (t *trial) listed() {
	ids, err := t.b.IDs(t.Context())
	if err != nil {
		t.Fatalf("IDs: %v", err)
	}
	for _, id := range ids {
		if g, _, err := t.b.Look(t.Context(), id); err != nil || g.ID != id || len(g.Kinds) == 0 {
			t.Errorf("gpu %q is listed, but it is %+v, %v", id, g, err)
		}
	}
	if !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Errorf("gpus are not sorted, or one is there twice: %q", ids)
	}
	if !slices.Contains(ids, t.o.GPU) {
		t.Errorf("gpu %q is not listed: %q", t.o.GPU, ids)
	}
}

func (t *trial) stable() {
	t.mustMake()
	if !t.o.Single {
		t.mustMake()
	}
	profiles, partitions := t.profiles(), t.partitions()
	if !slices.IsSortedFunc(profiles, func(a, b gpu.Profile) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("profiles are not sorted by name")
	}
	for i, p := range profiles {
		if i > 0 && p.Name == profiles[i-1].Name {
			t.Errorf("two profiles are called %q", p.Name)
		}
		if p.GPU != t.o.GPU || p.Kind == "" {
			t.Errorf("profile %q lacks its gpu or kind: %+v", p.Name, p)
		}
	}
	if !slices.IsSortedFunc(partitions, func(a, b gpu.Partition) int { return strings.Compare(a.ID, b.ID) }) {
		t.Error("partitions are not sorted by id")
	}
	for range 3 {
		if diff := cmp.Diff(profiles, t.profiles()); diff != "" {
			t.Errorf("profiles differ when read again:\n%s", diff)
		}
		if diff := cmp.Diff(partitions, t.partitions()); diff != "" {
			t.Errorf("partitions differ when read again:\n%s", diff)
		}
	}
}

func (t *trial) unknownGPU() {
	const none = "ffff:ff:1f.7"
	g, _, err := t.b.Look(t.Context(), none)
	t.wantCode("Look at an unknown gpu", err, gpu.CodeNotFound)
	if g.ID != "" {
		t.Errorf("an unknown gpu is %+v", g)
	}
	_, err = t.b.Partitions(t.Context(), none)
	t.wantCode("Partitions of an unknown gpu", err, gpu.CodeNotFound)
	want := t.o.Want(t.o.Profile)
	want.GPU, want.ID = none, strings.Replace(want.ID, string(t.o.GPU), none, 1)
	_, err = t.make(want)
	t.wantCode("Make on an unknown gpu", err, gpu.CodeNotFound)
}

func (t *trial) unknownProfile() {
	for _, name := range []string{"no-such-profile", strings.ToLower(t.o.Profile) + "X", t.o.Profile[:len(t.o.Profile)-1]} {
		_, err := t.make(t.o.Want(name))
		t.wantCode(fmt.Sprintf("Make of profile %q", name), err, gpu.CodeProfileUnknown)
	}
}
