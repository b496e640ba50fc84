package access

import (
	"bytes"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

const maxFile = 1 << 20 // bytes of a certificate's file

// LoadPair reads the certificate that a server shows, with those between it and its CA, and
// its key, and checks that they can be used: that they belong together, that the
// certificate is for servers, names hosts and is valid now, and that nobody else can read
// the key. Errors name the file and hold nothing of the key.
func LoadPair(certificate, key string, now time.Time) (*tls.Certificate, error) {
	certs, _, err := read(certificate)
	if err != nil {
		return nil, fmt.Errorf("cannot use certificate %q: %w", certificate, err)
	}
	secret, info, err := read(key)
	if err == nil {
		err = private(info)
	}
	if err == nil {
		err = readable(secret)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use key %q: %w", key, err)
	}
	pair, err := tls.X509KeyPair(certs, secret)
	if err != nil {
		return nil, fmt.Errorf("cannot use certificate %q with key %q: %s", certificate, key, strings.TrimPrefix(err.Error(), "tls: "))
	}
	if err := serves(pair.Leaf, now); err != nil {
		return nil, fmt.Errorf("cannot use certificate %q: %w", certificate, err)
	}
	return &pair, nil
}

func read(file string) ([]byte, fs.FileInfo, error) {
	// Not to hang at a pipe.
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // the file that root named
	if err != nil {
		return nil, nil, cause(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("it is not a file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	return data, info, cause(err)
}

// cause takes the name of the file off an error: it is told already.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// private refuses a key that somebody else may have read, or may change.
func private(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return fmt.Errorf("its mode is %04o, and others than its owner may read or change it: it must be 0600, or 0640", mode)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 && int(stat.Uid) != os.Getuid() {
		return fmt.Errorf("it belongs to user %d: it must belong to root", stat.Uid)
	}
	return nil
}

// readable says what crypto/tls would say less well.
func readable(key []byte) error {
	for rest := key; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return errors.New("it is encrypted, and nobody is there to type its passphrase when the daemon starts")
		}
	}
}

func serves(leaf *x509.Certificate, now time.Time) error {
	if err := valid(leaf, now); err != nil {
		return err
	}
	forServers := func(u x509.ExtKeyUsage) bool {
		return u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageAny
	}
	switch key, isRSA := leaf.PublicKey.(*rsa.PublicKey); {
	case len(leaf.ExtKeyUsage) > 0 && !slices.ContainsFunc(leaf.ExtKeyUsage, forServers):
		return errors.New("it is not for servers: its extended key usage lacks serverAuth")
	case len(leaf.DNSNames)+len(leaf.IPAddresses) == 0:
		return errors.New("it names no host: it has no subject alternative name")
	case isRSA && key.N.BitLen() < 2048:
		return fmt.Errorf("its key has %d bits: 2048 is the least", key.N.BitLen())
	}
	return nil
}

func valid(c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("it expired at %s", c.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return fmt.Errorf("it is not valid before %s", c.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// LoadCA reads the certificates of those who may sign certificates of clients. All that
// stands there must be such, and valid now.
func LoadCA(file string, now time.Time) (*x509.CertPool, error) {
	data, _, err := read(file)
	if err != nil {
		return nil, fmt.Errorf("cannot use client CA %q: %w", file, err)
	}
	pool, found := x509.NewCertPool(), false
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		c, err := authority(block, now)
		if err != nil {
			return nil, fmt.Errorf("cannot use client CA %q: %w", file, err)
		}
		pool.AddCert(c)
		found = true
	}
	if !found || len(bytes.TrimSpace(data)) > 0 && bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("cannot use client CA %q: it holds no certificates in PEM, or more than that", file)
	}
	return pool, nil
}

func authority(block *pem.Block, now time.Time) (*x509.Certificate, error) {
	if block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("it holds something that is no certificate: %q", block.Type)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !c.IsCA {
		return nil, fmt.Errorf("%s may not sign others: it is no CA", NameOf(c))
	}
	if err := valid(c, now); err != nil {
		return nil, fmt.Errorf("%s: %w", NameOf(c), err)
	}
	return c, nil
}
