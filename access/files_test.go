package access

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/access/accesstest"
)

// What cannot serve is refused, with the file and the reason, and nothing of the key.
func TestLoadPair(t *testing.T) {
	ca := accesstest.NewCA(t, "ca")
	good, other := ca.Server(), ca.Server()
	with := func(cert, key []byte) accesstest.Pair { return accesstest.Pair{Cert: cert, Key: key} }
	for name, tc := range map[string]struct {
		pair accesstest.Pair
		mode os.FileMode
		want string // empty: fine
	}{
		"good":         {good, 0o600, ""},
		"chain":        {with(append(bytes.Clone(good.Cert), ca.PEM...), good.Key), 0o400, ""},
		"group":        {good, 0o640, ""},
		"all may read": {good, 0o644, "0644"},
		"group writes": {good, 0o660, "0660"},
		"other key":    {with(good.Cert, other.Key), 0o600, "private key does not match"},
		"swapped":      {with(good.Key, good.Cert), 0o600, "cannot use certificate"},
		"empty":        {with(nil, good.Key), 0o600, "cannot use certificate"},
		"torn":         {with(good.Cert[:len(good.Cert)/2], good.Key), 0o600, "cannot use certificate"},
		"torn key":     {with(good.Cert, good.Key[:len(good.Key)/2]), 0o600, "cannot use certificate"},
		"encrypted":    {with(good.Cert, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})), 0o600, "it is encrypted"},
		"large":        {with(bytes.Repeat([]byte("x"), maxFile+1), good.Key), 0o600, "larger than"},
		"expired":      {ca.Server(accesstest.Expired), 0o600, "it expired at"},
		"not yet": {ca.Server(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		}), 0o600, "not valid before"},
		"for clients":   {ca.Client("alice", func(c *x509.Certificate) { c.DNSNames = []string{"x"} }), 0o600, "serverAuth"},
		"names no host": {ca.Server(func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil }), 0o600, "names no host"},
		"weak":          {weakPair(t), 0o600, "1024 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cert, key := filepath.Join(dir, "s.crt"), filepath.Join(dir, "s.key")
			for path, data := range map[string][]byte{cert: tc.pair.Cert, key: tc.pair.Key} {
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(key, tc.mode); err != nil {
				t.Fatal(err)
			}
			pair, err := LoadPair(cert, key, time.Now())
			switch {
			case tc.want == "" && (err != nil || pair.Leaf == nil):
				t.Errorf("%+v, %v", pair, err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), dir)):
				t.Errorf("%v, want %q", err, tc.want)
			}
			if block, _ := pem.Decode(tc.pair.Key); err != nil && block != nil && strings.Contains(err.Error(), string(tc.pair.Key[30:50])) {
				t.Errorf("the error holds the key: %v", err)
			}
		})
	}
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	_, key := good.Write(dir, "good")
	for path, want := range map[string]string{filepath.Join(dir, "none"): "no such file", dir: "not a file", pipe: "not a file"} {
		if _, err := LoadPair(path, key, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func weakPair(t *testing.T) accesstest.Pair {
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // that it is weak is the point
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "weak"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return accesstest.Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	}
}

func TestLoadCA(t *testing.T) {
	a, b := accesstest.NewCA(t, "a"), accesstest.NewCA(t, "b")
	leaf := a.Client("alice")
	for name, tc := range map[string]struct {
		text []byte
		want string // empty: fine
	}{
		"one":         {a.PEM, ""},
		"two":         {append(bytes.Clone(a.PEM), b.PEM...), ""},
		"commented":   {append([]byte("# our CA\n"), a.PEM...), ""},
		"nothing":     {nil, "holds no certificates"},
		"nonsense":    {[]byte("nonsense"), "holds no certificates"},
		"torn second": {append(bytes.Clone(a.PEM), b.PEM[:len(b.PEM)/2]...), "or more than that"},
		"key":         {append(bytes.Clone(a.PEM), leaf.Key...), "no certificate"},
		"leaf":        {leaf.Cert, "it is no CA"},
	} {
		path := filepath.Join(t.TempDir(), "ca.crt")
		if err := os.WriteFile(path, tc.text, 0o600); err != nil {
			t.Fatal(err)
		}
		pool, err := LoadCA(path, time.Now())
		switch {
		case tc.want == "" && (err != nil || pool == nil):
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path)):
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if _, err := LoadCA(a.Write(t.TempDir(), "ca"), time.Now().Add(48*time.Hour)); err == nil || !strings.Contains(err.Error(), "it expired at") {
		t.Errorf("expired: %v", err)
	}
}
