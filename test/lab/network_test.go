//go:build lab

package lab

import (
	"context"
	"strings"
	"testing"
	"time"

	"gpuvirt/access/accesstest"
)

// The unit of the package serves the network where it is configured, and not before; where a
// drop-in forbids it the daemon says so, and serves its socket all the same.
func TestNetwork(t *testing.T) {
	ctx := begin(t, 3*time.Minute, "mbochs")
	const (
		config = "/etc/gpuvirt/gpuvirtd.d/10-network.yaml"
		dropIn = "/etc/systemd/system/gpuvirtd.service.d/closed.conf"
		ask    = "gpuvirt --url https://127.0.0.1:8443 --ca-file /etc/gpuvirt/tls/ca.crt --token-file /root/ci.token"
	)
	t.Cleanup(func() { // the next scenario finds what Deploy leaves
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		run(ctx, t, "rm -rf /etc/gpuvirt/tls "+config+" "+dropIn+" /root/ci.token; systemctl daemon-reload; systemctl restart gpuvirtd")
		must(t, hypervisor.WaitReady(ctx))
	})
	ca := accesstest.NewCA(t, "lab")
	server := ca.Server()
	run(ctx, t, "install -d -m 0755 /etc/gpuvirt/tls")
	must(t, hypervisor.Write(ctx, "/etc/gpuvirt/tls/ca.crt", ca.PEM, 0o644))
	must(t, hypervisor.Write(ctx, "/etc/gpuvirt/tls/server.crt", server.Cert, 0o644))
	must(t, hypervisor.Write(ctx, "/etc/gpuvirt/tls/server.key", server.Key, 0o600))
	run(ctx, t, "gpuvirt token create ci --role viewer --secret-file /root/ci.token")
	if got := run(ctx, t, ask+" gpu list 2>&1 || true"); !strings.Contains(got, "connection refused") {
		t.Errorf("there is a port that nobody asked for: %s", got)
	}
	must(t, hypervisor.Write(ctx, config, []byte("tls: {listen: '0.0.0.0:8443', certificate: /etc/gpuvirt/tls/server.crt, key: /etc/gpuvirt/tls/server.key}\n"), 0o644))
	run(ctx, t, "gpuvirtd check-config && systemctl restart gpuvirtd")
	must(t, hypervisor.WaitReady(ctx))
	if got := run(ctx, t, ask+" gpu list -o name"); !strings.Contains(got, "mbochs") {
		t.Errorf("over the network: %s", got)
	}
	if got := run(ctx, t, "journalctl -u gpuvirtd -b -o cat"); strings.Contains(got, "gpuvirt_01") || strings.Contains(got, "PRIVATE") {
		t.Error("the journal holds a secret")
	}

	run(ctx, t, "mkdir -p $(dirname "+dropIn+"); printf '[Service]\\nRestrictAddressFamilies=\\nRestrictAddressFamilies=AF_UNIX AF_NETLINK\\n' >"+dropIn+"; systemctl daemon-reload; systemctl restart gpuvirtd")
	must(t, hypervisor.WaitReady(ctx))
	if got := run(ctx, t, "gpuvirt health"); !strings.Contains(got, "RestrictAddressFamilies") {
		t.Errorf("closed by a drop-in: %s", got)
	}
}
