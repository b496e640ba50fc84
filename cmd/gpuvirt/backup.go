package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func backupCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Write a copy of the daemon's store to a file", Args: takes(1),
		Long: `Write a consistent copy of the daemon's store to a file that only you can read.
A file that is there already is replaced only with --yes.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.noDryRun(cmd); err != nil {
				return err
			}
			if err := c.backup(cmd.Context(), args[0]); err != nil {
				return err
			}
			c.say("wrote %s", args[0])
			return nil
		},
	}
}

// backup writes the copy beside its place first, so that there is never half of
// one, and none is lost.
func (c *cli) backup(ctx context.Context, path string) (err error) {
	if _, err := os.Lstat(path); err == nil && !c.yes {
		return existsError(path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("cannot write the backup: %w", err)
	}
	defer func() {
		err = errors.Join(err, ignore(os.Remove(f.Name()), fs.ErrNotExist))
	}()
	err = c.client().Backup(ctx, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if c.yes {
		return os.Rename(f.Name(), path)
	}
	// A link never replaces a file that came meanwhile.
	if err := os.Link(f.Name(), path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return existsError(path)
		}
		return fmt.Errorf("cannot write the backup: %w", err)
	}
	return nil
}

func existsError(path string) error {
	return fmt.Errorf("cannot write the backup: %q is there already (--yes replaces it)", path)
}

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}
