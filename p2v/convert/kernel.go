package convert

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// kernel finds a kernel for libguestfs's appliance where all of the host's are root's alone,
// as Ubuntu has them: the one that runs is copied to where the programs may read it. It returns
// what supermin is told of it, and nothing where it finds one by itself or there is none.
func (c *Converter) kernel() ([]string, error) {
	all, err := filepath.Glob(filepath.Join(c.cfg.Kernels, "vmlinuz-*"))
	if err != nil || c.cfg.Confine.UID == 0 {
		return nil, err
	}
	for _, path := range all {
		if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o004 != 0 {
			return nil, nil
		}
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	version := strings.TrimSpace(string(release))
	copied, err := c.copyKernel(filepath.Join(c.cfg.Kernels, "vmlinuz-"+version))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make a kernel readable for the appliance: %w", err)
	}
	return []string{"SUPERMIN_KERNEL=" + copied, "SUPERMIN_KERNEL_VERSION=" + version, "SUPERMIN_MODULES=/lib/modules/" + version}, nil
}

// copyKernel copies a kernel into the scratch folder, if it is not there yet.
func (c *Converter) copyKernel(path string) (string, error) {
	from, err := os.Open(path) //nolint:gosec // of the host
	if err != nil {
		return "", err
	}
	defer from.Close() //nolint:errcheck // it was only read
	st, err := from.Stat()
	if err != nil {
		return "", err
	}
	to := filepath.Join(c.cfg.Scratch, filepath.Base(path))
	if there, err := os.Stat(to); err == nil && there.Size() == st.Size() && there.ModTime().Equal(st.ModTime()) {
		return to, nil
	}
	out, err := os.OpenFile(to+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // for the programs to read
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, from)
	err = errors.Join(err, out.Chmod(0o644), out.Close(), os.Chtimes(to+".new", st.ModTime(), st.ModTime()))
	if err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		return "", errors.Join(err, remove(to+".new"))
	}
	return to, nil
}
