package convert

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
)

func TestConvert(t *testing.T) {
	h := newHost(t)
	c := New(h.cfg)
	job := h.job(c)
	var told []Progress
	job.Progress = func(p Progress) { told = append(told, p) }
	got, err := c.Convert(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	var phases []Phase
	for _, s := range got.Phases {
		phases = append(phases, s.Phase)
	}
	wantPhases := []Phase{PhaseSetup, PhaseLaunch, PhaseInspect, PhaseSpace, PhaseConvert, PhaseTrim, PhaseFinish}
	if d := cmp.Diff(wantPhases, phases); d != "" {
		t.Error(d)
	}
	if len(told) != 13 || told[4].Text != "Converting 12.15 to run on KVM" || told[4].Phase != PhaseConvert {
		t.Errorf("%+v", told)
	}
	got.Phases = nil
	want := Result{
		Firmware: FirmwareBIOS, System: "12.15", Version: "2.2.0", OverlayBytes: []int64{int64(128 + len(job.Disks[0].Mirror) + len("changed\n"))},
		Warnings: []string{"could not determine a way to update the configuration of Grub2"},
		Log:      filepath.Join(job.Dir, "convert.log"),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	wantArgs := []string{"-i", "libvirtxml", "RUN/input.xml", "-v", "--root", "single", "--machine-readable=file:RUN/messages"}
	if d := cmp.Diff(wantArgs, h.called("arg ")); d != "" {
		t.Error(d)
	}
	env := h.called("env ")
	for _, want := range []string{
		"LIBGUESTFS_BACKEND=direct", "LIBGUESTFS_BACKEND_SETTINGS=force_tcg", "TMPDIR=RUN/", "VIRT_V2V_TMPDIR=RUN/",
		"XDG_RUNTIME_DIR=RUN/", "LIBGUESTFS_CACHEDIR=DIR/scratch/cache",
	} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is not in %q", want, env)
		}
	}
	log, err := os.ReadFile(got.Log)
	if err != nil || !strings.Contains(string(log), "message: Inspecting the source\n") {
		t.Errorf("%q, %v", log, err)
	}
	h.clean()
}

// Debian 13's has more messages, and makes edits of its own.
func TestConvertDebian13(t *testing.T) {
	h := newHost(t)
	h.tell("v2v", "debian13")
	c := New(h.cfg)
	got, err := c.Convert(t.Context(), h.job(c))
	if err != nil {
		t.Fatal(err)
	}
	var phases []Phase
	for _, s := range got.Phases {
		phases = append(phases, s.Phase)
	}
	want := []Phase{PhaseSetup, PhaseLaunch, PhaseInspect, PhaseSpace, PhaseConvert, PhaseEdit, PhaseTrim, PhaseFinish}
	if d := cmp.Diff(want, phases); d != "" {
		t.Error(d)
	}
	if got.Firmware != FirmwareUEFI || got.System != "12.15 (debian12)" || got.Version != "2.6.0" || len(got.Warnings) != 4 {
		t.Errorf("%+v", got)
	}
}

