//go:build p2v

package p2v

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
	"gpuvirt/p2v/convert"
)

// A server that was shut down becomes a VM: a copy of its disk is edited and converted
// through an overlay, libvirt boots it, and the copy is what it was. What was written last
// on the server is there, its network card keeps its name and address, and what belonged
// to the bare-metal GPU does not start.
func TestConvertBIOS(t *testing.T) { convertServer(t, convert.FirmwareBIOS) }

// The same with UEFI.
func TestConvertUEFI(t *testing.T) { convertServer(t, convert.FirmwareUEFI) }

func convertServer(t *testing.T, firmware convert.Firmware) {
	ctx := t.Context()
	dir := t.TempDir()
	began := time.Now()
	lap := func(what string) {
		t.Logf("%5.1f s  %s", time.Since(began).Seconds(), what)
		began = time.Now()
	}

	server, err := Prepare(dir, string(firmware))
	if err != nil {
		t.Fatal(err)
	}
	lap("the server's disks are there")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer server.Kill()
	if err := server.Up(ctx); err != nil {
		t.Fatal(err)
	}
	lap("the server is up")
	marker := fmt.Sprintf("written-%d", time.Now().UnixNano())
	if _, err := server.SSH(ctx, "echo "+marker+" >/root/marker && sync"); err != nil {
		t.Fatal(err)
	}
	if err := server.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	lap("the server is off")

	var mirrors, before []string
	for i, disk := range server.Disks {
		mirrors = append(mirrors, filepath.Join(dir, fmt.Sprintf("mirror-%d.raw", i)))
		if err := copySparse(disk, mirrors[i]); err != nil {
			t.Fatal(err)
		}
		before = append(before, sum(t, mirrors[i]))
	}
	lap("the mirrors are there")

	scratch := filepath.Join(dir, "scratch")
	if err := os.Mkdir(scratch, 0o711); err != nil {
		t.Fatal(err)
	}
	c := convert.New(convert.Config{Scratch: scratch, Confine: confine(t, dir)})
	tools, err := c.Probe(ctx)
	if err != nil || tools.Ready() != nil {
		t.Fatal(err, tools.Ready())
	}
	lap(fmt.Sprintf("virt-v2v %s, the appliance comes up with %s", tools.InPlace.Version, tools.Appliance.State))

	overlays := func() (made []convert.Overlay) {
		for i, mirror := range mirrors {
			overlay, err := c.Overlay(ctx, mirror, filepath.Join(dir, fmt.Sprintf("%d.qcow2", i)))
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, overlay)
		}
		return made
	}
	job := convert.Job{
		Name: "metal1", Disks: overlays(), NICs: []convert.NIC{{MAC: serverMAC}},
		MemoryBytes: 1 << 30, VCPUs: 1, Dir: dir,
		Progress: func(p convert.Progress) { t.Logf("         %s: %s", p.Phase, p.Text) },
	}
	var result convert.Result
	for tried := 1; ; tried++ {
		result, err = edited(ctx, t, c, job)
		// The emulator dies now and then, as it may do to anybody: a new overlay, another try.
		if err == nil || gpu.CodeOf(err) != gpu.CodeUnavailable || tried == 3 {
			break
		}
		t.Logf("again: %v %s", err, hint(err))
		job.Disks = overlays()
	}
	if err != nil {
		t.Fatal(err, hint(err))
	}
	lap("the guest is converted")
	if result.Firmware != firmware {
		t.Errorf("virt-v2v sees %q, the server has %q", result.Firmware, firmware)
	}

	var disks []string
	for _, overlay := range job.Disks {
		disks = append(disks, overlay.Path)
	}
	vm, err := Boot(convert.Domain{
		Name: job.Name, MemoryBytes: 1 << 30, VCPUs: 1, CPU: "maximum", Firmware: firmware,
		Disks: disks, NICs: []convert.DomainNIC{{MAC: serverMAC}}, Isolated: "rehearsal",
		VFIO: true, Emulated: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	facts, err := vm.Up(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lap("the VM is up")
	for name, want := range map[string]string{
		"marker": marker, "root": server.Layout.Root, "nic": serverNIC, "mac": serverMAC, "state": "up", "address": "10.0.2.15/24",
		"nvidia-fabricmanager": "inactive", "nvidia-persistenced": "inactive", "model-server": "active", "qemu-guest-agent": "active",
		"pin": "CUDA_VISIBLE_DEVICES=0", "failed": "", "packages": "nvidia-container-toolkit,nvidia-linux-grid-580,",
	} {
		if facts[name] != want {
			t.Errorf("%s is %q in the VM, want %q", name, facts[name], want)
		}
	}
	if err := vm.Agent(ctx); err != nil {
		t.Error(err)
	}
	if err := vm.Close(); err != nil {
		t.Error(err)
	}
	for i, overlay := range job.Disks {
		if err := overlay.Check(); err != nil {
			t.Error(err)
		}
		if after := sum(t, mirrors[i]); after != before[i] {
			t.Errorf("mirror %d was written to", i)
		}
		if err := overlay.Remove(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(scratch, "run-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	lap("all is as it should be")
}

// edited edits a guest and converts it.
func edited(ctx context.Context, t *testing.T, c *convert.Converter, job convert.Job) (convert.Result, error) {
	began := time.Now()
	if _, err := c.Customize(ctx, job, edits(t)); err != nil {
		return convert.Result{}, err
	}
	t.Logf("%5.1f s  the guest is edited", time.Since(began).Seconds())
	return c.Convert(ctx, job)
}

// confine has the programs run as nobody in particular, whom the folders of the test let pass.
func confine(t *testing.T, dir string) run.Confine {
	t.Helper()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return run.Confine{UID: user, GID: user, OpenFiles: 4096, Idle: true}
}

// edits are what a plan would have for this server.
func edits(t *testing.T) []convert.Edit {
	t.Helper()
	dir, err := image()
	if err != nil {
		t.Fatal(err)
	}
	agent, err := filepath.Glob(filepath.Join(dir, "agent", "*.deb"))
	if err != nil || len(agent) == 0 {
		t.Fatal("the image has no agent", err)
	}
	// A colon parts two files for virt-customize; apt writes it as %3a.
	return []convert.Edit{
		{ID: "nic-name", Kind: convert.EditWrite, Path: "/etc/systemd/network/10-gpuvirt-" + serverNIC + ".link", Content: []byte("[Match]\nMACAddress=" + serverMAC + "\n[Link]\nName=" + serverNIC + "\n")},
		{ID: "driver-modules", Kind: convert.EditDelete, Path: "/etc/modules-load.d/nvidia.conf"},
		{ID: "driver-options", Kind: convert.EditLine, Path: "/etc/modprobe.d/nvidia.conf", Old: "options nvidia NVreg_EnableGpuFirmware=1 NVreg_PreserveVideoMemoryAllocations=1", New: "# of bare metal: options nvidia NVreg_EnableGpuFirmware=1"},
		{ID: "no-nouveau", Kind: convert.EditBlacklist, Module: "nouveau"},
		{ID: "fabric", Kind: convert.EditUnitOff, Unit: "nvidia-fabricmanager.service"},
		{ID: "persistence", Kind: convert.EditUnitOff, Unit: "nvidia-persistenced.service"},
		{ID: "pin", Kind: convert.EditLine, Path: "/etc/systemd/system/model-server.service", Old: "Environment=CUDA_VISIBLE_DEVICES=GPU-7f2b9e1c-53a4-4d0e-9c68-1b0a4f6d2e35", New: "Environment=CUDA_VISIBLE_DEVICES=0"},
		{ID: "agent", Kind: convert.EditPackages, Files: agent},
		// The driver of bare metal goes, and the guest's comes, when the VM first starts.
		{ID: "driver-remove", Kind: convert.EditFirstboot, Command: convert.FirstbootPurgeNVIDIA},
		{ID: "driver-vgpu", Kind: convert.EditFirstbootPackages, Files: []string{guestDriver(t)}},
		{ID: "driver-load", Kind: convert.EditFirstboot, Command: convert.FirstbootLoadDrivers},
		{ID: "work", Kind: convert.EditFirstbootRestart, Unit: "model-server.service"},
		{ID: "token", Kind: convert.EditWrite, Path: "/etc/nvidia/ClientConfigToken/client_configuration_token_gpuvirt.tok", Content: []byte("a token"), Mode: 0o744},
	}
}

// guestDriver is a package by the name of NVIDIA's guest driver, which is not free.
func guestDriver(t *testing.T) string {
	t.Helper()
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "nvidia-linux-grid-580_1_all.deb")
	control := "Package: nvidia-linux-grid-580\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: a stand-in\n"
	err := os.Mkdir(filepath.Join(dir, "DEBIAN"), 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "DEBIAN", "control"), []byte(control), 0o644)
	}
	if err == nil {
		_, err = output(exec.Command("dpkg-deb", "--root-owner-group", "--build", dir, file))
	}
	if err == nil { // it is read by somebody else
		err = os.Chmod(filepath.Dir(file), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func hint(err error) string {
	if f, ok := errors.AsType[*convert.Failure](err); ok {
		log, _ := os.ReadFile(f.Log)
		lines := strings.Split(string(log), "\n")
		return fmt.Sprintf("%s: %s\n%s", f.Kind, f.Remedy, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
	return ""
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
