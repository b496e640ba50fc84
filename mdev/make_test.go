package mdev_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/internal/sysfs"
	"gpuvirt/mdev"
)

const (
	t4     = gpu.ID("0000:08:00.0")
	uuid   = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
	uuid2  = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002"
	create = "devices/virtual/mbochs/mbochs/mdev_supported_types/mbochs-large/create"
	remove = "devices/virtual/mbochs/mbochs/" + uuid + "/remove"
)

func want(id gpu.ID, profile string) gpu.Partition {
	return gpu.Partition{ID: uuid, GPU: id, Kind: gpu.KindMdev, Profile: profile}
}

func mustMake(t *testing.T, b *mdev.Backend, p gpu.Partition) gpu.Partition {
	t.Helper()
	made, err := b.Make(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func nothingThere(t *testing.T, h *sim.Host, b *mdev.Backend, id gpu.ID) {
	t.Helper()
	if got, err := b.Partitions(t.Context(), id); err != nil || len(got) != 0 {
		t.Errorf("something was left behind: %+v, %v", got, err)
	}
	if names, _ := h.Sysfs.List("bus/mdev/devices"); len(names) != 0 {
		t.Errorf("something was left behind: %q", names)
	}
}

// Every errno of the driver has its kind, and none leaves anything behind.
func TestMakeErrno_T06_T49(t *testing.T) {
	for errno, tc := range map[syscall.Errno]struct {
		code gpu.Code
		text string
	}{
		syscall.ENOSPC: {gpu.CodeNoCapacity, "0 of mbochs-large available on mbochs"},
		syscall.EUSERS: {gpu.CodeNoCapacity, "0 of mbochs-large available on mbochs"},
		syscall.EINVAL: {gpu.CodeInvalid, "refuses this type or uuid"},
		syscall.EBUSY:  {gpu.CodeGPUBusy, "busy"},
		syscall.ENODEV: {gpu.CodeUnavailable, "leaving"},
		syscall.EACCES: {gpu.CodeForbidden, "forbids"},
		syscall.EPERM:  {gpu.CodeForbidden, "forbids"},
		syscall.EROFS:  {gpu.CodeForbidden, "forbids"},
		syscall.EIO:    {gpu.CodeUnavailable, "failed"}, // no NVIDIA: says nothing about sizes
		syscall.EXDEV:  {gpu.CodeUnavailable, "failed"},
		syscall.ENOENT: {gpu.CodeUnavailable, "failed"}, // though GPU and type are there
	} {
		h := host(t)
		b := mdev.New(h.Sysfs, mdev.Options{})
		if err := h.Inject(sim.Fault{Op: "write", Path: create, Errno: errno}); err != nil {
			t.Fatal(err)
		}
		_, err := b.Make(t.Context(), want("mbochs", "mbochs-large"))
		if gpu.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) || !strings.HasPrefix(err.Error(), `cannot make partition "`+uuid+`" on gpu "mbochs": `) {
			t.Errorf("%s: %s: %v", errno, gpu.CodeOf(err), err)
		}
		if tc.code != gpu.CodeNoCapacity && !errors.Is(err, errno) {
			t.Errorf("%s is not reachable in %v", errno, err)
		}
		e, _ := errors.AsType[*gpu.Error](err)
		if errno == syscall.EACCES && (!strings.Contains(e.Hint, "AppArmor") || !strings.Contains(e.Hint, "SELinux")) {
			t.Errorf("EACCES: hint %q", e.Hint)
		}
		if errno == syscall.EINVAL && e.Hint == "" {
			t.Error("EINVAL: no hint why (R84)")
		}
		nothingThere(t, h, b, "mbochs")
	}
}

func TestMakeTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, errno := range []syscall.Errno{syscall.EAGAIN, syscall.EINTR} {
			h := host(t)
			b := mdev.New(h.Sysfs, mdev.Options{})
			if err := h.Inject(sim.Fault{Op: "write", Path: create, Errno: errno, Times: 3}); err != nil {
				t.Fatal(err)
			}
			mustMake(t, b, want("mbochs", "mbochs-large"))
			if w, err := h.Writes(); len(w) != 4 || w[3] != (sim.Write{Path: create, Value: uuid}) || err != nil {
				t.Errorf("%s: %+v, %v", errno, w, err)
			}
			// But not for ever, and not past the caller's patience.
			if err := h.Inject(sim.Fault{Op: "write", Path: create, Errno: errno}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 1100*time.Millisecond)
			start := time.Now()
			p := want("mbochs", "mbochs-large")
			p.ID = uuid2
			_, err := b.Make(ctx, p)
			cancel()
			if gpu.CodeOf(err) != gpu.CodeUnavailable || !errors.Is(err, errno) || time.Since(start) != 1100*time.Millisecond {
				t.Error(err, time.Since(start))
			}
		}
	})
}

