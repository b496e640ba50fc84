package mdev_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sim"
	"gpuvirt/internal/sim/fixture"
	"gpuvirt/internal/sysfs"
	"gpuvirt/mdev"
)

// Types go by name: number and case are the driver's business.
func TestProfileNames_T12_T38(t *testing.T) {
	card := sim.T4(string(t4), 0)
	card.Types = []sim.Type{
		{Number: 114, Name: "NVIDIA RTX5000-Ada-1Q", Use: [2]int{1024}, Max: 2},
		{Number: 1145, Name: "NVIDIA DC-1-24QGFX", Use: [2]int{1024}, Max: 2},
		{Number: 11, Name: "GRID M60-0B", Use: [2]int{512}, Max: 2},
		{Number: 12, Name: "GRID M60-0B", Use: [2]int{512}, Max: 2},
		{Number: 13, Use: [2]int{512}, Max: 2}, // no name: an old kernel
	}
	h := host(t, card)
	b := mdev.New(h.Sysfs, mdev.Options{VanishWait: -1})
	names := func() (out []string) {
		_, profiles, err := b.Look(t.Context(), t4)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range profiles {
			out = append(out, p.Name+"="+p.NativeID)
		}
		return out
	}
	if diff := cmp.Diff([]string{
		"DC-1-24QGFX=nvidia-1145", "RTX5000-Ada-1Q=nvidia-114", "nvidia-11=nvidia-11", "nvidia-12=nvidia-12", "nvidia-13=nvidia-13",
	}, names()); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"RTX5000-ADA-1Q", "RTX5000", "M60-0B", "nvidia-1", "DC-1-24Q"} {
		if _, err := b.Make(t.Context(), want(t4, name)); gpu.CodeOf(err) != gpu.CodeProfileUnknown {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A driver of another version numbers its types anew: the name is what is meant.
	made := mustMake(t, b, want(t4, "RTX5000-Ada-1Q"))
	if err := h.Change(string(t4), func(c *sim.Card) { c.Renumber = 1000 }); err != nil {
		t.Fatal(err)
	}
	again := mustMake(t, b, made)
	if again.Native != "nvidia-1114" || again.Profile != "RTX5000-Ada-1Q" {
		t.Errorf("%+v", again)
	}
	if err := b.Remove(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	if again = mustMake(t, b, made); again.Native != "nvidia-1114" {
		t.Errorf("%+v", again)
	}
}

// The driver is not ready yet: nothing is there, nothing is wrong, and the rest of
// the host goes on.
func TestParentAppearsLate_T05_T11(t *testing.T) {
	for _, after := range []time.Duration{0, time.Second, 30 * time.Second, 90 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			h := host(t)
			b := mdev.New(h.Sysfs, mdev.Options{})
			if err := h.Appear(string(t4), after); err != nil {
				t.Fatal(err)
			}
			if after > 0 {
				<-time.After(after - time.Millisecond)
				gpus, err := gpus(t, b)
				if len(gpus) != 3 || err != nil {
					t.Error(len(gpus), err)
				}
				if _, err := b.Make(t.Context(), want(t4, "T4-1Q")); gpu.CodeOf(err) != gpu.CodeNotFound {
					t.Error(err)
				}
				mustMake(t, b, gpu.Partition{ID: uuid2, GPU: "mbochs", Profile: "mbochs-large"})
				<-time.After(time.Millisecond)
			}
			mustMake(t, b, want(t4, "T4-1Q"))
			if gpus, err := gpus(t, b); len(gpus) != 4 || err != nil {
				t.Error(len(gpus), err)
			}
		})
	}
}

func TestRebootWipes_T10(t *testing.T) {
	h := host(t)
	b := mdev.New(h.Sysfs, mdev.Options{})
	made := mustMake(t, b, want("mbochs", "mbochs-large"))
	before, err := h.BootID()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Reboot(); err != nil {
		t.Fatal(err)
	}
	if after, err := h.BootID(); after == before || err != nil {
		t.Error("the same boot", err)
	}
	nothingThere(t, h, b, "mbochs")
	again := mustMake(t, b, made)
	again.IOMMUGroup = made.IOMMUGroup
	if diff := cmp.Diff(made, again); diff != "" {
		t.Error(diff)
	}
	writes, _ := h.Writes()
	mustMake(t, b, made) // and twice is no write
	if again, _ := h.Writes(); len(again) != len(writes) {
		t.Errorf("%+v", again)
	}
}

