package convert

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/gpu"
)

// EditKind is what an edit does to the guest.
type EditKind string

// The kinds of edit, and the fields that each uses.
const (
	EditDelete    EditKind = "delete"           // Path: a file, or a folder with all in it
	EditWrite     EditKind = "write"            // Path, Content, Mode; the folder is made where it is missing
	EditCopy      EditKind = "copy"             // From, Path: a file of the guest, such as a boot loader to where any firmware finds it
	EditLine      EditKind = "line"             // Path, Old, New: each line that is just Old becomes New
	EditUnitOff   EditKind = "unit-off"         // Unit: it does not start, whoever asks
	EditUnitOn    EditKind = "unit-on"          // Unit: takes an EditUnitOff back
	EditEnable    EditKind = "unit-enable"      // Unit: starts with the system
	EditDisable   EditKind = "unit-disable"     // Unit: does not start by itself
	EditBlacklist EditKind = "blacklist-module" // Module
	EditPackages  EditKind = "packages"         // Files: packages of this host, installed without a network
	// EditFirstbootPackages installs Files when the VM starts for the first time: after what
	// an EditFirstboot before it removes.
	EditFirstbootPackages EditKind = "firstboot-packages"
	EditFirstboot         EditKind = "firstboot" // Command: once, when the VM starts for the first time
	// EditFirstbootRestart restarts Unit when the VM starts for the first time, after what an edit
	// before it brought: it may have started, and failed, without that.
	EditFirstbootRestart EditKind = "firstboot-restart"
	EditInitramfs        EditKind = "initramfs" // all of them are built anew
)

// FirstbootCommand names a command that may run in the guest. There are no others: what
// a client says never becomes a command.
type FirstbootCommand string

// The commands.
const (
	// FirstbootPurgeNVIDIA removes NVIDIA's packages, or what its installer put there.
	FirstbootPurgeNVIDIA FirstbootCommand = "purge-nvidia"
	// FirstbootLoadDrivers has drivers that were installed meanwhile take the devices that are theirs.
	FirstbootLoadDrivers FirstbootCommand = "load-drivers"
)

// firstbootScripts are the commands' texts, for the guest's /bin/sh.
var firstbootScripts = map[FirstbootCommand]string{
	FirstbootPurgeNVIDIA: `if command -v nvidia-uninstall >/dev/null; then nvidia-uninstall --silent; ` +
		`elif command -v apt-get >/dev/null; then dpkg-query -W -f '${db:Status-Status} ${binary:Package}\n' '*nvidia*' 'libcuda*' 2>/dev/null | ` +
		notDrivers + ` | sed -n '/^not-installed /!s/^[^ ]* //p' | xargs -r env DEBIAN_FRONTEND=noninteractive apt-get -y purge; ` +
		`elif command -v dnf >/dev/null; then ` + driverRPMs + ` | xargs -r dnf -y remove; ` +
		`elif command -v zypper >/dev/null; then ` + driverRPMs + ` | xargs -r zypper --non-interactive remove; ` +
		`elif command -v yum >/dev/null; then ` + driverRPMs + ` | xargs -r yum -y remove; ` +
		`else echo 'nothing here removes packages' >&2; exit 1; fi`,
	FirstbootLoadDrivers: `depmod -a; udevadm trigger --action=add --subsystem-match=pci; udevadm settle`,
}

// notDrivers leaves out what containers reach a GPU with, whatever its driver is; driverRPMs are the packages
// that it leaves of NVIDIA's, where they are RPMs.
const (
	notDrivers = `grep -v 'nvidia-container\|nvidia-docker\|nvidia-ctk'`
	driverRPMs = `rpm -qa --qf '%{NAME}\n' | grep nvidia | ` + notDrivers
)

// initramfsCommand builds all initramfs anew, with whatever the guest has for it.
const initramfsCommand = `if command -v update-initramfs >/dev/null; then update-initramfs -u -k all; ` +
	`elif command -v dracut >/dev/null; then dracut --force --regenerate-all; ` +
	`elif command -v mkinitcpio >/dev/null; then mkinitcpio -P; ` +
	`else echo 'nothing here makes an initramfs' >&2; exit 1; fi`

// packagesDir is where packages lie in the guest while they are installed, firstbootDir
// where they wait for its first start.
const (
	packagesDir  = "/var/lib/gpuvirt-packages"
	firstbootDir = "/var/lib/gpuvirt-firstboot-packages"
)

// packagesCommand installs what lies in the folder it is run in, without asking or fetching
// anything.
const packagesCommand = `if command -v dpkg >/dev/null; then DEBIAN_FRONTEND=noninteractive dpkg --force-confold -i ./*.deb; ` +
	`else rpm -U --oldpackage ./*.rpm; fi`

