package convert

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
)

// FailureKind is why a guest could not be converted or edited.
type FailureKind string

// The kinds of failure.
const (
	KindNoRoot       FailureKind = "no-root"            // no system was found on the disks
	KindSeveralRoots FailureKind = "several-roots"      // a person must choose one
	KindRootGone     FailureKind = "root-not-found"     // the chosen one is not there
	KindUnsupported  FailureKind = "unsupported-system" // virt-v2v does not know it
	KindSpace        FailureKind = "no-space-in-guest"
	KindInodes       FailureKind = "no-inodes-in-guest"
	KindInitramfs    FailureKind = "no-initramfs-tool"
	KindKernel       FailureKind = "no-kernel"
	KindBootloader   FailureKind = "no-boot-loader"
	KindEncrypted    FailureKind = "encrypted"
	KindUnclean      FailureKind = "unclean-filesystem"
	KindDamaged      FailureKind = "damaged-filesystem"
	KindLine         FailureKind = "line-not-found" // of an edit
	KindAppliance    FailureKind = "appliance"      // it did not come up
	KindHostSpace    FailureKind = "no-space-on-host"
	KindSlow         FailureKind = "too-slow"
	KindSilent       FailureKind = "silent"
	KindKilled       FailureKind = "killed"  // by a signal that was not ours
	KindTool         FailureKind = "tool"    // it does not understand how it is called
	KindUnknown      FailureKind = "unknown" // see the log
)

// A Failure is why a guest could not be converted or edited. The overlays are of no use
// any more: they are made anew before another try.
type Failure struct {
	Kind   FailureKind `json:"kind"`
	Phase  Phase       `json:"phase"`
	Text   string      `json:"text"`   // the program's words, or ours
	Remedy string      `json:"remedy"` // what a person can do
	Log    string      `json:"log"`    // file on this host

	early bool // nothing was written yet
	err   error
}

func (f *Failure) Error() string { return f.err.Error() }

// Unwrap returns a *gpu.Error with the remedy as its hint.
func (f *Failure) Unwrap() error { return f.err }

// A pattern tells a kind of failure by what a program says. all must be in its text.
type pattern struct {
	all    []string
	kind   FailureKind
	code   gpu.Code
	remedy string
}

// neverUp is what libguestfs says of an appliance that died before it looked at a disk.
const neverUp = "guestfs_launch failed"

// noSpace is what programs say where a filesystem is full.
const noSpace = "No space left on device"

// said are the words of virt-v2v and virt-customize, of versions 2.2 to 2.13 and 1.48 to
// 1.54. The first that fits counts, so the particular comes before the general.
var said = []pattern{
	{
		[]string{"multi-boot operating systems are not supported"},
		KindSeveralRoots, gpu.CodeInvalid,
		"the disks hold several systems: choose the device of one as the root",
	},
	{
		[]string{"multi-boot"},
		KindSeveralRoots, gpu.CodeInvalid,
		"the disks hold several systems: choose the device of one as the root",
	},
	{
		[]string{"root device ", " not found"},
		KindRootGone, gpu.CodeInvalid,
		"choose one of the roots that were found",
	},
	{
		[]string{"could not find key to open LUKS"},
		KindEncrypted, gpu.CodeInvalid,
		"give a passphrase of the volume; where only a TPM opens it, add a passphrase on the server first",
	},
	{
		[]string{"could not read key from user"}, // that there is none at all
		KindEncrypted, gpu.CodeInvalid,
		"give a passphrase of each encrypted volume, by what it lies on or the UUID of its header",
	},
	{
		[]string{"No root device found"},
		KindNoRoot, gpu.CodeInvalid,
		"check that all disks of the server were copied, the one it starts from among them; encrypted volumes need a key",
	},
	{
		[]string{"no operating systems were found"},
		KindNoRoot, gpu.CodeInvalid,
		"check that all disks of the server were copied, the one it starts from among them; encrypted volumes need a key",
	},
	{
		[]string{"inspection could not detect"},
		KindNoRoot, gpu.CodeInvalid,
		"the system on the disks is not known to libguestfs of this host: a newer one may know it",
	},
	{
		[]string{"unable to convert this guest type"},
		KindUnsupported, gpu.CodeInvalid,
		"virt-v2v of this host cannot convert that system: a newer one may",
	},
	{
		[]string{"not enough free space for conversion on filesystem"},
		KindSpace, gpu.CodeInvalid,
		"make room on that filesystem of the server, such as by removing old kernels, and copy once more",
	},
	{
		[]string{"not enough available inodes"},
		KindInodes, gpu.CodeInvalid,
		"remove small files from that filesystem of the server, and copy once more",
	},
	{
		[]string{"unable to rebuild initrd", "not found in the guest"},
		KindInitramfs, gpu.CodeInvalid,
		"install what makes the initramfs on the server (initramfs-tools or dracut), and copy once more",
	},
	{
		[]string{"no kernels were found in the bootloader"},
		KindKernel, gpu.CodeInvalid,
		"the boot loader of the server lists no kernel that is there: let it write its configuration anew, and copy once more",
	},
	{
		[]string{"no installed kernel packages were found"},
		KindKernel, gpu.CodeInvalid,
		"the server has no kernel that its packages know: install one, and copy once more",
	},
	{
		[]string{"no bootloader detected"},
		KindBootloader, gpu.CodeInvalid,
		"only GRUB is known: it needs its grub.cfg below /boot, or on the EFI partition for UEFI",
	},
	{
		[]string{"could not find bootloader mount point"},
		KindBootloader, gpu.CodeInvalid,
		"the server's fstab must name /boot and, for UEFI, /boot/efi: complete it, and copy once more",
	},
	{
		[]string{"mounted read-only, even though"},
		KindUnclean, gpu.CodeInvalid,
		"the filesystem was in use when it was copied: cut over with the server's services stopped, or with it shut down",
	},
	{
		[]string{"unable to mount the disk image for writing"},
		KindUnclean, gpu.CodeInvalid,
		"the system hibernates: turn that off on the server, shut it down fully, and copy once more",
	},
	{
		[]string{"detected errors on the XFS filesystem"},
		KindDamaged, gpu.CodeInvalid,
		"have the filesystem checked on the server, and copy once more",
	},
	{
		[]string{"e2fsck"},
		KindDamaged, gpu.CodeInvalid,
		"the filesystem has errors: it was in use when it was copied, or is damaged on the server; check it there",
	},
	{
		[]string{"btrfs_scrub"},
		KindDamaged, gpu.CodeInvalid,
		"the filesystem has errors: check it on the server",
	},
	{
		[]string{"insufficient free space in the conversion server"},
		KindHostSpace, gpu.CodeNoCapacity,
		"make room in the scratch folder of this host: virt-v2v wants 1 GiB",
	},
	{
		[]string{noSpace},
		KindHostSpace, gpu.CodeNoCapacity,
		"make room where the overlays and the scratch folder of this host are",
	},
	{
		[]string{neverUp},
		KindAppliance, gpu.CodeUnavailable,
		"run libguestfs-test-tool on this host",
	},
	{
		[]string{"appliance closed the connection"},
		KindAppliance, gpu.CodeUnavailable,
		"the appliance died: see the log; too little memory on this host is a usual cause",
	},
	{
		[]string{"supermin"},
		KindAppliance, gpu.CodeUnavailable,
		"the appliance cannot be made: a kernel under /boot must be readable to who the programs run as",
	},
	{
		[]string{"unrecognized option"},
		KindTool, gpu.CodeInternal,
		"this version of the program is not known here",
	},
}

