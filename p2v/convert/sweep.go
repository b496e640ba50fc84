package convert

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"gpuvirt/internal/run"
)

// Sweep ends what runs of a process that died have left running, and removes what they have
// left in the scratch folder. It is called before the first run.
func (c *Converter) Sweep(ctx context.Context) error {
	if unit := c.cfg.Confine.Unit; unit != nil {
		if err := run.StopUnits(ctx, unit.Prefix); err != nil {
			return err
		}
	} else if why := c.who(); why == "" {
		c.endOrphans()
	}
	left, err := filepath.Glob(filepath.Join(c.cfg.Scratch, "run-*"))
	if c.cfg.Secrets != "" {
		secrets, globErr := filepath.Glob(filepath.Join(c.cfg.Secrets, "run-*"))
		left, err = append(left, secrets...), errors.Join(err, globErr)
	}
	for _, dir := range left {
		err = errors.Join(err, removeTree(dir))
	}
	if err != nil {
		return fmt.Errorf("cannot clean %q: %w", c.cfg.Scratch, err)
	}
	return nil
}

// endOrphans ends the programs that those which died with us had started, such as virt-v2v's
// qemu-nbd, which would hold a disk open for ever. They are known by their user and by the
// folder of their run, which their environment names: they work in / by then.
func (c *Converter) endOrphans() {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, at := range all {
		pid, err := strconv.Atoi(filepath.Base(at))
		if err != nil || pid == os.Getpid() || !c.ours(at) {
			continue
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if c.ours(at) { // still, now that it is held
			_ = p.Kill()
		}
		_ = p.Release()
	}
}

// ours tells whether a process is one of a run's.
func (c *Converter) ours(at string) bool {
	st, err := os.Stat(at)
	if err != nil {
		return false
	}
	uid := c.cfg.Confine.UID
	if uid == 0 {
		uid = uint32(os.Geteuid()) //nolint:gosec // it is a user
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Uid != uid {
		return false
	}
	env, err := os.ReadFile(filepath.Join(at, "environ")) //nolint:gosec // of the kernel
	return err == nil && slices.ContainsFunc(strings.Split(string(env), "\x00"), func(v string) bool {
		return strings.HasPrefix(v, "TMPDIR="+filepath.Join(c.cfg.Scratch, "run-"))
	})
}