// An Edit is one change of the guest, which a person can read before it is made.
type Edit struct {
	ID   string   `json:"id"` // of the plan: "driver-modules-load"
	What string   `json:"what"`
	Why  string   `json:"why"`
	Undo string   `json:"undo"` // what takes it back in a VM that runs; the overlay is deleted otherwise
	Kind EditKind `json:"kind"`

	Path    string           `json:"path,omitempty"`
	From    string           `json:"from,omitempty"`
	Content []byte           `json:"content,omitempty"` // at most 1 MiB
	Mode    os.FileMode      `json:"mode,omitempty"`    // permissions; 0: 0644
	Old     string           `json:"old,omitempty"`
	New     string           `json:"new,omitempty"`
	Unit    string           `json:"unit,omitempty"`
	Module  string           `json:"module,omitempty"`
	Files   []string         `json:"files,omitempty"`
	Command FirstbootCommand `json:"command,omitempty"`
}

// MaxEdits is how many are made at once.
const MaxEdits = 200

const maxContent = 1 << 20

var (
	editID   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	unitName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9:_.@-]{0,200}\.(service|socket|timer|target|mount|path|automount|swap)$`)
	module   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	// The characters that a path in a guest may have: none that virt-customize or a shell
	// reads as more than itself.
	guestPath   = regexp.MustCompile(`^(/[A-Za-z0-9._@+=-]+)+$`)
	packageFile = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+_~%-]*\.(deb|rpm)$`)
)

// Check refuses an edit that cannot be made, or that would be another one than it says.
func (e Edit) Check() error {
	refuse := func(format string, args ...any) error {
		return gpu.Errorf(gpu.CodeInvalid, "cannot make the edit %q: %s", e.ID, fmt.Sprintf(format, args...))
	}
	if !editID.MatchString(e.ID) {
		return refuse("its ID must be of small letters, digits and -")
	}
	switch e.Kind {
	case EditDelete, EditWrite, EditLine, EditCopy:
		if err := checkGuestPath(e.Path); err != nil {
			return refuse("%v", err)
		}
		if err := checkGuestPath(e.From); e.Kind == EditCopy && err != nil {
			return refuse("%v", err)
		}
	case EditUnitOff, EditUnitOn, EditEnable, EditDisable, EditFirstbootRestart:
		if !unitName.MatchString(e.Unit) {
			return refuse("%q is no name of a unit", e.Unit)
		}
	case EditBlacklist:
		if !module.MatchString(e.Module) {
			return refuse("%q is no name of a module", e.Module)
		}
	case EditPackages, EditFirstbootPackages:
		if len(e.Files) == 0 {
			return refuse("it names no package")
		}
		for _, f := range e.Files {
			if err := checkPath(f); err != nil {
				return refuse("%v", err)
			}
			if !packageFile.MatchString(filepath.Base(f)) {
				return refuse("%q is no name of a package's file", f)
			}
		}
	case EditFirstboot:
		if firstbootScripts[e.Command] == "" {
			return refuse("%q is no command that may run in a guest", e.Command)
		}
	case EditInitramfs:
	default:
		return refuse("%q is no kind of edit", e.Kind)
	}
	switch {
	case len(e.Content) > maxContent:
		return refuse("its content has more than %d bytes", maxContent)
	case e.Mode&^0o7777 != 0:
		return refuse("%o are no permissions", e.Mode)
	case strings.ContainsAny(e.Old+e.New, "\n\x00"):
		return refuse("a line has no end of line in it")
	case e.Kind == EditLine && e.Old == "":
		return refuse("it does not say which line")
	}
	return nil
}

// checkGuestPath refuses what is no plain absolute path below a folder of the system.
func checkGuestPath(p string) error {
	if len(p) > 1024 || !guestPath.MatchString(p) || path.Clean(p) != p {
		return fmt.Errorf("%q is no path of a guest: it must begin with /, be in its shortest form, and be of letters, digits and ._@+=-", p)
	}
	if strings.Count(p, "/") < 2 || slices.Contains([]string{"proc", "sys", "dev", "run"}, strings.Split(p, "/")[1]) {
		return fmt.Errorf("%q is no path that is changed from outside", p)
	}
	return nil
}

// Render returns what is done for the edit, as virt-customize would be told, for a person
// to read. Content is not in it.
func (e Edit) Render() ([]string, error) {
	if err := e.Check(); err != nil {
		return nil, err
	}
	return e.args(func(_ string, _ []byte) (string, error) { return "CONTENT", nil })
}

// dropIn is the file that keeps a unit from starting, whether it is the distribution's or
// the admin's own: masking would have to replace the latter.
func (e Edit) dropIn() string {
	return "/etc/systemd/system/" + e.Unit + ".d/90-gpuvirt-off.conf"
}

