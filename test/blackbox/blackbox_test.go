// Package blackbox runs the real programs on the simulated host, as a person at a
// shell would: each script in testdata is a session.
package blackbox

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gpuvirt/access/accesstest"
	"gpuvirt/internal/sim"
	"gpuvirt/p2v/source/sourcetest"
)

func TestScripts(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildmode=pie", "-tags", "libvirt_dlopen", "-o", bin+"/",
		"gpuvirt/cmd/gpuvirtd", "gpuvirt/cmd/gpuvirt", "gpuvirt/test/simhost", "gpuvirt/test/simsource")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the programs: %v: %s", err, out)
	}
	examples, err := filepath.Abs("../../packaging/examples")
	if err != nil {
		t.Fatal(err)
	}
	inspection, err := filepath.Abs("../../p2v/inspect/testdata/debian-a100.json")
	if err != nil {
		t.Fatal(err)
	}
	sshd := sourcetest.New(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("GPUVIRT_SOCKET", filepath.Join(e.WorkDir, "sock"))
			e.Setenv("EXAMPLES", examples)
			// What stands in for a server that is moved: this machine over ssh.
			e.Setenv("INSPECTION", inspection)
			e.Setenv("CREDENTIALS", sshd.Credentials)
			e.Setenv("SSHD", net.JoinHostPort(sshd.Source.Address, strconv.Itoa(sshd.Source.Port)))
			e.Setenv("SSH_USER", sshd.Source.User)
			e.Setenv("SSH_HOST_KEY", sshd.Source.HostKey)
			e.Setenv("HOST", filepath.Join(e.WorkDir, "host"))
			e.Setenv("STATE", filepath.Join(e.WorkDir, "state"))
			// A port that nothing has; nothing else here takes one.
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Setenv("ADDRESS", l.Addr().String())
			e.Setenv("URL", "https://"+l.Addr().String())
			return l.Close()
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// reboot: the simulated host loses its mdevs and its VMs stop.
			"reboot": onHost((*sim.Host).Reboot),
			// cards: a new simulated host has these, of those named in someCards.
			"cards": func(ts *testscript.TestScript, neg bool, args []string) {
				var all []sim.Card
				for i, name := range args {
					card, ok := someCards[name]
					if neg || !ok {
						ts.Fatalf("there is no card %q", name)
					}
					all = append(all, card(fmt.Sprintf("0000:4%d:00.0", i+1), 0))
				}
				h, err := sim.Open(ts.Getenv("HOST"), all...)
				ts.Check(err)
				ts.Check(h.Close())
			},
			// hide, show: the driver of a card loses it and has it again.
			"hide": onCard(func(c *sim.Card) { c.Hidden = true }),
			"show": onCard(func(c *sim.Card) { c.Hidden = false }),
			// certs: a CA and certificates, in the folder tls: ca, server, alice (a client), foreign
			// (a client of another CA), stale (a client whose certificate has expired).
			"certs": func(ts *testscript.TestScript, _ bool, _ []string) {
				dir := ts.MkAbs("tls")
				ts.Check(os.MkdirAll(dir, 0o700))
				ca, other := accesstest.NewCA(ts, "CA"), accesstest.NewCA(ts, "CA")
				ca.Write(dir, "ca")
				other.Write(dir, "other")
				for name, pair := range map[string]accesstest.Pair{
					"server": ca.Server(), "next": ca.Server(), "old": ca.Server(accesstest.Expired), "alice": ca.Client("alice"), "bob": ca.Client("bob"),
					"foreign": other.Client("alice"), "stale": ca.Client("alice", accesstest.Expired),
				} {
					pair.Write(dir, name)
				}
			},
			// until PATTERN PROGRAM ARG…: the program is run again until what it writes matches.
			"until": until,
			// fetch URL STATUS [TOKEN-FILE]: what the daemon at a URL answers, into the file fetched.
			"fetch": fetch,
			// libvirt-down, libvirt-up: the simulated libvirt stops and resumes answering.
			"libvirt-down": onHost(func(h *sim.Host) error { return h.Libvirt.SetDown(true) }),
			"libvirt-up":   onHost(func(h *sim.Host) error { return h.Libvirt.SetDown(false) }),
		},
		RequireExplicitExec: true,
	})
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("it takes a pattern and a program, and cannot be negated")
	}
	pattern := regexp.MustCompile(args[0])
	again, late := time.NewTicker(100*time.Millisecond), time.NewTimer(time.Minute)
	defer again.Stop()
	defer late.Stop()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-again.C:
		case <-late.C:
			ts.Fatalf("it has not come to that: %v", err)
		}
	}
}

func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("it takes a URL, a status and perhaps the file of a token, and cannot be negated")
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(ts.ReadFile("tls/ca.crt")))
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	r, err := http.NewRequest(http.MethodGet, args[0], nil)
	ts.Check(err)
	if len(args) == 3 {
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[2])))
	}
	res, err := c.Do(r)
	ts.Check(err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("fetched"), body, 0o600))
	if strconv.Itoa(res.StatusCode) != args[1] {
		ts.Fatalf("%s: %s", res.Status, body)
	}
}

func onHost(do func(*sim.Host) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) > 0 {
			ts.Fatalf("it takes no arguments and cannot be negated")
		}
		h, err := sim.Open(ts.Getenv("HOST"))
		ts.Check(err)
		defer h.Close()
		ts.Check(do(h))
	}
}

var someCards = map[string]func(address string, numa int) sim.Card{
	"t4": sim.T4, "a100": sim.A100, "h100": sim.H100, "flex": sim.Flex, "l40s": sim.L40S,
	"rtx": func(address string, numa int) sim.Card {
		c := sim.H100(address, numa)
		c.MIG = &sim.MIG{Model: "RTX PRO 6000 Blackwell Server Edition"}
		return c
	},
	"vgpu": func(address string, numa int) sim.Card { return sim.L40S(address, numa).WithVGPU(false) },
}

func onCard(change func(*sim.Card)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) != 1 {
			ts.Fatalf("it takes the card's address and cannot be negated")
		}
		h, err := sim.Open(ts.Getenv("HOST"))
		ts.Check(err)
		defer h.Close()
		ts.Check(h.Change(args[0], change))
	}
}
