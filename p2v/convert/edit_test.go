package convert

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

func TestRender(t *testing.T) {
	off := "/etc/systemd/system/nvidia-fabricmanager.service.d"
	for _, c := range []struct {
		edit Edit
		want []string
	}{
		{Edit{Kind: EditDelete, Path: "/etc/modules-load.d/nvidia.conf"}, []string{"--delete", "/etc/modules-load.d/nvidia.conf"}},
		{
			Edit{Kind: EditWrite, Path: "/etc/nvidia/ClientConfigToken/a.tok", Content: []byte("secret"), Mode: 0o744},
			[]string{"--mkdir", "/etc/nvidia/ClientConfigToken", "--upload", "CONTENT:/etc/nvidia/ClientConfigToken/a.tok", "--chmod", "0744:/etc/nvidia/ClientConfigToken/a.tok"},
		},
		{
			Edit{Kind: EditUnitOff, Unit: "nvidia-fabricmanager.service"},
			[]string{"--mkdir", off, "--upload", "CONTENT:" + off + "/90-gpuvirt-off.conf", "--chmod", "0644:" + off + "/90-gpuvirt-off.conf"},
		},
		{Edit{Kind: EditUnitOn, Unit: "nvidia-fabricmanager.service"}, []string{"--delete", off + "/90-gpuvirt-off.conf"}},
		{Edit{Kind: EditEnable, Unit: "getty@tty1.service"}, []string{"--run-command", "systemctl enable getty@tty1.service"}},
		{Edit{Kind: EditDisable, Unit: "smartd.service"}, []string{"--run-command", "systemctl disable smartd.service"}},
		{
			Edit{Kind: EditBlacklist, Module: "nouveau"},
			[]string{"--mkdir", "/etc/modprobe.d", "--upload", "CONTENT:/etc/modprobe.d/gpuvirt-nouveau.conf", "--chmod", "0644:/etc/modprobe.d/gpuvirt-nouveau.conf"},
		},
		{
			Edit{Kind: EditPackages, Files: []string{"/srv/qemu-guest-agent_1%3a7.2_amd64.deb"}},
			[]string{
				"--mkdir", packagesDir, "--upload", "/srv/qemu-guest-agent_1%3a7.2_amd64.deb:" + packagesDir + "/qemu-guest-agent_1%3a7.2_amd64.deb",
				"--run-command", "cd " + packagesDir + " && " + packagesCommand, "--delete", packagesDir,
			},
		},
		{
			Edit{Kind: EditFirstbootPackages, Files: []string{"/srv/nvidia-linux-grid-580_580.65.06_amd64.deb"}},
			[]string{
				"--mkdir", firstbootDir, "--upload", "/srv/nvidia-linux-grid-580_580.65.06_amd64.deb:" + firstbootDir + "/nvidia-linux-grid-580_580.65.06_amd64.deb",
				"--firstboot-command", "cd " + firstbootDir + " && " + packagesCommand + " && cd / && rm -r " + firstbootDir,
			},
		},
		{Edit{Kind: EditFirstboot, Command: FirstbootLoadDrivers}, []string{"--firstboot-command", firstbootScripts[FirstbootLoadDrivers]}},
		{Edit{Kind: EditFirstbootRestart, Unit: "serve.service"}, []string{"--firstboot-command", "systemctl reset-failed serve.service; systemctl --no-block restart serve.service"}},
		{
			Edit{Kind: EditCopy, From: "/boot/efi/EFI/debian/grubx64.efi", Path: "/boot/efi/EFI/BOOT/BOOTX64.EFI"},
			[]string{"--mkdir", "/boot/efi/EFI/BOOT", "--copy", "/boot/efi/EFI/debian/grubx64.efi:/boot/efi/EFI/BOOT/BOOTX64.EFI"},
		},
		{Edit{Kind: EditInitramfs}, []string{"--run-command", initramfsCommand}},
	} {
		c.edit.ID = "e"
		got, err := c.edit.Render()
		if d := cmp.Diff(c.want, got); d != "" || err != nil {
			t.Errorf("%s: %v %s", c.edit.Kind, err, d)
		}
	}
}

// Of a guest's packages only those of the driver go, and those that are there: what containers need
// to reach a GPU stays.
func TestPurgeNVIDIA(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"apt-get": `echo "$@" >"${0%/*}/purged"`,
		"dpkg-query": `printf '%s\n' 'installed nvidia-driver-580' 'not-installed nvidia-driver-550' 'installed libnvidia-container1:amd64' ` +
			`'installed nvidia-container-toolkit' 'config-files nvidia-kernel-common' 'installed libcuda1:i386'`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", firstbootScripts[FirstbootPurgeNVIDIA])
	cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	purged, err := os.ReadFile(filepath.Join(dir, "purged"))
	if want := "-y purge nvidia-driver-580 nvidia-kernel-common libcuda1:i386\n"; err != nil || string(purged) != want {
		t.Errorf("%q, %v, want %q", purged, err, want)
	}
}

