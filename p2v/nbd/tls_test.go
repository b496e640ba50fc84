package nbd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
)

// A ca makes certificates.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCA(t *testing.T) *ca {
	t.Helper()
	c := &ca{}
	c.pem, _, c.cert, c.key = issue(t, "the CA", nil, x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return c
}

// issue makes a certificate of a CA, or one of its own.
func issue(t *testing.T, name string, by *ca, with x509.Certificate) (certPEM, keyPEM []byte, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	with.SerialNumber, with.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	with.NotBefore = time.Now().Add(-time.Hour)
	if with.NotAfter.IsZero() {
		with.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := &with, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, &with, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), cert, key
}

// folder writes files, readable for us only.
func folder(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A site has certificates for both sides, and what is wrong with some.
type site struct {
	server, noClientCheck *tls.Config
	serverFolder          string // as nbdkit and QEMU have it
	ours, caOnly, foreign string // folders of clients
	otherCA               string
}

func serverCert() x509.Certificate {
	return x509.Certificate{
		DNSNames: []string{"gpu7"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

func clientCert() x509.Certificate {
	return x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

func newSite(t *testing.T) *site {
	t.Helper()
	ours, foreign := newCA(t), newCA(t)
	cert, key, _, _ := issue(t, "gpu7", ours, serverCert())
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	known := x509.NewCertPool()
	known.AddCert(ours.cert)
	s := &site{
		noClientCheck: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}},
		server:        &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: known, ClientAuth: tls.RequireAndVerifyClientCert},
		serverFolder:  folder(t, map[string][]byte{"ca-cert.pem": ours.pem, "server-cert.pem": cert, "server-key.pem": key}),
		caOnly:        folder(t, map[string][]byte{"ca-cert.pem": ours.pem}),
	}
	cert, key, _, _ = issue(t, "kvm1", ours, clientCert())
	s.ours = folder(t, map[string][]byte{"ca-cert.pem": ours.pem, "client-cert.pem": cert, "client-key.pem": key})
	s.otherCA = folder(t, map[string][]byte{"ca-cert.pem": foreign.pem, "client-cert.pem": cert, "client-key.pem": key})
	cert, key, _, _ = issue(t, "kvm1", foreign, clientCert())
	s.foreign = folder(t, map[string][]byte{"ca-cert.pem": ours.pem, "client-cert.pem": cert, "client-key.pem": key})
	return s
}

// Both sides know each other, or nothing is read.
func TestTLS(t *testing.T) {
	s := newSite(t)
	for name, c := range map[string]struct {
		server *tls.Config
		noTLS  bool
		uri    string
		folder string
		code   gpu.Code // empty: it works
		want   string
	}{
		"both ways":                {server: s.server, uri: "nbds://ADDR/sda", folder: s.ours},
		"TLS 1.2":                  {server: upTo12(s.server), uri: "nbds://ADDR/sda", folder: s.ours},
		"a CA only":                {server: s.noClientCheck, uri: "nbds://ADDR/sda", folder: s.caOnly},
		"by name":                  {server: s.server, uri: "nbds://ADDR/sda?tls-hostname=gpu7", folder: s.ours},
		"another name":             {server: s.server, uri: "nbds://ADDR/sda?tls-hostname=gpu8", folder: s.ours, code: gpu.CodeUnauthorized, want: "gpu8"},
		"another CA":               {server: s.server, uri: "nbds://ADDR/sda", folder: s.otherCA, code: gpu.CodeUnauthorized, want: "not the one that was meant"},
		"we are not known":         {server: s.server, uri: "nbds://ADDR/sda", folder: s.foreign, code: gpu.CodeUnauthorized, want: "does not accept us"},
		"we are not known, 1.2":    {server: upTo12(s.server), uri: "nbds://ADDR/sda", folder: s.foreign, code: gpu.CodeUnauthorized, want: "does not accept us"},
		"we do not say who we are": {server: s.server, uri: "nbds://ADDR/sda", folder: s.caOnly, code: gpu.CodeUnauthorized, want: "does not accept us"},
		"an old TLS":               {server: &tls.Config{Certificates: s.server.Certificates, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, uri: "nbds://ADDR/sda", folder: s.ours, code: gpu.CodeUnauthorized, want: "protocol version"}, //nolint:gosec // G402: that is what is refused
		"no TLS":                   {server: s.server, noTLS: true, uri: "nbds://ADDR/sda", folder: s.ours, code: gpu.CodeUnauthorized, want: "does not speak TLS"},
		"TLS is wanted":            {server: s.server, uri: "nbd://ADDR/sda", code: gpu.CodeInvalid, want: "wants TLS (TLS first)"},
		"no such export":           {server: s.server, uri: "nbds://ADDR/sdb", folder: s.ours, code: gpu.CodeNotFound, want: "no such export"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, 8<<10)
			f.tls, f.noTLS = c.server, c.noTLS
			uri := strings.Replace(c.uri, "ADDR", f.listen(t), 1)
			client, err := Dial(t.Context(), uri, Options{Certificates: c.folder, Insecure: true}) // that is for nbd:// only
			if c.code != "" {
				if gpu.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v", gpu.CodeOf(err), err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 8<<10)
			if _, err := client.ReadAt(p, 0); err != nil || !bytes.Equal(p, f.disk) {
				t.Error(err)
			}
			if err := client.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func upTo12(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.MaxVersion = tls.VersionTLS12
	return c
}

// Who is in between can say what he wants before TLS begins: none of it is taken for something
// that was said within.
func TestInjection(t *testing.T) {
	s := newSite(t)
	for name, says := range map[string]func(c net.Conn){
		"no TLS": func(c net.Conn) {
			replyTo(c, optStartTLS, repACK)
			_, _ = io.CopyN(io.Discard, c, 5) // it begins to speak TLS
			replyTo(c, optGo, repInfo, uint16(infoExport), exportInfo{8 << 10, 1})
			replyTo(c, optGo, repACK)
		},
		"in one piece": func(c net.Conn) {
			var b bytes.Buffer
			replyTo(&b, optStartTLS, repACK)
			replyTo(&b, optGo, repInfo, uint16(infoExport), exportInfo{8 << 10, 1})
			replyTo(&b, optGo, repACK)
			_, _ = c.Write(b.Bytes())
			_, _ = io.Copy(io.Discard, c)
		},
		"an ACK with data": func(c net.Conn) { replyTo(c, optStartTLS, repACK, uint64(1)) },
		"another reply":    func(c net.Conn) { replyTo(c, optStartTLS, repInfo) },
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				if c, err := l.Accept(); err == nil {
					after(says)(c)
					_, _ = io.Copy(io.Discard, c)
					_ = c.Close()
				}
			}()
			_, err = Dial(t.Context(), "nbds://"+l.Addr().String()+"/sda", Options{Certificates: s.ours})
			if gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "does not speak NBD as it has to") {
				t.Error(err)
			}
		})
	}
}

func TestCertificates(t *testing.T) {
	s := newSite(t)
	read := func(dir, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ca, cert, key := read(s.ours, fileCA), read(s.ours, fileCert), read(s.ours, fileKey)
	open := folder(t, map[string][]byte{fileCA: ca, fileCert: cert, fileKey: key})
	if err := os.Chmod(filepath.Join(open, fileKey), 0o640); err != nil {
		t.Fatal(err)
	}
	for want, dir := range map[string]string{
		"no such file":                "/there/is/no/such",
		"openat ca-cert.pem":          t.TempDir(),
		"ca-cert.pem has no":          folder(t, map[string][]byte{fileCA: key}),
		"client-key.pem: openat":      folder(t, map[string][]byte{fileCA: ca, fileCert: cert}),
		"others may read it":          open,
		"private key does not match":  folder(t, map[string][]byte{fileCA: ca, fileCert: cert, fileKey: read(s.foreign, fileKey)}),
		"failed to find any PEM data": folder(t, map[string][]byte{fileCA: ca, fileCert: cert, fileKey: []byte("x")}),
	} {
		if _, err := Dial(t.Context(), "nbds://127.0.0.1/", Options{Certificates: dir}); gpu.CodeOf(err) != gpu.CodeInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Dial(t.Context(), "nbds://127.0.0.1/", Options{}); gpu.CodeOf(err) != gpu.CodeInvalid {
		t.Error(err)
	}
}
