package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"gpuvirt/internal/run"
)

// who finds out who the programs run as, where it is said by name. It returns why nobody
// does, in words for people, or an empty text.
func (c *Converter) who() string {
	if c.known || c.cfg.User == "" {
		return ""
	}
	uid, gid, err := lookUp(c.cfg.User)
	if err != nil {
		return err.Error()
	}
	c.cfg.Confine.UID, c.cfg.Confine.GID, c.known = uid, gid, true
	// Whoever may use KVM is of the group that its device belongs to.
	if st, err := os.Stat(c.cfg.KVM); err == nil && st.Mode()&0o060 == 0o060 {
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Gid != 0 {
			c.cfg.Confine.Groups = append(slices.Clone(c.cfg.Confine.Groups), sys.Gid)
		}
	}
	return ""
}

// lookUp finds a user of this host, who must not be root.
func lookUp(name string) (uid, gid uint32, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, err
	}
	id, err1 := strconv.ParseUint(u.Uid, 10, 32)
	group, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, err
	}
	if id == 0 || group == 0 {
		return 0, 0, fmt.Errorf("%q is root, or of its group", name)
	}
	return uint32(id), uint32(group), nil
}

// scratch begins a session, of no job yet, and makes the folder that all sessions share.
//
// A run's folder is ours, and the programs' by their group: so we can write there and clean
// up without the right to write everywhere.
func (c *Converter) scratch() (*session, error) {
	uid, gid := int(c.cfg.Confine.UID), int(c.cfg.Confine.GID)
	err := os.MkdirAll(c.cfg.Scratch, 0o711) //nolint:gosec // who the programs run as passes
	if err == nil && uid != 0 {
		err = os.Chmod(c.cfg.Scratch, 0o711) //nolint:gosec // whatever the umask is
	}
	if err == nil {
		err = os.MkdirAll(c.cacheDir(), 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make a folder for the appliance: %w", err)
	}
	// Short, as sockets are made in it, whose names the kernel bounds.
	dir, err := os.MkdirTemp(c.cfg.Scratch, "run-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a folder for a run: %w", err)
	}
	s := &session{c: c, dir: dir}
	if s.kernel, err = c.kernel(); err != nil {
		s.end()
		return nil, err
	}
	if len(s.kernel) > 0 {
		_, kernel, _ := strings.Cut(s.kernel[0], "=")
		s.reads = append(s.reads, kernel)
	}
	if uid != 0 {
		//nolint:gosec // its group is the programs'
		if err := errors.Join(os.Lchown(c.cacheDir(), uid, gid), os.Lchown(dir, -1, gid), os.Chmod(dir, 0o770)); err != nil {
			s.end()
			return nil, fmt.Errorf("cannot hand over a folder: %w", err)
		}
	}
	return s, nil
}

// confine is what the programs of this session are kept from. In a unit they see of the
// hidden folders this run's own, and the disks of its job: nobody else's.
func (s *session) confine() *run.Confine {
	out := s.c.cfg.Confine
	if out.Unit == nil {
		return &out
	}
	unit := *out.Unit
	unit.Reads, unit.Writes = slices.Concat(unit.Reads, s.reads), append(slices.Clone(unit.Writes), s.dir, s.c.cacheDir())
	if s.job != nil {
		for _, d := range s.job.Disks {
			unit.Reads, unit.Writes = append(unit.Reads, d.Mirror), append(unit.Writes, d.Path)
		}
	}
	if s.secrets != "" {
		unit.Reads = append(unit.Reads, s.secrets)
	}
	out.Unit = &unit
	return &out
}

// removeTree removes a folder in which somebody else had folders: where we may not write
// everywhere (CAP_DAC_OVERRIDE), they are made ours first. Nothing runs in there any more.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	above, err := os.OpenRoot(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer above.Close() //nolint:errcheck // only looked at
	return errors.Join(take(above, filepath.Base(dir)), os.RemoveAll(dir))
}

// take makes a folder ours, with all folders in it.
func take(in *os.Root, name string) error {
	st, err := in.Lstat(name)
	if err != nil || !st.IsDir() {
		return err
	}
	if err := errors.Join(in.Lchown(name, os.Geteuid(), os.Getegid()), in.Chmod(name, 0o700)); err != nil {
		return err
	}
	root, err := in.OpenRoot(name)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only looked at
	entries, err := fs.ReadDir(root.FS(), ".")
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, take(root, e.Name()))
		}
	}
	return err
}