// A newer virt-v2v is asked for more, since it can do more.
func TestConvertNewer(t *testing.T) {
	h := newHost(t)
	h.tell("v2v", "new")
	h.tell("appliance", "tcg ok\nkvm ok\n")
	h.tell("kvm", "")
	c := New(h.cfg)
	job := h.job(c)
	job.Root = "/dev/sda2"
	job.Keys = []Key{{Volume: "/dev/sda3", Passphrase: "swordfish"}}
	got, err := c.Convert(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	if got.Firmware != FirmwareUEFI || got.System != "Debian GNU/Linux 12 (bookworm)" || got.Root != "/dev/sda2" || got.Version != "2.10.0" {
		t.Errorf("%+v", got)
	}
	want := []string{
		"-i", "libvirtxml", "RUN/input.xml", "-v", "--root", "/dev/sda2", "--machine-readable=file:RUN/messages",
		"-O", "RUN/output.xml", "--no-fstrim", "--key", "/dev/sda3:file:RUN/key-0",
	}
	if d := cmp.Diff(want, h.called("arg ")); d != "" {
		t.Error(d)
	}
	if slices.ContainsFunc(h.called("env "), func(e string) bool { return strings.Contains(e, "force_tcg") }) {
		t.Error("KVM works, and is not used")
	}
	h.tell("v2v", "new-odd-output")
	if _, err := c.Convert(t.Context(), h.job(c)); err == nil || !strings.Contains(err.Error(), `"coreboot" is no firmware`) {
		t.Error(err)
	}
}

func TestInputXML(t *testing.T) {
	j := Job{
		Name: "metal1", Disks: []Overlay{{Path: "/m/0.qcow2"}, {Path: "/m/a&b.qcow2"}},
		NICs: []NIC{{MAC: "52:54:00:aa:bb:01"}}, MemoryBytes: 3 << 30, VCPUs: 4,
	}
	got, err := j.inputXML()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "input.xml", got)
}

func TestDiskName(t *testing.T) {
	for i, want := range map[int]string{0: "sda", 25: "sdz", 26: "sdaa", 51: "sdaz", 52: "sdba", 701: "sdzz", 702: "sdaaa"} {
		if got := DiskName("sd", i); got != want {
			t.Errorf("disk %d is %q, want %q", i, got, want)
		}
	}
}

func TestConvertFails(t *testing.T) {
	for _, c := range []struct {
		mode, text string
		kind       FailureKind
		code       gpu.Code
	}{
		{"error", "inspection could not detect the source guest (or physical machine) operating system.\\n\\nAssuming that you are running virt-v2v/virt-p2v on a source which is supported (and not, for example, a blank disk), then this should not happen.\\n\\nNo root device found in this operating system image.", KindNoRoot, gpu.CodeInvalid},
		{"error", "multi-boot operating systems are not supported by virt-v2v. Use the --root option to change how virt-v2v handles this.", KindSeveralRoots, gpu.CodeInvalid},
		{"error", "root device /dev/sdb1 not found.  Roots found were: /dev/sda2", KindRootGone, gpu.CodeInvalid},
		{"error", "virt-v2v is unable to convert this guest type (linux/gentoo)", KindUnsupported, gpu.CodeInvalid},
		{"error", "not enough free space for conversion on filesystem ‘/boot’.  12.5 MB free < 50 MB needed", KindSpace, gpu.CodeInvalid},
		{"error", "not enough available inodes for conversion on filesystem ‘/’.  3 inodes available < 100 inodes needed", KindInodes, gpu.CodeInvalid},
		{"error", "unable to rebuild initrd (/boot/initrd.img-6.1) because update-initramfs was not found in the guest", KindInitramfs, gpu.CodeInvalid},
		{"error", "unable to rebuild initrd (/boot/initramfs.img) because mkinitrd or dracut was not found in the guest", KindInitramfs, gpu.CodeInvalid},
		{"error", "no kernels were found in the bootloader configuration.\\n\\nThis probably indicates that virt-v2v was unable to parse the bootloader configuration of this guest.", KindKernel, gpu.CodeInvalid},
		{"error", "no bootloader detected", KindBootloader, gpu.CodeInvalid},
		{"error", "could not find bootloader mount point (/boot/efi/EFI): find0: /boot/efi/EFI: no such file or directory", KindBootloader, gpu.CodeInvalid},
		{"error", "could not find key to open LUKS encrypted /dev/sda3.\\n\\nTry using --key on the command line.\\n\\nOriginal error: cryptsetup", KindEncrypted, gpu.CodeInvalid},
		{"error", "filesystem was mounted read-only, even though we asked for it to be mounted read-write.  This usually means that the filesystem was not cleanly unmounted.", KindUnclean, gpu.CodeInvalid},
		{"error", "unable to mount the disk image for writing. This has probably happened because Windows Hibernation or Fast Restart is being used in this guest.", KindUnclean, gpu.CodeInvalid},
		{"error", "libguestfs error: e2fsck: /dev/sda2: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY", KindDamaged, gpu.CodeInvalid},
		{"error", "detected errors on the XFS filesystem on /dev/sda2", KindDamaged, gpu.CodeInvalid},
		{"error", "insufficient free space in the conversion server temporary directory /tmp (512.0M).", KindHostSpace, gpu.CodeNoCapacity},
		{"error", "libguestfs error: guestfs_launch failed.\\nThis usually means the libguestfs appliance failed to start or crashed.", KindAppliance, gpu.CodeUnavailable},
		{"error", "something new", KindUnknown, gpu.CodeInternal},
		// What it cannot say itself is seen at the end of its log …
		{"log", "qemu-nbd: No space left on device", KindHostSpace, gpu.CodeNoCapacity},
		{"log", "virt-v2v-in-place: unrecognized option '--no-fstrim'", KindTool, gpu.CodeInternal},
		{"killed", "", KindKilled, gpu.CodeUnavailable},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.tell("v2v", c.mode)
			h.tell("error", c.text)
			conv := New(h.cfg)
			_, err := conv.Convert(t.Context(), h.job(conv))
			f, ok := errors.AsType[*Failure](err)
			if !ok || f.Kind != c.kind || f.Remedy == "" || f.Log == "" {
				t.Fatalf("%#v", err)
			}
			wantCode(t, err, c.code)
			if full := fmt.Sprintf("%q has room for ", h.cfg.Scratch); (c.kind == KindHostSpace) != strings.Contains(f.Remedy, full) {
				t.Errorf("%q", f.Remedy)
			}
			if e, ok := errors.AsType[*gpu.Error](err); !ok || !strings.Contains(e.Hint, f.Remedy) {
				t.Errorf("%v", e)
			}
			h.clean()
		})
	}
}

