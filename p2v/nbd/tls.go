package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"

	"gpuvirt/gpu"
	"gpuvirt/internal/secret"
)

// The files of Options.Certificates, as nbdkit and QEMU call them.
const (
	fileCA   = "ca-cert.pem"
	fileCert = "client-cert.pem"
	fileKey  = "client-key.pem"
)

// tlsConfig reads the certificates by which the server is known, and we.
func tlsConfig(folder, server string) (*tls.Config, error) {
	cannot := func(format string, args ...any) *gpu.Error {
		return gpu.Errorf(gpu.CodeInvalid, "cannot use the certificates of %q: "+format, append([]any{folder}, args...)...).
			WithHint("it takes %s, and %s with %s where the server wants to know us", fileCA, fileCert, fileKey)
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, cannot("%w", err)
	}
	defer root.Close() //nolint:errcheck // only read
	ca, err := root.ReadFile(fileCA)
	if err != nil {
		return nil, cannot("%w", err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: server, RootCAs: x509.NewCertPool()}
	if !conf.RootCAs.AppendCertsFromPEM(ca) {
		return nil, cannot("%s has no certificate", fileCA)
	}
	cert, err := root.ReadFile(fileCert)
	if errors.Is(err, fs.ErrNotExist) {
		return conf, nil
	}
	if err != nil {
		return nil, cannot("%w", err)
	}
	key, err := secret.Read(root, fileKey)
	if err != nil {
		return nil, cannot("%s: %w", fileKey, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	clear(key)
	if err != nil {
		return nil, cannot("%s and %s: %w", fileCert, fileKey, err)
	}
	conf.Certificates = []tls.Certificate{pair}
	return conf, nil
}