func TestMakeChecksTheWish(t *testing.T) {
	h := host(t)
	b := mdev.New(h.Sysfs, mdev.Options{})
	for name, tc := range map[string]struct {
		change func(*gpu.Partition)
		code   gpu.Code
	}{
		"no uuid":       {func(p *gpu.Partition) { p.ID = "" }, gpu.CodeInvalid},
		"braces":        {func(p *gpu.Partition) { p.ID = "{" + uuid + "}" }, gpu.CodeInvalid},
		"newline":       {func(p *gpu.Partition) { p.ID = uuid + "\n" }, gpu.CodeInvalid},
		"no dashes":     {func(p *gpu.Partition) { p.ID = strings.ReplaceAll(uuid, "-", "") }, gpu.CodeInvalid},
		"other handle":  {func(p *gpu.Partition) { p.Handle.MdevUUID = uuid2 }, gpu.CodeInvalid},
		"other kind":    {func(p *gpu.Partition) { p.Kind = gpu.KindVF }, gpu.CodeInvalid},
		"other parent":  {func(p *gpu.Partition) { p.Parent = "0000:08:00.4" }, gpu.CodeInvalid},
		"no gpu":        {func(p *gpu.Partition) { p.GPU = "" }, gpu.CodeNotFound},
		"no profile":    {func(p *gpu.Partition) { p.Profile = "" }, gpu.CodeProfileUnknown},
		"case (R76)":    {func(p *gpu.Partition) { p.Profile = "MBOCHS-LARGE" }, gpu.CodeProfileUnknown},
		"prefix":        {func(p *gpu.Partition) { p.Profile = "mbochs" }, gpu.CodeProfileUnknown},
		"path":          {func(p *gpu.Partition) { p.Profile = "../mbochs-large" }, gpu.CodeProfileUnknown},
		"path as gpu":   {func(p *gpu.Partition) { p.GPU = "../mdev_bus/mbochs" }, gpu.CodeNotFound},
		"native's path": {func(p *gpu.Partition) { p.Profile, p.Native = "", "../x" }, gpu.CodeProfileUnknown},
	} {
		p := want("mbochs", "mbochs-large")
		tc.change(&p)
		if _, err := b.Make(t.Context(), p); gpu.CodeOf(err) != tc.code {
			t.Errorf("%s: %v, want %s", name, err, tc.code)
		}
	}
	if w, err := h.Writes(); len(w) != 0 || err != nil {
		t.Errorf("refused wishes wrote %+v, %v", w, err)
	}

	p := want("mbochs", "")
	p.ID, p.Native, p.Parent = strings.ToUpper(uuid), "mbochs-large", "mbochs"
	if made := mustMake(t, b, p); made.ID != uuid || made.Handle.MdevUUID != uuid || made.Profile != "mbochs-large" {
		t.Errorf("%+v", made)
	}
}

// A UUID is taken on the whole host, not on one GPU.
func TestMakeTakenElsewhere(t *testing.T) {
	h := host(t)
	b := mdev.New(h.Sysfs, mdev.Options{})
	mustMake(t, b, want("mbochs", "mbochs-large"))
	for id, profile := range map[gpu.ID]string{t4: "T4-1Q", "mbochs": "mbochs-small"} {
		_, err := b.Make(t.Context(), want(id, profile))
		e, _ := errors.AsType[*gpu.Error](err)
		if gpu.CodeOf(err) != gpu.CodeConflict || len(e.Diff) != 1 {
			t.Errorf("%s: %v", id, err)
		}
	}
	if err := b.Remove(t.Context(), want(t4, "T4-1Q")); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Error(err)
	}
	if w, _ := h.Writes(); len(w) != 1 {
		t.Errorf("%+v", w)
	}
}

// EEXIST after we looked: somebody made it between.
func TestMakeLosesRace_T04(t *testing.T) {
	for profile, code := range map[string]gpu.Code{"mbochs-large": "", "mbochs-small": gpu.CodeConflict} {
		h := host(t)
		raced := &hooked{Sysfs: h.Sysfs}
		b := mdev.New(raced, mdev.Options{})
		raced.beforeWrite = func(string) {
			raced.beforeWrite = nil
			mustMake(t, mdev.New(h.Sysfs, mdev.Options{}), want("mbochs", "mbochs-large"))
		}
		made, err := b.Make(t.Context(), want("mbochs", profile))
		if code == "" && (err != nil || made.ID != uuid) || code != "" && gpu.CodeOf(err) != code {
			t.Errorf("%s: %+v, %v", profile, made, err)
		}
	}
}

// Hooked is a sysfs that a test changes in places.
type hooked struct {
	mdev.Sysfs
	beforeWrite func(path string)
	readlink    func(path, target string) string
	swallow     bool // writes succeed and do nothing
	read        []string
}

func (s *hooked) ReadEach(dir string, names ...string) ([]sysfs.File, error) {
	s.read = append(s.read, names...)
	return s.Sysfs.ReadEach(dir, names...)
}

