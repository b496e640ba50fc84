package host_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/host"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
	"gpuvirt/store"
)

// boot is what a boot does over what outlives a crash: the partitions come back by the
// records, before there is a daemon.
func boot(t *testing.T, dir string) {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(dir, "db", "gpuvirt.db"), store.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	gpus, err := db.GPURecords()
	records, rerr := db.PartitionRecords()
	if err := errors.Join(err, rerr, db.Close()); err != nil {
		t.Fatal(err)
	}
	bare := t.TempDir()
	if err := os.Rename(filepath.Join(dir, "sim"), filepath.Join(bare, "sim")); err != nil {
		t.Fatal(err)
	}
	l := openLab(t, bare)
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = host.Restore(ctx, gpus, records, l.inv, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Logf("the restore says %v", err)
	}
	l.stop()
	if err := errors.Join(l.sim.Close(), os.Rename(filepath.Join(bare, "sim"), filepath.Join(dir, "sim"))); err != nil {
		t.Fatal(err)
	}
}

// A daemon that dies anywhere in a change of the mode with its functions, or in the undo of
// one, carries it to an end, also after a boot: all is as before or as asked (T01, T10).
func TestCrashInModeWithFunctions_T01_T10(t *testing.T) {
	type change struct{ keeps, on, fails bool }
	for _, c := range []change{
		{false, false, false},
		{false, false, true},
		{false, true, false},
		{false, true, true},
		{true, false, false},
		{true, false, true},
		{true, true, false},
		{true, true, true},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			t.Parallel()
			card := sim.H100(string(hopper), 0)
			card.MIG.KeepsMode = c.keeps
			l := newLab(t, card.WithVGPU(false))
			l.manage(hopper)
			want, fault := cut(crashLayout), "CreateGpuInstance"
			if !c.on {
				l.mustLay(hopper, "")
				want, fault = gpu.Layout{}, sim.Activation
			}
			l.mustSetVFs(hopper, 32)
			if !c.on {
				l.mustLay(hopper, crashLayout)
			}
			if c.fails && c.on {
				l.sim.NVML.Fail(fault, 0, 1) // the second of them
			}
			if c.fails {
				l.sim.NVML.Fail(fault, mig.ErrInUse, 1)
			}
			var images []string
			l.sim.NVML.OnCall(func(sim.Call) { images = append(images, l.image()) })
			if op := l.lay(hopper, want); (op.Status == operation.Undone) != c.fails {
				t.Fatalf("%s, %+v", op.Status, op.Problem)
			}
			l.sim.NVML.OnCall(nil)
			if len(images) < 6 {
				t.Fatalf("%d images", len(images))
			}
			for i, dir := range images {
				again := t.TempDir()
				if err := os.CopyFS(again, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				boot(t, again)
				afterCrash(t, dir, fmt.Sprintf("image %d of %d", i, len(images)))
				afterCrash(t, again, fmt.Sprintf("image %d of %d, booted", i, len(images)))
			}
		})
	}
}

const crashLayout = "1g.10gb@0 3g.40gb@4"

// afterCrash has a daemon carry on what it finds, and looks at what has come of it.
func afterCrash(t *testing.T, dir, name string) {
	t.Helper()
	l := openLab(t, dir)
	defer l.stop() // there are many
	l.settled()
	s, v := l.layout(hopper), l.vfs(hopper)
	is := show(s)
	if is != crashLayout && is != "" || s.Mode.Current != (is != "") || !s.Equal || !v.Equal || len(v.Functions) != 32 {
		t.Errorf("%s: %q, %+v, %t, %d functions", name, is, s.Mode, s.Equal, len(v.Functions))
	}
}
