// Package convert turns the mirror of a physical server's disks into disks that a VM
// boots from. It owns the overlays over the mirror, the runs of virt-v2v and
// virt-customize on them, and the definition of the VM to be.
//
// The mirror is only read: all that is changed lies in the overlays, so going back is
// to delete them. What converts and edits are programs of others, driven as they are:
// which of their options exist is asked of them, not concluded from a version. They read
// disks that nobody trusts, so they run confined, within limits, in a folder that is
// removed after them.
package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
)

// Config is what a Converter needs.
type Config struct {
	// Path is the folders where programs are looked for; nil: those of a system, and
	// /usr/libexec, where some distributions keep virt-v2v-in-place.
	Path []string
	// Scratch is a folder of the converter's own, for libguestfs's appliance and for
	// what runs leave while they go on. 2 GiB should be free there. It is made where it is not
	// there, such that who the programs run as may pass.
	Scratch string
	// Secrets is a folder in the host's memory, for passphrases while a run goes on; it is made
	// where it is not there. Empty: they lie in the run's own folder.
	Secrets string
	// User is who the programs run as, by name, and not root. It is looked for when it is
	// needed. Empty: Confine says.
	User string
	// Confine is what the programs are kept from. Of a unit, what it sees of hidden folders is
	// what a run is about.
	Confine run.Confine
	// Limits end what takes too long.
	Limits Limits
	// KVM is the device to ask the processor with; empty: /dev/kvm.
	KVM string
	// Kernels is the folder of this host's kernels; empty: /boot.
	Kernels string
	// Boot tells one boot of this host from another; empty: the kernel's boot ID. What was
	// found out of the appliance is found out anew in each.
	Boot string
}

// Limits end what takes too long. Zero values are replaced by defaults.
type Limits struct {
	// Wall is for one run of a program in all. Default 1 h.
	Wall time.Duration
	// Quiet is how long a program may say nothing, not even to its log. A guest's
	// initramfs is built in silence. Default 15 min.
	Quiet time.Duration
	// Launch is how long libguestfs's appliance may take to come up. Default 5 min.
	Launch time.Duration
	// LogBytes bounds the log of a run: its beginning, and the last 64 KiB. Default 8 MiB.
	LogBytes int64
}

// Converter drives the programs on one host. It may be used by several goroutines.
type Converter struct {
	cfg Config

	probing sync.Mutex // guards tools, and cfg.Confine until known
	tools   *Tools
	known   bool // who the programs run as
}

// New makes a Converter. It touches nothing.
func New(cfg Config) *Converter {
	if cfg.Path == nil {
		cfg.Path = []string{"/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/libexec"}
	}
	if cfg.KVM == "" {
		cfg.KVM = "/dev/kvm"
	}
	if cfg.Kernels == "" {
		cfg.Kernels = "/boot"
	}
	l := &cfg.Limits
	for _, d := range []struct {
		at  *time.Duration
		def time.Duration
	}{{&l.Wall, time.Hour}, {&l.Quiet, 15 * time.Minute}, {&l.Launch, 5 * time.Minute}} {
		if *d.at == 0 {
			*d.at = d.def
		}
	}
	if l.LogBytes == 0 {
		l.LogBytes = 8 << 20
	}
	return &Converter{cfg: cfg}
}

// Convert makes the guest on the job's overlays boot as a VM: virt-v2v puts virtio into
// its initramfs, and other device names into its files. Where it fails the error is a
// *Failure, and the overlays are of no use any more.
func (c *Converter) Convert(ctx context.Context, job Job) (Result, error) {
	tools, err := c.ready(ctx, nameInPlace)
	if err != nil {
		return Result{}, err
	}
	r, err := c.begin(ctx, &job, tools)
	if err != nil {
		return Result{}, err
	}
	defer r.end()
	input, err := job.inputXML()
	if err != nil {
		return Result{}, err
	}
	if err := r.write("input.xml", []byte(input), 0o644); err != nil {
		return Result{}, err
	}
	messages, err := r.handover("messages")
	if err != nil {
		return Result{}, err
	}
	defer messages.Close()
	args := []string{"-i", "libvirtxml", r.path("input.xml"), "-v", "--root", job.root(), "--machine-readable=file:" + messages.Name()}
	in := tools.InPlace
	var output *os.File
	if in.Has("output-xml-option") {
		if output, err = r.handover("output.xml"); err != nil {
			return Result{}, err
		}
		defer output.Close()
		args = append(args, "-O", output.Name())
	}
	if in.Has("--no-fstrim") {
		args = append(args, "--no-fstrim") // it is for who copies the overlay
	}
	args = append(args, r.keys...)
	r.messages = messages
	if err := r.run(ctx, in, "convert.log", args...); err != nil {
		return Result{}, err
	}
	result := r.result()
	if output != nil {
		if err := result.readOutput(output); err != nil {
			return Result{}, err
		}
	}
	return result, job.checkDisks()
}

// A session is one run of a program for a job, with its folder.
type session struct {
	c        *Converter
	job      *Job
	tools    Tools
	dir      string
	messages *os.File // nil: the program's messages are its lines
	watch    *watch
	again    []string // why it was tried again
	reads    []string // files of this host, beside those of the job
	secrets  string   // folder of passphrases, if there are any
	keys     []string // arguments that name them
	kernel   []string // what supermin is told of one, in its environment
}