// … but not where it did speak: a guest can write into the log.
func TestAGuestsLogIsNotBelieved(t *testing.T) {
	h := newHost(t)
	h.tell("v2v", "error")
	h.tell("error", "something new; guest says: none")
	c := New(h.cfg)
	_, err := c.Convert(t.Context(), h.job(c))
	f, ok := errors.AsType[*Failure](err)
	if !ok || f.Kind != KindUnknown || f.Phase != PhaseInspect {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestConvertPassesOverWhatIsNoMessage(t *testing.T) {
	h := newHost(t)
	h.tell("v2v", "unread")
	c := New(h.cfg)
	got, err := c.Convert(t.Context(), h.job(c))
	if d := cmp.Diff([]string{`a\x1b[31mb c`}, got.Warnings); d != "" || err != nil {
		t.Error(err, d)
	}
}

// A mirror that was written to makes the result worthless, and is told.
func TestConvertNoticesAWrittenMirror(t *testing.T) {
	h := newHost(t)
	h.tell("v2v", "write-mirror")
	c := New(h.cfg)
	_, err := c.Convert(t.Context(), h.job(c))
	wantCode(t, err, gpu.CodeStale)
}

func TestConvertAsAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root becomes another")
	}
	h := newHost(t)
	// The folder of the test, and that of its tests' folders.
	for _, dir := range []string{filepath.Dir(h.bin), filepath.Dir(filepath.Dir(h.bin))} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{h.bin, h.cfg.Scratch} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	h.cfg.Confine = run.Confine{UID: 65533, GID: 65533}
	h.tell("appliance", "tcg ok\nkvm ok\n")
	h.tell("kvm", "")
	c := New(h.cfg)
	// A KVM that only we may use is none.
	if tools, err := c.Probe(t.Context()); err != nil || tools.Appliance.State != ApplianceTCG || h.seen("tried") != "tcg" {
		t.Errorf("%+v, %v", tools.Appliance, err)
	}
	job := h.job(c)
	if _, err := c.Convert(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(h.bin, "input.xml"))
	if err != nil || st.Sys().(*syscall.Stat_t).Uid != 65533 {
		t.Errorf("it did not run as another: %v, %v", st, err)
	}
	h.clean()
	// It got the mirror to read, and nobody else did.
	mirror := job.Disks[0].Mirror
	if st, err := os.Stat(mirror); err != nil || st.Mode() != 0o640 || st.Sys().(*syscall.Stat_t).Gid != 65533 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := os.Chmod(job.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = c.Convert(t.Context(), job)
	wantCode(t, err, gpu.CodeInvalid)
	h.clean()
	// A VM has run: the mirror is that of another user, and ours again when the overlay goes.
	if err := errors.Join(os.Chown(mirror, 65532, 65532), job.Disks[0].Remove()); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(mirror); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 || st.Sys().(*syscall.Stat_t).Gid != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestJobRefused(t *testing.T) {
	h := newHost(t)
	c := New(h.cfg)
	good := h.job(c)
	for name, change := range map[string]func(*Job){
		"name":    func(j *Job) { j.Name = "a b" },
		"option":  func(j *Job) { j.Name = "-v" },
		"no disk": func(j *Job) { j.Disks = nil },
		"path":    func(j *Job) { j.Disks = []Overlay{{Path: "json:{}", Mirror: "/a"}} },
		"dots":    func(j *Job) { j.Disks = []Overlay{{Path: "/a/../b", Mirror: "/a"}} },
		"comma":   func(j *Job) { j.Disks = []Overlay{{Path: "/a,file=/b", Mirror: "/a"}} },
		"mac":     func(j *Job) { j.NICs = []NIC{{MAC: "52:54"}} },
		"root":    func(j *Job) { j.Root = "first" },
		"volume":  func(j *Job) { j.Keys = []Key{{Volume: "all", Passphrase: "x"}} },
		"none":    func(j *Job) { j.Keys = []Key{{Volume: "/dev/sda"}} },
		"lines":   func(j *Job) { j.Keys = []Key{{Volume: "/dev/sda", Passphrase: "x\ny"}} },
		"dir":     func(j *Job) { j.Dir = "job" },
	} {
		j := good
		change(&j)
		if _, err := c.Convert(t.Context(), j); err == nil {
			t.Errorf("%s: taken", name)
		} else {
			wantCode(t, err, gpu.CodeInvalid)
		}
	}
	if h.seen("called") != "" {
		t.Error("it was run")
	}
}

// What a run's programs had started ends with them, also where nobody was there to end it.
func TestSweepEndsOrphans(t *testing.T) {
	scratch := t.TempDir()
	c := New(Config{Scratch: scratch})
	started := func(dir string) *exec.Cmd {
		cmd := exec.Command("sleep", "60")
		cmd.Dir, cmd.Env = "/", []string{"TMPDIR=" + filepath.Join(scratch, dir)}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd
	}
	orphan, other := started("run-1"), started("other")
	if err := c.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := orphan.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Error("a run's:", err)
	}
	if err := other.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := other.Wait(); err == nil || err.Error() != "signal: terminated" {
		t.Error("somebody else's:", err)
	}
}

func TestSweep(t *testing.T) {
	h := newHost(t)
	c := New(h.cfg)
	for _, dir := range []string{"run-1", "cache"} {
		if err := os.MkdirAll(filepath.Join(h.cfg.Scratch, dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	h.clean()
	if _, err := os.Stat(c.cacheDir()); err != nil {
		t.Error(err)
	}
}

func TestLogIsBounded(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir, "log", logTail+100)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100_000 {
		l.line(strconv.Itoa(i))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(l.path)
	if err != nil || len(text) > logTail+200 || !strings.HasPrefix(string(text), "0\n1\n2\n") || !strings.HasSuffix(string(text), "\n99999\n") || !strings.Contains(string(text), "bytes are left out here]\n") {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}
