package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gpuvirt/p2v/block"
	"gpuvirt/p2v/freeze"
	"gpuvirt/p2v/report"
)

// off is the file that is there while the server is off.
const off = "off"

// rest brings the server to rest, as far as freeze can tell.
func rest(dir string, seen report.Report) error {
	tree, err := os.MkdirTemp("", "simsource")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree) //nolint:errcheck // of a test
	if err := plant(tree, seen); err != nil {
		return err
	}
	conn, err := block.Stdio(os.Stdin, os.Stdout)
	if err != nil {
		return err
	}
	var names []string
	for _, d := range seen.Disks {
		names = append(names, d.Name)
	}
	return freeze.Serve(context.Background(), conn, names, freeze.Config{Root: tree, Kernel: kernel{dir: dir, tree: tree}, Systemctl: services(dir)})
}

// kernel is that of the server. It freezes nothing: this machine goes on.
type kernel struct{ dir, tree string }

func (k kernel) Open(string, int) (*os.File, error) { return os.Open(k.dir) }
func (kernel) Sync()                                {}
func (kernel) SyncFS(*os.File) error                { return nil }
func (kernel) Freeze(*os.File) error                { return nil }
func (kernel) Thaw(*os.File) error                  { return nil }
func (kernel) Pin()                                 {}

// PowerOff has the cable die, and this program.
func (k kernel) PowerOff() error {
	if err := os.WriteFile(filepath.Join(k.dir, off), nil, 0o600); err != nil {
		return err
	}
	_ = os.RemoveAll(k.tree)
	os.Exit(0)
	return nil
}

// services notes what is asked of systemd. All services are there, and run.
func services(dir string) freeze.Systemctl {
	return func(_ context.Context, args ...string) (string, error) {
		f, err := os.OpenFile(filepath.Join(dir, "services"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // of a test
		if err != nil {
			return "", err
		}
		_, err = fmt.Fprintln(f, strings.Join(args, " "))
		return "LoadState=loaded\nActiveState=active\n", errors.Join(err, f.Close())
	}
}

// plant writes what freeze reads of /proc and /sys: each disk has one partition that is
// mounted, to which nothing is written.
func plant(tree string, seen report.Report) error {
	files := map[string]string{
		"proc/swaps": "Filename Type Size Used Priority\n", "proc/sys/kernel/random/boot_id": seen.OS.BootID + "\n",
		"proc/sys/kernel/hung_task_panic": "0\n", "proc/sys/kernel/hung_task_timeout_secs": "120\n",
	}
	links, mounts := map[string]string{"proc/self/ns/mnt": "mnt:[1]"}, ""
	for i, d := range seen.Disks {
		part := d.Name + "p1"
		for number, at := range map[string]string{fmt.Sprintf("259:%d", 2*i): d.Name, fmt.Sprintf("259:%d", 2*i+1): d.Name + "/" + part} {
			files["sys/devices/"+at+"/dev"] = number + "\n"
			files["sys/devices/"+at+"/stat"] = strings.Repeat("0 ", 17) + "\n"
			links["sys/class/block/"+filepath.Base(at)], links["sys/dev/block/"+number] = "../../devices/"+at, "../../devices/"+at
		}
		files["sys/devices/"+d.Name+"/"+part+"/partition"] = "1\n"
		mounts += fmt.Sprintf("%d 1 259:%d / /m%d rw - ext4 /dev/%s rw\n", 30+i, 2*i+1, i, part)
	}
	files["proc/self/mountinfo"] = mounts
	write := func(name string, do func(path string) error) error {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		return do(path)
	}
	var errs []error
	for name, text := range files {
		errs = append(errs, write(name, func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }))
	}
	for name, to := range links {
		errs = append(errs, write(name, func(path string) error { return os.Symlink(to, path) }))
	}
	return errors.Join(errs...)
}