func TestLeakedCapacity_T28(t *testing.T) {
	h := host(t)
	b := mdev.New(h.Sysfs, mdev.Options{VanishWait: -1})
	leaks := func() (out []string) {
		gpus, err := gpus(t, b)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range gpus {
			for _, c := range g.Conditions {
				out = append(out, string(g.ID)+" "+string(c.Type)+" "+c.Reason+": "+c.Message)
			}
		}
		return out
	}
	leak := func(n int) {
		for _, card := range []string{string(t4), "mbochs", "0000:00:02.0"} {
			if err := h.Change(card, func(c *sim.Card) { c.Leaked = n }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := leaks(); got != nil {
		t.Error(got)
	}
	mustMake(t, b, want(t4, "T4-16Q"))
	if got := leaks(); got != nil {
		t.Error(got) // full is not leaked
	}
	if err := b.Remove(t.Context(), want(t4, "T4-16Q")); err != nil {
		t.Fatal(err)
	}
	leak(2) // of the others, no maximum is known: nothing can be said
	if diff := cmp.Diff([]string{
		"0000:08:00.0 Degraded LeakedCapacity: 2 of 16 T4-1B are neither in use nor available: the driver has lost count of them",
	}, leaks()); diff != "" {
		t.Error(diff)
	}
	for _, p := range []gpu.Partition{want(t4, "T4-4Q"), {ID: uuid2, GPU: t4, Profile: "T4-4C"}} {
		mustMake(t, b, p)
	}
	if got := leaks(); got != nil {
		t.Error(got) // two types are in use: not certain any more
	}
}

// A parent that cannot be read is listed as unknown, and the rest as ever.
func TestUnreadableParent(t *testing.T) {
	h := host(t)
	b := mdev.New(h.Sysfs, mdev.Options{})
	mustMake(t, b, gpu.Partition{ID: gputest.NewUUID(), GPU: "mbochs", Profile: "mbochs-small"})
	for _, path := range []string{"class/mdev_bus/mbochs", "devices/virtual/mbochs/mbochs/mdev_supported_types", "devices/virtual/mbochs/mbochs/iommu_group"} {
		if err := h.Inject(sim.Fault{Path: path, Errno: syscall.EIO}); err != nil {
			t.Fatal(err)
		}
		gpus, err := gpus(t, b)
		if err != nil || len(gpus) != 4 {
			t.Fatal(len(gpus), err)
		}
		for _, g := range gpus {
			if unknown := len(g.Conditions) == 1 && g.Conditions[0].Type == gpu.Unknown; unknown != (g.ID == "mbochs") {
				t.Errorf("%s: %s: %+v", path, g.ID, g.Conditions)
			}
		}
		if err := h.Clear(""); err != nil {
			t.Fatal(err)
		}
	}
}

// The same with real files: opening a FIFO that nobody reads blocks as a driver can.
func TestRealWriteHangs_T44(t *testing.T) {
	dir := fixture.Load(t, "testdata/nvidia-legacy.txtar")
	file := filepath.Join(dir, "class/mdev_bus/0000:08:00.0/mdev_supported_types/nvidia-746/create")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := sysfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	b := mdev.New(root, mdev.Options{WriteTimeout: 20 * time.Millisecond})
	if _, err := b.Make(t.Context(), want(t4, "A2-4Q")); gpu.CodeOf(err) != gpu.CodeStuck {
		t.Fatal(err)
	}
	start := time.Now()
	if c := stuckness(t, b); len(c) != 1 || root.Hung() != 1 {
		t.Errorf("%+v", c)
	}
	if p, err := b.Partitions(t.Context(), t4); len(p) != 2 || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := b.Make(t.Context(), want(t4, "A2-4Q")); gpu.CodeOf(err) != gpu.CodeStuck || root.Hung() != 1 {
		t.Error(err, root.Hung())
	}
	if d := time.Since(start); d > time.Second { // far less, but for a busy machine
		t.Errorf("answers took %s", d)
	}

	reader, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	got := make([]byte, 36)
	if n, err := reader.Read(got); string(got[:n]) != uuid || err != nil {
		t.Errorf("%q, %v", got[:n], err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for root.Hung() > 0 {
		<-tick.C
	}
	if c := stuckness(t, b); len(c) != 0 {
		t.Errorf("%+v", c)
	}
	// Nothing was made: these files answer nothing. That is said.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Make(t.Context(), want(t4, "A2-4Q")); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Error(err)
	}
}