func TestEditRefused(t *testing.T) {
	for name, e := range map[string]Edit{
		"no kind":          {},
		"unknown kind":     {Kind: "run", Path: "/etc/x"},
		"relative":         {Kind: EditDelete, Path: "etc/x"},
		"glob":             {Kind: EditDelete, Path: "/etc/*"},
		"set":              {Kind: EditDelete, Path: "/etc/[a]"},
		"brace":            {Kind: EditDelete, Path: "/etc/{a,b}"},
		"colon":            {Kind: EditWrite, Path: "/etc/a:b"},
		"dots":             {Kind: EditDelete, Path: "/etc/../usr"},
		"slash":            {Kind: EditDelete, Path: "/etc/a/"},
		"root":             {Kind: EditDelete, Path: "/"},
		"top":              {Kind: EditDelete, Path: "/etc"},
		"proc":             {Kind: EditWrite, Path: "/proc/sys/x"},
		"newline":          {Kind: EditDelete, Path: "/etc/a\nb"},
		"quote":            {Kind: EditDelete, Path: "/etc/a'b"},
		"space":            {Kind: EditDelete, Path: "/etc/a b"},
		"dollar":           {Kind: EditDelete, Path: "/etc/$(id)"},
		"long path":        {Kind: EditDelete, Path: "/etc/" + strings.Repeat("a", 1024)},
		"long content":     {Kind: EditWrite, Path: "/etc/a", Content: make([]byte, maxContent+1)},
		"mode":             {Kind: EditWrite, Path: "/etc/a", Mode: 1 << 31},
		"unit":             {Kind: EditUnitOff, Unit: "a.service; reboot"},
		"unit of no kind":  {Kind: EditUnitOff, Unit: "a"},
		"unit of an other": {Kind: EditEnable, Unit: "../a.service"},
		"later a unit":     {Kind: EditFirstbootRestart, Unit: "a.service; reboot"},
		"option":           {Kind: EditEnable, Unit: "--root=x.service"},
		"module":           {Kind: EditBlacklist, Module: "a/b"},
		"no package":       {Kind: EditPackages},
		"package":          {Kind: EditPackages, Files: []string{"/srv/a;b.deb"}},
		"package's path":   {Kind: EditPackages, Files: []string{"/srv/a:b/c.deb"}},
		"later a script":   {Kind: EditFirstbootPackages, Files: []string{"/srv/a.sh"}},
		"script":           {Kind: EditPackages, Files: []string{"/srv/a.sh"}},
		"copy of nothing":  {Kind: EditCopy, Path: "/etc/a"},
		"copy to all":      {Kind: EditCopy, From: "/etc/a", Path: "/etc/*"},
		"command":          {Kind: EditFirstboot, Command: "reboot"},
		"no line":          {Kind: EditLine, Path: "/etc/a"},
		"two lines":        {Kind: EditLine, Path: "/etc/a", Old: "a\nb"},
	} {
		e.ID = "e"
		if _, err := e.Render(); gpu.CodeOf(err) != gpu.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Edit{ID: "E 1", Kind: EditInitramfs}).Check(); err == nil {
		t.Error("an odd ID is taken")
	}
}

// What virt-customize does with an expression: Perl evaluates it for each line.
func rewrite(t *testing.T, from, to, text string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "perl", "-e", `while (<STDIN>) { eval $ENV{e}; die if $@; print STDOUT $_ or die; }`)
	cmd.Env = []string{"e=" + lineExpression(from, to)}
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && strings.Contains(string(exit.Stderr), lineNotFound) {
		return "", errors.New(lineNotFound)
	}
	return string(out), err
}