// args renders the edit. stage keeps content in a file of this host and returns its path.
func (e Edit) args(stage func(name string, content []byte) (string, error)) ([]string, error) {
	write := func(to string, content []byte, mode os.FileMode) ([]string, error) {
		from, err := stage(e.ID, content)
		if err != nil {
			return nil, err
		}
		if mode == 0 {
			mode = 0o644
		}
		// The owner is that of the staged file, who is root.
		return []string{"--mkdir", path.Dir(to), "--upload", from + ":" + to, "--chmod", fmt.Sprintf("%04o:%s", mode, to)}, nil
	}
	switch e.Kind {
	case EditDelete:
		return []string{"--delete", e.Path}, nil
	case EditWrite:
		return write(e.Path, e.Content, e.Mode)
	case EditCopy:
		return []string{"--mkdir", path.Dir(e.Path), "--copy", e.From + ":" + e.Path}, nil
	case EditLine:
		return []string{"--edit", e.Path + ":" + lineExpression(e.Old, e.New)}, nil
	case EditUnitOff:
		return write(e.dropIn(), []byte("# Of the move to a VM: this unit has nothing to do in it. Remove this file to have it back.\n[Unit]\nConditionPathExists=!/\n"), 0)
	case EditUnitOn:
		return []string{"--delete", e.dropIn()}, nil
	case EditEnable:
		return []string{"--run-command", "systemctl enable " + e.Unit}, nil
	case EditDisable:
		return []string{"--run-command", "systemctl disable " + e.Unit}, nil
	case EditBlacklist:
		text := "blacklist " + e.Module + "\n"
		if e.Module == "nouveau" {
			text += "options nouveau modeset=0\n"
		}
		return write("/etc/modprobe.d/gpuvirt-"+e.Module+".conf", []byte(text), 0)
	case EditPackages:
		return append(e.upload(packagesDir), "--run-command", "cd "+packagesDir+" && "+packagesCommand, "--delete", packagesDir), nil
	case EditFirstbootPackages:
		return append(e.upload(firstbootDir), "--firstboot-command", "cd "+firstbootDir+" && "+packagesCommand+" && cd / && rm -r "+firstbootDir), nil
	case EditFirstboot:
		return []string{"--firstboot-command", firstbootScripts[e.Command]}, nil
	case EditFirstbootRestart:
		return []string{"--firstboot-command", "systemctl reset-failed " + e.Unit + "; systemctl --no-block restart " + e.Unit}, nil
	case EditInitramfs:
		return []string{"--run-command", initramfsCommand}, nil
	default:
		return nil, e.Check()
	}
}

// upload puts packages of this host into a folder of the guest.
func (e Edit) upload(dir string) []string {
	args := []string{"--mkdir", dir}
	for _, f := range e.Files {
		args = append(args, "--upload", f+":"+dir+"/"+filepath.Base(f))
	}
	return args
}

// lineNotFound is what virt-customize's log has where a line to rewrite is not there.
const lineNotFound = "gpuvirt: no such line"

// lineExpression is Perl that virt-customize runs for each line of a file. The texts are
// in it as hexadecimal digits only, so nothing in them is ever read as Perl.
func lineExpression(from, to string) string {
	return fmt.Sprintf(`my $e = s/(\r?\n)\z// ? $1 : ''; if ($_ eq pack('H*','%s')) { $_ = pack('H*','%s'); $main::hit = 1 } $_ .= $e; `+
		`END { unless ($main::hit) { print STDERR "%s\n"; $? = 9 } }`,
		hex.EncodeToString([]byte(from)), hex.EncodeToString([]byte(to)), lineNotFound)
}

// Customize makes edits, in their order, in one go: all or an error. The overlays are of
// no use after an error, which is a *Failure. Edits that a new initramfs must have come
// before Convert, which makes one anyway.
func (c *Converter) Customize(ctx context.Context, job Job, edits []Edit) (Result, error) {
	if len(edits) > MaxEdits {
		return Result{}, gpu.Errorf(gpu.CodeInvalid, "cannot make %d edits at once: at most %d", len(edits), MaxEdits)
	}
	for _, e := range edits {
		if err := e.Check(); err != nil {
			return Result{}, err
		}
	}
	tools, err := c.ready(ctx, nameCustomize)
	if err != nil {
		return Result{}, err
	}
	s, err := c.begin(ctx, &job, tools)
	if err != nil {
		return Result{}, err
	}
	defer s.end()
	args := []string{"--no-network", "--no-logfile"}
	for _, d := range job.Disks {
		args = append(args, "--format", "qcow2", "--add", d.Path)
	}
	staged := 0
	for _, e := range edits {
		s.reads = append(s.reads, e.Files...)
		more, err := e.args(func(name string, content []byte) (string, error) {
			staged++
			file := fmt.Sprintf("%03d-%s", staged, name)
			return s.path(file), s.write(file, content, 0o644)
		})
		if err != nil {
			return Result{}, err
		}
		args = append(args, more...)
	}
	args = append(args, s.keys...)
	if err := s.run(ctx, tools.Customize, "customize.log", args...); err != nil {
		return Result{}, err
	}
	return s.result(), job.checkDisks()
}