func (s *hooked) Write(ctx context.Context, path, value string) error {
	if f := s.beforeWrite; f != nil {
		f(path)
	}
	if s.swallow {
		return nil
	}
	return s.Sysfs.Write(ctx, path, value)
}

func (s *hooked) Readlink(path string) (string, error) {
	target, err := s.Sysfs.Readlink(path)
	if s.readlink != nil && err == nil {
		target = s.readlink(path, target)
	}
	return target, err
}

// The driver says yes and does nothing, or something else.
func TestMakeReadsBack_T06(t *testing.T) {
	h := host(t)
	b := mdev.New(&hooked{Sysfs: h.Sysfs, swallow: true}, mdev.Options{})
	if _, err := b.Make(t.Context(), want("mbochs", "mbochs-large")); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Error(err)
	}
	other := &hooked{Sysfs: h.Sysfs, readlink: func(path, target string) string {
		if strings.HasSuffix(path, "/mdev_type") {
			return "../mdev_supported_types/mbochs-small"
		}
		return target
	}}
	_, err := mdev.New(other, mdev.Options{}).Make(t.Context(), want("mbochs", "mbochs-large"))
	if gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "made a mbochs-small on mbochs instead") {
		t.Error(err)
	}
	nothingThere(t, h, mdev.New(h.Sysfs, mdev.Options{}), "mbochs")
}

// A planned partition names its type's directory, and no other type is read then. But
// the name is what is meant, whatever the directory is called by now.
func TestMakeReadsOneType(t *testing.T) {
	h := host(t)
	seen := &hooked{Sysfs: h.Sysfs}
	b := mdev.New(seen, mdev.Options{VanishWait: -1})
	_, profiles, err := b.Look(t.Context(), t4)
	if err != nil {
		t.Fatal(err)
	}
	native := map[string]string{}
	for _, p := range profiles {
		native[p.Name] = p.NativeID
	}
	for name, tc := range map[string]struct {
		native string
		all    bool
	}{
		"planned":                     {native["T4-4Q"], false},
		"by name only":                {"", true},
		"directory of another":        {native["T4-1Q"], true},
		"directory that is not there": {"nvidia-9999", true},
		"no directory":                {"..", true},
		"a path":                      {"../mdev_supported_types/" + native["T4-4Q"], true},
	} {
		seen.read = nil
		p := want(t4, "T4-4Q")
		p.Native = tc.native
		made := mustMake(t, b, p)
		if made.Profile != "T4-4Q" || made.Native != native["T4-4Q"] {
			t.Errorf("%s: %+v", name, made)
		}
		others := slices.ContainsFunc(seen.read, func(f string) bool { return strings.HasPrefix(f, native["T4-8Q"]+"/") })
		if others != tc.all {
			t.Errorf("%s: read %q", name, seen.read)
		}
		if err := b.Remove(t.Context(), made); err != nil {
			t.Fatal(err)
		}
	}
}

// NVIDIA's rule: one size at a time, and EIO for another.
func TestMakeOtherSize_T40(t *testing.T) {
	h := host(t)
	b := mdev.New(h.Sysfs, mdev.Options{VanishWait: -1})
	made := mustMake(t, b, want(t4, "T4-4Q"))
	free := func() map[string]int {
		_, profiles, err := b.Look(t.Context(), t4)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]int{}
		for _, p := range profiles {
			if p.Available > 0 {
				out[p.Name] = p.Available
			}
		}
		return out
	}
	if diff := cmp.Diff(map[string]int{"T4-4A": 3, "T4-4C": 3, "T4-4Q": 3}, free()); diff != "" {
		t.Error(diff)
	}
	p := want(t4, "T4-1Q")
	p.ID = uuid2
	check := func(err error) {
		t.Helper()
		e, _ := errors.AsType[*gpu.Error](err)
		if gpu.CodeOf(err) != gpu.CodeNoCapacity || !strings.Contains(err.Error(), "another vGPU size is active on this card (T4-4Q)") {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]gpu.Blocker{{Kind: "partition", ID: uuid, Name: "T4-4Q"}}, e.Blockers); diff != "" {
			t.Error(diff)
		}
	}
	_, profiles, err := b.Look(t.Context(), t4)
	if err != nil {
		t.Fatal(err)
	}
	planned := p
	planned.Native = profiles[slices.IndexFunc(profiles, func(p gpu.Profile) bool { return p.Name == "T4-1Q" })].NativeID
	for _, p := range []gpu.Partition{p, planned} {
		_, err := b.Make(t.Context(), p)
		check(err)
	}
	if err := b.Remove(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	// The same, but the other size comes after we looked.
	for _, p := range []gpu.Partition{p, planned} {
		raced := &hooked{Sysfs: h.Sysfs}
		raced.beforeWrite = func(string) { raced.beforeWrite = nil; mustMake(t, b, want(t4, "T4-4Q")) }
		_, err = mdev.New(raced, mdev.Options{}).Make(t.Context(), p)
		check(err)
		if err := b.Remove(t.Context(), made); err != nil {
			t.Fatal(err)
		}
	}
}
