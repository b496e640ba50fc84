// Package accesstest makes certificate authorities and certificates for tests.
package accesstest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// A Test is what is told of a failure: a *testing.T, or a script.
type Test interface {
	Fatalf(format string, args ...any)
}

// A CA signs certificates.
type CA struct {
	Cert *x509.Certificate
	PEM  []byte

	t   Test
	key *ecdsa.PrivateKey
}

// A Pair is a certificate with its key, in PEM.
type Pair struct {
	Cert, Key []byte
	Leaf      *x509.Certificate

	t Test
}

// NewCA makes an authority with a name.
func NewCA(t Test, name string) *CA {
	ca := &CA{t: t}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca.key = newKey(t)
	ca.Cert, ca.PEM = sign(t, template, template, &ca.key.PublicKey, ca.key)
	return ca
}

// Pool holds the authority alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Cert)
	return pool
}

// Server signs a certificate for localhost and its addresses; edits change it before.
func (ca *CA) Server(edits ...func(*x509.Certificate)) Pair {
	return ca.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "gpuvirtd"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}, edits)
}

// Client signs a certificate for a client with a common name; edits change it before.
func (ca *CA) Client(name string, edits ...func(*x509.Certificate)) Pair {
	return ca.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: name, Organization: []string{"Bank"}}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, edits)
}

// Expired makes a certificate one of the past.
func Expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
}

func (ca *CA) issue(template *x509.Certificate, edits []func(*x509.Certificate)) Pair {
	template.KeyUsage = x509.KeyUsageDigitalSignature
	for _, edit := range edits {
		edit(template)
	}
	key := newKey(ca.t)
	p := Pair{t: ca.t}
	p.Leaf, p.Cert = sign(ca.t, template, ca.Cert, &key.PublicKey, ca.key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatalf("%v", err)
	}
	p.Key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return p
}

// TLS returns the pair as crypto/tls wants it.
func (p Pair) TLS() tls.Certificate {
	c, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		p.t.Fatalf("%v", err)
	}
	return c
}

// Write writes NAME.crt and NAME.key into a folder, in the place of those that are there.
func (p Pair) Write(dir, name string) (certificate, key string) {
	return write(p.t, dir, name+".crt", p.Cert), write(p.t, dir, name+".key", p.Key)
}

// Write writes NAME.crt into a folder, in the place of one that is there.
func (ca *CA) Write(dir, name string) string { return write(ca.t, dir, name+".crt", ca.PEM) }

func write(t Test, dir, name string, data []byte) string {
	path := filepath.Join(dir, name)
	aside := path + ".new"
	if err := os.WriteFile(aside, data, 0o600); err != nil {
		t.Fatalf("%v", err)
	}
	if err := os.Rename(aside, path); err != nil {
		t.Fatalf("%v", err)
	}
	return path
}

func newKey(t Test) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return key
}

func sign(t Test, template, parent *x509.Certificate, public *ecdsa.PublicKey, by *ecdsa.PrivateKey) (*x509.Certificate, []byte) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatalf("%v", err)
	}
	template.SerialNumber = serial
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
	if err != nil {
		t.Fatalf("%v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("%v", err)
	}
	var text bytes.Buffer
	if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		t.Fatalf("%v", err)
	}
	return cert, text.Bytes()
}