func TestLineExpression(t *testing.T) {
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip(err)
	}
	hostile := `'); system("touch /tmp/x"); # $(id) "\n @{[1]} ü`
	for _, c := range []struct{ from, to, text, want string }{
		{"a=1", "a=2", "x\na=1\na=10\n a=1\na=1", "x\na=2\na=10\n a=1\na=2"},
		{"a", "b", "a\r\nx\r\n", "b\r\nx\r\n"},
		{"a", "", "a\nc\n", "\nc\n"},
		{hostile, "safe", "x\n" + hostile + "\n", "x\nsafe\n"},
		{"safe", hostile, "safe\n", hostile + "\n"},
		{".*", "y", "x\n.*\n", "x\ny\n"},
	} {
		got, err := rewrite(t, c.from, c.to, c.text)
		if got != c.want || err != nil {
			t.Errorf("%q to %q: %q, %v; want %q", c.from, c.to, got, err, c.want)
		}
	}
	if got, err := rewrite(t, "a", "b", "x\ny\n"); err == nil || err.Error() != lineNotFound {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCustomize(t *testing.T) {
	h := newHost(t)
	c := New(h.cfg)
	job := h.job(c)
	var texts []string
	job.Progress = func(p Progress) { texts = append(texts, string(p.Phase)+" "+p.Text) }
	got, err := c.Customize(t.Context(), job, []Edit{
		{ID: "modules-load", Kind: EditDelete, Path: "/etc/modules-load.d/nvidia.conf"},
		{ID: "link", Kind: EditWrite, Path: "/etc/systemd/network/10-a.link", Content: []byte("[Match]\nMACAddress=x\n")},
		{ID: "no-nouveau", Kind: EditBlacklist, Module: "nouveau"},
		{ID: "fabric", Kind: EditUnitOff, Unit: "nvidia-fabricmanager.service"},
	})
	if err != nil {
		t.Fatal(err)
	}
	off := "/etc/systemd/system/nvidia-fabricmanager.service.d/90-gpuvirt-off.conf"
	want := []string{
		"--no-network", "--no-logfile", "--format", "qcow2", "--add", "DIR/job/0.qcow2",
		"--delete", "/etc/modules-load.d/nvidia.conf",
		"--mkdir", "/etc/systemd/network", "--upload", "RUN/001-link:/etc/systemd/network/10-a.link", "--chmod", "0644:/etc/systemd/network/10-a.link",
		"--mkdir", "/etc/modprobe.d", "--upload", "RUN/002-no-nouveau:/etc/modprobe.d/gpuvirt-nouveau.conf", "--chmod", "0644:/etc/modprobe.d/gpuvirt-nouveau.conf",
		"--mkdir", filepath.Dir(off), "--upload", "RUN/003-fabric:" + off, "--chmod", "0644:" + off,
	}
	if d := cmp.Diff(want, h.called("")); d != "" {
		t.Error(d)
	}
	wantUploads := "upload /etc/systemd/network/10-a.link [Match]\nMACAddress=x\n" +
		"upload /etc/modprobe.d/gpuvirt-nouveau.conf blacklist nouveau\noptions nouveau modeset=0\n" +
		"upload " + off + " # Of the move to a VM: this unit has nothing to do in it. Remove this file to have it back.\n[Unit]\nConditionPathExists=!/"
	if d := cmp.Diff(wantUploads, h.seen("uploads")); d != "" {
		t.Error(d)
	}
	wantTexts := []string{
		"launch [ 0.0] Examining the guest ...", "edit [ 18.3] Setting a random seed",
		"edit [ 18.4] Deleting: /etc/modules-load.d/nvidia.conf", "finish [ 19.0] Finishing off",
	}
	if d := cmp.Diff(wantTexts, texts); d != "" {
		t.Error(d)
	}
	if got.Version != "1.48.2" || got.Log != filepath.Join(job.Dir, "customize.log") {
		t.Errorf("%+v", got)
	}
	h.clean()
}

func TestCustomizeFails(t *testing.T) {
	for _, c := range []struct {
		mode, text string
		kind       FailureKind
	}{
		{"error", "no operating systems were found in the guest image", KindNoRoot},
		{"error", "multi-boot operating systems are not supported", KindSeveralRoots},
		{"error", "libguestfs error: upload: /etc/x: No space left on device", KindHostSpace},
		{"log", "gpuvirt: no such line\nvirt-customize: error: failure: setting not found", KindLine},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.tell("customize", c.mode)
			h.tell("error", c.text)
			conv := New(h.cfg)
			_, err := conv.Customize(t.Context(), h.job(conv), []Edit{{ID: "e", Kind: EditInitramfs}})
			f, ok := errors.AsType[*Failure](err)
			if !ok || f.Kind != c.kind {
				t.Errorf("%+v, %v", f, err)
			}
			h.clean()
		})
	}
}

// Nothing is run where one of the edits is refused.
func TestCustomizeRefuses(t *testing.T) {
	h := newHost(t)
	c := New(h.cfg)
	_, err := c.Customize(t.Context(), h.job(c), []Edit{{ID: "a", Kind: EditInitramfs}, {ID: "b", Kind: EditDelete, Path: "/etc/*"}})
	wantCode(t, err, gpu.CodeInvalid)
	_, err = c.Customize(t.Context(), h.job(c), make([]Edit, MaxEdits+1))
	wantCode(t, err, gpu.CodeInvalid)
	if h.seen("called") != "" {
		t.Error("it was run")
	}
}
