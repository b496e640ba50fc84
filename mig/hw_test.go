//go:build hw

package mig_test

import (
	"errors"
	"os"
	"testing"

	"gpuvirt/internal/sysfs"
	"gpuvirt/mig"
	"gpuvirt/mig/migtest"
)

// On a machine with a GPU of NVIDIA: what is only read holds there too. No setting is
// changed.
func TestHardware(t *testing.T) {
	lib := mig.New(os.Getenv("NVML"))
	s, err := lib.Open()
	if errors.Is(err, mig.ErrLibraryNotFound) || errors.Is(err, mig.ErrDriverNotLoaded) {
		t.Skipf("this machine has no driver of NVIDIA: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	version, err := s.DriverVersion()
	t.Logf("driver %s, %v", version, err)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	migtest.ReadOnly(t, lib)

	fs, err := sysfs.Open(sysfs.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	b := mig.NewBackend(lib, fs, mig.Options{})
	ids, err := b.IDs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(ids) == 0 {
		t.Log("no gpu here can be cut by MIG")
	}
	for _, id := range ids {
		g, profiles, err := b.Look(t.Context(), id)
		if err != nil {
			t.Error(err)
		}
		t.Logf("%+v", g)
		for _, p := range profiles {
			t.Logf("%+v", p)
		}
		partitions, err := b.Partitions(t.Context(), id)
		if err != nil {
			t.Error(err)
		}
		for _, p := range partitions {
			t.Logf("%+v", p)
		}
		types, err := b.VGPUTypes(t.Context(), id) // none, but from a driver for hosts of VMs
		if err != nil && !errors.Is(err, mig.ErrFunctionNotFound) {
			t.Error(err)
		}
		for _, p := range types {
			t.Logf("%+v", p)
		}
		running, err := b.RunningVGPUs(t.Context(), id) // the same
		if err != nil && !errors.Is(err, mig.ErrFunctionNotFound) {
			t.Error(err)
		}
		for _, v := range running {
			t.Logf("%+v", v)
		}
		share, err := b.Timeslicing(t.Context(), id) // likewise: why there is none is no error
		if err != nil {
			t.Error(err)
		}
		t.Logf("%+v", share)
		places, err := b.Placements(t.Context(), id)
		t.Logf("%+v, %v", places, err)
	}
	modes, err := b.Modes(t.Context(), ids...)
	if err != nil || len(modes) != len(ids) {
		t.Errorf("modes of %d gpus: %+v, %v", len(ids), modes, err)
	}
	for id, m := range modes {
		t.Logf("%s: ECC %+v, compute mode %q", id, m.ECC, m.Compute)
	}
}