// failure tells why a program did not end well: what ended it, or what it said.
func (s *session) failure(tool Tool, cause, err error, out, log string) *Failure {
	w := s.watch
	w.mu.Lock()
	f := &Failure{Kind: KindUnknown, Phase: w.phase, Text: strings.Join(w.failures, "; "), Log: log}
	w.mu.Unlock()
	code := gpu.CodeInternal
	exit, exited := errors.AsType[*run.ExitError](err)
	switch {
	case errors.Is(cause, errLaunch):
		f.Kind, f.Text, code = KindAppliance, errLaunch.Error(), gpu.CodeUnavailable
		f.Remedy = "run libguestfs-test-tool on this host"
	case errors.Is(cause, errWall):
		f.Kind, f.Text, code = KindSlow, fmt.Sprintf("it was ended after %s", s.c.cfg.Limits.Wall), gpu.CodeUnavailable
		f.Remedy = "give it more time, or a host whose KVM works"
	case errors.Is(cause, errQuiet):
		f.Kind, f.Text, code = KindSilent, fmt.Sprintf("it had said nothing for %s", s.c.cfg.Limits.Quiet), gpu.CodeUnavailable
		f.Remedy = "see the log for where it stopped"
	case cause != nil && !errors.Is(cause, context.Canceled):
		f.Text = cause.Error()
	case exited && exit.Code < 0 || exited && exit.Code > 128:
		f.Kind, f.Text, code = KindKilled, "a signal ended it", gpu.CodeUnavailable
		f.Remedy = "the kernel's log tells whether memory ran out"
		if exit.OutOfMemory {
			f.Text, f.Remedy = "it took more memory than a conversion may", "see the log for what it did"
		}
	default:
		// Its own words count; of its log, where a guest may write too, only the end of
		// what the program itself cannot say any more.
		code = f.classify(f.Text)
		if f.Kind == KindUnknown && strings.Contains(out, lineNotFound) {
			f.Kind, f.Text, code = KindLine, "a line that was to be rewritten is not there", gpu.CodeInvalid
			f.Remedy = "the file on the server is not as it was when the move was planned: plan it anew"
		}
		if f.Kind == KindUnknown && f.Text == "" {
			code = f.classify(lastLines(out, 20))
			f.Text = tidy(err.Error())
		}
	}
	if f.Kind == KindHostSpace {
		f.Remedy += "; " + roomIn(s.c.cfg.Scratch)
	}
	f.early = f.Kind == KindAppliance && strings.Contains(f.Text, neverUp)
	if f.Remedy == "" {
		f.Remedy = "see the log"
	}
	f.err = gpu.Errorf(code, "cannot finish %s for %q: %s", tool.Name, s.job.Name, f.Text).
		WithHint("%s (%s)", f.Remedy, f.Log)
	return f
}

func (f *Failure) classify(text string) gpu.Code {
	for _, p := range said {
		fits := true
		for _, part := range p.all {
			fits = fits && strings.Contains(text, part)
		}
		if fits {
			f.Kind, f.Remedy = p.kind, p.remedy
			return p.code
		}
	}
	return gpu.CodeInternal
}

// roomIn says how much room there is in a folder.
func roomIn(folder string) string {
	var in syscall.Statfs_t
	if err := syscall.Statfs(folder, &in); err != nil {
		return fmt.Sprintf("it is not known how much there is in %q: %v", folder, err)
	}
	return fmt.Sprintf("%q has room for %d bytes", folder, int64(in.Bavail)*in.Bsize) //nolint:gosec // it is a size
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
