package mig_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/mig/cards"
	"gpuvirt/mig/migtest"
	"gpuvirt/test/lab/nvml"
)

var target = gpu.Address{Bus: 0x41}

func simulated(t *testing.T, all ...sim.Card) *sim.Host {
	t.Helper()
	h, err := sim.Open(t.TempDir(), all...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// library is where TestMain built the look-alike.
var library string

func TestMain(m *testing.M) {
	code := 1
	dir, err := os.MkdirTemp("", "gpuvirt-nvml-")
	if err == nil {
		library, err = nvml.Build(dir)
	}
	if err == nil {
		code = m.Run()
	}
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// lookAlike sets up a host behind the real binding.
func lookAlike(t *testing.T, gpus ...nvml.GPU) (*mig.NVML, nvml.File) {
	t.Helper()
	f := nvml.File(filepath.Join(t.TempDir(), "nvml"))
	if err := f.Write(gpus...); err != nil {
		t.Fatal(err)
	}
	t.Setenv(nvml.Env, string(f))
	return mig.New(library), f
}

func TestSimulatedLibrary(t *testing.T) {
	for _, m := range cards.Models {
		t.Run(m.Name, func(t *testing.T) {
			resets := m.Name[0] == 'A'
			c := sim.A100(target.String(), 0)
			c.MIG = &sim.MIG{Model: m.Name, ResetsForMode: resets}
			h := simulated(t, sim.T4("0000:08:00.0", 0), c)
			migtest.Library(t, h.NVML, migtest.Options{
				GPU: target, Model: &m, Resets: resets,
				Use:  func(pid, instance int) error { return h.Compute(c.Name, mig.Process{PID: pid, Instance: instance}) },
				Idle: func() error { return h.Idle(c.Name) },
				Waits: func() error {
					h.NVML.Fail(sim.Activation, mig.ErrResetRequired, 1)
					return nil
				},
				Reset: func() error { return h.ResetGPU(c.Name) },
			})
			if n := h.NVML.Sessions(); n != 0 {
				t.Errorf("%d sessions are open", n)
			}
		})
	}
}

// One card of each shape: the look-alike has no table of its own.
func TestLookAlikeLibrary(t *testing.T) {
	for _, name := range []string{"A30", "A100-PCIE-40GB", "H100 80GB HBM3", "RTX PRO 6000 Blackwell Server Edition"} {
		t.Run(name, func(t *testing.T) {
			m := *model(t, name)
			resets := m.Name[0] == 'A'
			lib, f := lookAlike(t, nvml.GPU{Address: gpu.Address{Bus: 8}}, nvml.GPU{Address: target, Model: &m, Resets: resets})
			migtest.Library(t, lib, migtest.Options{
				GPU: target, Model: &m, Resets: resets,
				Use:   func(pid, instance int) error { return f.Use(target, pid, instance) },
				Idle:  func() error { return f.Idle(target) },
				Waits: func() error { return f.Fail(nvml.Activation, mig.ErrResetRequired, 1) },
				Reset: func() error { return f.Reset(target) },
			})
		})
	}
}

// A host without the driver has no library, or one that does not find its driver.
func TestOpenWithoutDriver(t *testing.T) {
	_, err := mig.New(filepath.Join(t.TempDir(), mig.DefaultPath)).Open()
	if !errors.Is(err, mig.ErrLibraryNotFound) {
		t.Errorf("without a library: %v", err)
	}
	lib, f := lookAlike(t)
	if err := os.Remove(string(f)); err != nil {
		t.Fatal(err)
	}
	if _, err := lib.Open(); !errors.Is(err, mig.ErrDriverNotLoaded) {
		t.Errorf("without a driver: %v", err)
	}
	if _, err := simulated(t, sim.Mbochs()).NVML.Open(); !errors.Is(err, mig.ErrLibraryNotFound) {
		t.Errorf("simulated, without a card: %v", err)
	}
	// The driver comes later.
	if err := f.Write(nvml.GPU{Address: target, Model: model(t, "A30")}); err != nil {
		t.Fatal(err)
	}
	migtest.ReadOnly(t, lib)
}
