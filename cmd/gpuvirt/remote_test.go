package main

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuvirt/access/accesstest"
	"gpuvirt/api"
)

// startRemote serves a fake over the network, to clients with a certificate of ca, and to
// others if they send the secret.
func startRemote(t *testing.T, ca *accesstest.CA, edits ...func(*x509.Certificate)) (f *fake, url string) {
	t.Helper()
	f, _ = startFake(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 && r.Header.Get("Authorization") != "Bearer "+secret {
			answer(w, &api.Problem{Status: 401, Code: "unauthorized", Detail: "cannot tell who asks"})
			return
		}
		f.ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Server(edits...).TLS()}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ca.Pool()}
	s.StartTLS()
	t.Cleanup(s.Close)
	return f, strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
}

// How a daemon on the network is reached, and what is said where it is not.
func TestRemote(t *testing.T) {
	dir := t.TempDir()
	ca, other := accesstest.NewCA(t, "ca"), accesstest.NewCA(t, "other")
	_, url := startRemote(t, ca)
	_, expired := startRemote(t, ca, accesstest.Expired)
	_, named := startRemote(t, ca, func(c *x509.Certificate) { c.IPAddresses = nil })
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	caFile, otherFile := ca.Write(dir, "ca"), other.Write(dir, "other")
	cert, key := ca.Client("alice").Write(dir, "alice")
	foreign, foreignKey := other.Client("alice").Write(dir, "foreign")
	stale, staleKey := ca.Client("alice", accesstest.Expired).Write(dir, "stale")
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	token := write("token", secret+"\n", 0o600)
	open := write("open", secret, 0o644)
	wrong := write("wrong", "gpuvirt_nonsense", 0o600)
	two := write("two", secret+"\n"+secret, 0o600)
	for name, tc := range map[string]struct {
		line   string
		env    remote
		code   int
		stderr string // part of it; empty: nothing is said
	}{
		"token":               {"--url " + url + " --ca-file " + caFile + " --token-file " + token, remote{}, exitDone, ""},
		"certificate":         {"--url " + url + " --ca-file " + caFile + " --cert-file " + cert + " --key-file " + key, remote{}, exitDone, ""},
		"environment":         {"", remote{url: url, caFile: caFile, tokenFile: token}, exitDone, ""},
		"certificate in env":  {"", remote{url: url, caFile: caFile, certFile: cert, keyFile: key}, exitDone, ""},
		"line before env":     {"--url " + url + " --ca-file " + caFile + " --token-file " + token, remote{url: "https://nowhere.invalid", caFile: otherFile, tokenFile: wrong}, exitDone, ""},
		"env of another host": {"--url " + url + " --ca-file " + caFile, remote{url: "https://nowhere.invalid", tokenFile: token}, exitFailed, "hint: --token-file, or --cert-file"},
		"token in env":        {"--url " + url + " --ca-file " + caFile, remote{tokenFile: token}, exitDone, ""},
		"readable token":      {"--url " + url + " --ca-file " + caFile + " --token-file " + open, remote{}, exitDone, "warning: others may read " + open},
		"nobody":              {"--url " + url + " --ca-file " + caFile, remote{}, exitFailed, "hint: --token-file, or --cert-file"},
		"wrong token":         {"--url " + url + " --ca-file " + caFile + " --token-file " + wrong, remote{}, exitFailed, "cannot tell who asks"},
		"wrong CA":            {"--url " + url + " --ca-file " + otherFile + " --token-file " + token, remote{}, exitFailed, "hint: name the CA of the daemon's certificate with --ca-file"},
		"system's CAs":        {"--url " + url + " --token-file " + token, remote{}, exitFailed, "hint: name the CA"},
		"wrong host":          {"--url " + strings.Replace(named, "localhost", "127.0.0.1", 1) + " --ca-file " + caFile + " --token-file " + token, remote{}, exitFailed, "hint: use a name in --url"},
		"expired":             {"--url " + expired + " --ca-file " + caFile + " --token-file " + token, remote{}, exitFailed, "hint: the daemon's certificate has expired"},
		"foreign certificate": {"--url " + url + " --ca-file " + caFile + " --cert-file " + foreign + " --key-file " + foreignKey, remote{}, exitFailed, "hint: the daemon does not accept the certificate"},
		"stale certificate":   {"--url " + url + " --ca-file " + caFile + " --cert-file " + stale + " --key-file " + staleKey, remote{}, exitFailed, "hint: the daemon does not accept the certificate"},
		"no TLS":              {"--url " + strings.Replace(plain.URL, "http:", "https:", 1), remote{}, exitFailed, "speaks no TLS"},
		"nothing there":       {"--url https://127.0.0.1:1", remote{}, exitNotReady, "hint: is tls.listen set"},
		"in the clear":        {"--url http://localhost:1", remote{}, exitUsage, "does not begin with https://"},
		"no host":             {"--url https://", remote{}, exitUsage, "names no host"},
		"secret in it":        {"--url https://user:secret@localhost", remote{}, exitUsage, "holds more than a host"},
		"socket as well":      {"--url " + url + " --socket /x", remote{}, exitUsage, "contradict"},
		"token without url":   {"--token-file " + token, remote{}, exitUsage, "take --url"},
		"socket before env":   {"--socket /nowhere/s", remote{url: url, caFile: caFile, tokenFile: token}, exitNotReady, "/nowhere/s"},
		"certificate alone":   {"--url " + url + " --cert-file " + cert, remote{}, exitUsage, "--cert-file takes --key-file"},
		"key alone":           {"--url " + url + " --key-file " + key, remote{}, exitUsage, "--key-file takes --cert-file"},
		"other key":           {"--url " + url + " --cert-file " + cert + " --key-file " + foreignKey, remote{}, exitUsage, "does not match"},
		"no such token":       {"--url " + url + " --token-file " + dir + "/none", remote{}, exitUsage, "cannot read the token"},
		"two tokens":          {"--url " + url + " --token-file " + two, remote{}, exitUsage, "is none"},
		"a key for a token":   {"--url " + url + " --token-file " + key, remote{}, exitUsage, "is none"},
		"a token for a CA":    {"--url " + url + " --ca-file " + token, remote{}, exitUsage, "holds no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			s := session{args: append([]string{"gpu", "list", "-o", "name"}, strings.Fields(tc.line)...), env: tc.env}
			s.run(t.Context(), "")
			if s.code != tc.code || !strings.Contains(s.stderr, tc.stderr) || tc.stderr == "" && s.stderr != "" {
				t.Errorf("want exit %d with %q\n%s", tc.code, tc.stderr, &s)
			}
			if tc.code == exitDone && !strings.Contains(s.stdout, "0000:3b:00.0") {
				t.Error(&s)
			}
			if strings.Contains(s.stdout+s.stderr, secret) {
				t.Errorf("the token is shown: %s", &s)
			}
		})
	}
	s := session{args: []string{"gpu", "list"}, env: remote{url: url}}
	if s.run(t.Context(), "/x"); s.code != exitUsage || !strings.Contains(s.stderr, "GPUVIRT_URL and GPUVIRT_SOCKET") {
		t.Error(&s)
	}
	// A shell completes from the daemon that is meant.
	s = session{args: []string{"__complete", "--url", url, "--ca-file", caFile, "--token-file", open, "gpu", "show", ""}}
	if s.run(t.Context(), ""); !strings.Contains(s.stdout, "0000:3b:00.0") || strings.Contains(s.stderr, "warning") {
		t.Error(&s)
	}
	s = session{args: []string{"completion", "bash", "--url", "http://x"}}
	if s.run(t.Context(), ""); s.code != exitDone {
		t.Error(&s)
	}
}
