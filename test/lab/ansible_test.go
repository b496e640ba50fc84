//go:build lab

package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
)

// controller runs Ansible on this machine against the hypervisor, over ssh.
type controller struct {
	dir string
	env []string
}

// newController lays the collection out as Ansible finds it.
func newController(t *testing.T) controller {
	t.Helper()
	c := controller{dir: t.TempDir()}
	collection := filepath.Join(c.dir, "collections/ansible_collections/gpuvirt/gpuvirt")
	must(t, os.CopyFS(collection, os.DirFS(filepath.Join(hypervisor.repo, "ansible"))))
	ssh := "-F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=60"
	inventory := fmt.Sprintf(
		"all:\n  hosts:\n    lab:\n      ansible_host: 127.0.0.1\n      ansible_port: %d\n      ansible_user: root\n      ansible_ssh_private_key_file: %s\n"+
			"      ansible_ssh_common_args: '%s'\n      ansible_python_interpreter: /usr/bin/python3\n",
		hypervisor.port, hypervisor.path("key"), ssh)
	c.write(t, "inventory.yml", inventory)
	c.write(t, "ansible.cfg", "[defaults]\n")
	c.env = append(os.Environ(),
		"ANSIBLE_CONFIG="+filepath.Join(c.dir, "ansible.cfg"), "ANSIBLE_HOME="+filepath.Join(c.dir, "home"),
		"ANSIBLE_COLLECTIONS_PATH="+filepath.Join(c.dir, "collections"), "ANSIBLE_COLLECTIONS_PATHS="+filepath.Join(c.dir, "collections"),
		"ANSIBLE_CALLBACK_PLUGINS="+filepath.Join(hypervisor.repo, "ansible/tests/callbacks"), "ANSIBLE_CALLBACKS_ENABLED=record",
		"ANSIBLE_PIPELINING=true", "ANSIBLE_TIMEOUT=120", "ANSIBLE_SSH_CONTROL_PATH_DIR="+filepath.Join(c.dir, "cp"), "ANSIBLE_NOCOLOR=1", "LC_ALL=C.UTF-8",
		"RECORD="+filepath.Join(c.dir, "record"))
	return c
}

func (c controller) write(t *testing.T, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600))
}

// play plays a book and returns the tasks that changed something, each once, sorted.
func (c controller) play(ctx context.Context, t *testing.T, book string, args ...string) []string {
	t.Helper()
	record := filepath.Join(c.dir, "record")
	must(t, os.RemoveAll(record))
	args = append([]string{"-i", filepath.Join(c.dir, "inventory.yml"), "--diff"}, append(args, filepath.Join(c.dir, book))...)
	cmd := exec.CommandContext(ctx, "ansible-playbook", args...) //nolint:gosec // this test's own books
	cmd.Env, cmd.Dir, cmd.WaitDelay = c.env, c.dir, 15*time.Second
	began := time.Now()
	defer func() { t.Logf("%s in %.0f s", strings.Join(args[2:], " "), time.Since(began).Seconds()) }()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	f, err := os.Open(record)
	must(t, err)
	defer f.Close()
	var changed []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var task struct {
			Task            string
			Changed, Failed bool
		}
		must(t, json.Unmarshal(lines.Bytes(), &task))
		if task.Failed {
			t.Errorf("%s failed", task.Task)
		}
		if task.Changed && !slices.Contains(changed, task.Task) {
			changed = append(changed, task.Task)
		}
	}
	must(t, lines.Err())
	slices.Sort(changed)
	return changed
}

// change plays a book as a check and in earnest.
func (c controller) change(ctx context.Context, t *testing.T, book string, want ...string) {
	t.Helper()
	said := c.play(ctx, t, book, "--check")
	did := c.play(ctx, t, book)
	if !slices.Equal(said, did) || !slices.Equal(did, want) {
		t.Errorf("%s: the check said %q, it did %q, want %q", book, said, did, want)
	}
}

const hostPlay = `- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: gpuvirt.gpuvirt.host}
      vars:
        gpuvirt_package_file: %s
        gpuvirt_gpus: [{id: mbochs, labels: {by: ansible}}]
        gpuvirt_config: {log: {level: debug}}
`

const gpusPlay = `- hosts: all
  gather_facts: false
  tasks:
    - name: Give web1 a partition
      gpuvirt.gpuvirt.assignment: {name: gfx, vm: web1, profile: mbochs-small}
`

// A real ansible-playbook, over ssh: a host that has nothing gets the package, a GPU is managed
// and a guest that runs has a piece of it. Each check says exactly what is then done, and the
// second run of it all does nothing.
func TestAnsible(t *testing.T) {
	ctx := Scenario(t, hypervisor, 20*time.Minute)
	fresh(ctx, t)
	debs, err := filepath.Glob(filepath.Join(hypervisor.repo, "dist", "gpuvirt_*.deb"))
	must(t, err)
	if len(debs) != 1 {
		t.Fatalf("packages: %q", debs)
	}
	run(ctx, t, "dpkg -P gpuvirt; rm -rf /var/lib/gpuvirt /etc/gpuvirt /var/tmp/gpuvirt*")
	t.Cleanup(func() { run(context.Background(), t, "rm -rf /etc/gpuvirt"); restoreDeployed(t) })
	_, err = hypervisor.DefineGuest(ctx, "web1", GuestOptions{Start: true})
	must(t, err)

	c := newController(t)
	c.write(t, "host.yml", fmt.Sprintf(hostPlay, debs[0]))
	c.write(t, "gpus.yml", gpusPlay)
	c.write(t, "site.yml", "- import_playbook: host.yml\n- import_playbook: gpus.yml\n")
	role := func(tasks ...string) (out []string) {
		for _, task := range tasks {
			out = append(out, "gpuvirt.gpuvirt.host : "+task)
		}
		slices.Sort(out)
		return out
	}
	c.change(ctx, t, "host.yml", role(
		"Make the folders of the configuration", "Write the configuration", "Bring the package", "Install the package", "Put the GPUs under management")...)
	must(t, hypervisor.WaitReady(ctx))
	if got := run(ctx, t, "systemctl is-enabled gpuvirtd; systemctl is-active gpuvirtd; gpuvirt config show | grep -c '^log.level *debug'"); got != "enabled\nactive\n1" {
		t.Errorf("the daemon: %s", got)
	}
	g := get[api.GPU](ctx, t, "/v1/gpus/mbochs")
	if !g.Managed || g.Labels["by"] != "ansible" {
		t.Errorf("%+v", g)
	}
	for _, other := range list[api.GPU](ctx, t, "/v1/gpus?managed=true") {
		if other.ID != "mbochs" {
			t.Errorf("%s is managed", other.ID)
		}
	}

	// What changes on a host that runs is predicted as well, its handler too.
	c.write(t, "host.yml", strings.Replace(fmt.Sprintf(hostPlay, debs[0]), "debug", "info", 1))
	c.change(ctx, t, "site.yml", append([]string{"Give web1 a partition"}, role("Restart gpuvirtd", "Write the configuration")...)...)
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))
	if a := get[api.Assignment](ctx, t, "/v1/assignments/gfx"); a.State != "attached" || !a.Attached.Live || !a.Attached.Config {
		t.Errorf("%+v", a)
	}
	if again := c.play(ctx, t, "site.yml"); len(again) != 0 {
		t.Errorf("the second run changed %q", again)
	}
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))
	detach(ctx, t, "gfx")
}