// begin makes the folder that a run has for itself, and lets the programs at the overlays.
func (c *Converter) begin(ctx context.Context, job *Job, tools Tools) (*session, error) {
	if err := job.check(); err != nil {
		return nil, err
	}
	if err := job.checkDisks(); err != nil {
		return nil, err
	}
	s, err := c.scratch()
	if err != nil {
		return nil, err
	}
	s.job, s.tools = job, tools
	err = s.hand(ctx)
	if err == nil {
		err = s.unlock()
	}
	if err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// hand gives the overlays to who the programs run as, lets them read the mirrors, and asks
// as them whether they get there.
func (s *session) hand(ctx context.Context) error {
	limits := s.confine()
	if limits.UID == 0 {
		return nil
	}
	uid, gid := int(limits.UID), int(limits.GID)
	for _, d := range s.job.Disks {
		// In this order: who owns a file says who reads it.
		//nolint:gosec // its group is who reads it
		err := errors.Join(os.Lchown(d.Path, uid, gid), os.Lchown(d.Mirror, os.Geteuid(), gid), os.Chmod(d.Mirror, 0o640))
		if err != nil {
			return fmt.Errorf("cannot hand over %q: %w", d.Path, err)
		}
	}
	p := run.Program{Confine: limits}
	for _, d := range s.job.Disks {
		for _, test := range [][]string{{"-r", d.Mirror}, {"-w", d.Path}} {
			if _, err := p.Run(ctx, "test", test...); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return gpu.Errorf(gpu.CodeInvalid, "cannot use %q: user %d may not get at it", test[1], limits.UID).
					WithHint("the folders above it must let that user pass (mode 0711)")
			}
		}
	}
	return nil
}

// end removes the folder, whatever is in it. What cannot be removed is found by Sweep.
func (s *session) end() {
	if s.secrets != "" {
		_ = os.RemoveAll(s.secrets)
	}
	_ = removeTree(s.dir)
}

// unlock lays the job's passphrases into files that only the programs of this run see, and only who
// they run as reads.
func (s *session) unlock() (err error) {
	if len(s.job.Keys) == 0 {
		return nil
	}
	cannot := func(err error) error { return fmt.Errorf("cannot hand over passphrases: %w", err) }
	folder, uid, gid := s.dir, int(s.c.cfg.Confine.UID), int(s.c.cfg.Confine.GID)
	if s.c.cfg.Secrets != "" {
		if err := os.MkdirAll(s.c.cfg.Secrets, 0o711); err != nil { //nolint:gosec // who the programs run as passes
			return cannot(err)
		}
		if folder, err = os.MkdirTemp(s.c.cfg.Secrets, "run-"); err != nil {
			return cannot(err)
		}
		s.secrets = folder
		if uid != 0 {
			//nolint:gosec // its group is the programs'
			if err := errors.Join(os.Lchown(folder, -1, gid), os.Chmod(folder, 0o710)); err != nil {
				return cannot(err)
			}
		}
	}
	for i, k := range s.job.Keys {
		path := filepath.Join(folder, fmt.Sprintf("key-%d", i))
		err := put(path, []byte(k.Passphrase), 0o440)
		if err == nil && uid != 0 {
			err = os.Lchown(path, -1, gid)
		}
		if err != nil {
			return cannot(err)
		}
		s.keys = append(s.keys, "--key", k.Volume+":file:"+path)
	}
	return nil
}

func (s *session) path(name string) string { return filepath.Join(s.dir, name) }

// write puts a file of ours into the run's folder, for the program to read.
func (s *session) write(name string, content []byte, mode os.FileMode) error {
	return put(s.path(name), content, mode)
}

func put(path string, content []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) //nolint:gosec // a path of ours
	if err == nil {
		_, err = f.Write(content)
		err = errors.Join(err, f.Chmod(mode), f.Close())
	}
	if err != nil {
		return fmt.Errorf("cannot write %q: %w", path, err)
	}
	return nil
}

// handover makes a file that the program writes and we read. It stays open: what the
// program puts in its place is not looked at.
func (s *session) handover(name string) (*os.File, error) {
	f, err := os.OpenFile(s.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot make %q: %w", name, err)
	}
	if uid := s.c.cfg.Confine.UID; uid != 0 {
		if err := f.Chown(int(uid), int(s.c.cfg.Confine.GID)); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("cannot hand over %q: %w", name, err)
		}
	}
	return f, nil
}

// environment is what libguestfs and virt-v2v are told beside their arguments.
func (s *session) environment(tcg bool) []string {
	env := append([]string{
		"LIBGUESTFS_BACKEND=direct",
		"LIBGUESTFS_CACHEDIR=" + s.c.cacheDir(),
		"TMPDIR=" + s.dir, "VIRT_V2V_TMPDIR=" + s.dir, "HOME=" + s.dir, "XDG_RUNTIME_DIR=" + s.dir,
		"PATH=" + strings.Join(append(slices.Clone(s.c.cfg.Path), "/usr/sbin", "/usr/bin", "/sbin", "/bin"), ":"),
	}, s.kernel...)
	if tcg {
		env = append(env, "LIBGUESTFS_BACKEND_SETTINGS=force_tcg")
	}
	return env
}

// cacheDir is where libguestfs keeps its appliance, one for all runs of a user.
func (c *Converter) cacheDir() string { return filepath.Join(c.cfg.Scratch, "cache") }
