//go:build lab

package lab

import (
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
)

// nextschema is where make puts a package of the same tree whose store has a newer form.
const nextschema = ".cache/lab/nextschema"

// A version to come writes the store anew. Whoever goes back from it has a daemon that says
// so and does nothing, neither at once nor at a boot, while guests keep their devices; and gets on
// with the newer one, or with the copy that it made (T15).
func TestDowngradeIsRefused_T15(t *testing.T) {
	ctx := begin(t, 8*time.Minute, "mbochs")
	t.Cleanup(func() { restoreDeployed(t) })
	_, err := hypervisor.DefineGuest(ctx, "web1", GuestOptions{Start: true})
	must(t, err)
	a := attach(ctx, t, "gfx", "web1", "mbochs-small")
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))
	facts := "stat -Lc %i /sys/bus/mdev/devices/" + a.Partition + "; virsh domid web1; virsh dumpxml web1 | sha256sum; virsh dumpxml --inactive web1 | sha256sum"
	was := run(ctx, t, facts)
	untouched := func(when string) {
		t.Helper()
		if now := run(ctx, t, facts); now != was {
			t.Errorf("%s: something was touched:\n%s\n%s", when, was, now)
		}
		must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))
	}
	attached := func(when string) {
		t.Helper()
		must(t, hypervisor.WaitReady(ctx))
		if b := get[api.Assignment](ctx, t, "/v1/assignments/gfx"); b.State != "attached" || b.Partition != a.Partition || len(b.Conditions) != 0 {
			t.Errorf("%s: %+v", when, b)
		}
		untouched(when)
	}
	const says = "its schema is [0-9]*, and this version knows none newer than [0-9]*: install the newer version again, or put"

	must(t, hypervisor.Install(ctx, nextschema))
	attached("newer")
	aside := run(ctx, t, "ls /var/lib/gpuvirt/gpuvirt.db.v*.bak")
	if mode := run(ctx, t, "stat -c %a "+aside); mode != "600" || strings.Contains(aside, "\n") {
		t.Errorf("copies: %s, mode %s", aside, mode)
	}

	must(t, hypervisor.Install(ctx, "dist"))
	eventually(ctx, t, "systemctl show -P ExecMainStatus gpuvirtd", "65")
	if said := run(ctx, t, "journalctl --no-pager -o cat -u gpuvirtd -n 20 | tee /run/journal | grep -c '"+says+"' || cat /run/journal"); strings.TrimLeft(said, "0123456789") != "" || said == "0" {
		t.Errorf("it says:\n%s", said)
	}
	if got := run(ctx, t, "gpuvirtd restore >/run/said 2>&1; echo $?; grep -c '"+says+"' /run/said"); got != "65\n1" {
		t.Errorf("the restore: %s", got)
	}
	untouched("older")

	must(t, hypervisor.Install(ctx, nextschema))
	attached("newer again")

	run(ctx, t, "systemctl stop gpuvirtd && cp -p "+aside+" /var/lib/gpuvirt/gpuvirt.db")
	must(t, hypervisor.Install(ctx, "dist"))
	run(ctx, t, "systemctl start gpuvirtd")
	attached("older, with the copy")
	detach(ctx, t, "gfx")
}
