package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/client"
	"gpuvirt/internal/version"
)

// remote says how to reach a daemon over the network. Secrets are named by their files
// only: what stands on a command line or in the environment is seen by others.
type remote struct{ url, caFile, certFile, keyFile, tokenFile string }

// environment reads what the environment says of it.
func environment(get func(string) string) remote {
	return remote{
		url: get("GPUVIRT_URL"), caFile: get("GPUVIRT_CA_FILE"), certFile: get("GPUVIRT_CERT_FILE"), keyFile: get("GPUVIRT_KEY_FILE"),
		tokenFile: get("GPUVIRT_TOKEN_FILE"),
	}
}

func (c *cli) remoteFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&c.flags.url, "url", "", "`URL` of a daemon on the network, such as https://host:8443 (environment: GPUVIRT_URL)")
	flags.StringVar(&c.flags.caFile, "ca-file", "", "`file` of the CA of its certificate, if it is none of the system's (environment: GPUVIRT_CA_FILE)")
	flags.StringVar(&c.flags.certFile, "cert-file", "", "`file` of a certificate to show (environment: GPUVIRT_CERT_FILE)")
	flags.StringVar(&c.flags.keyFile, "key-file", "", "`file` of its key (environment: GPUVIRT_KEY_FILE)")
	flags.StringVar(&c.flags.tokenFile, "token-file", "", "`file` that holds a token to send (environment: GPUVIRT_TOKEN_FILE)")
}

// connect finds out which daemon is meant, and reads what it takes to reach it. What the
// command line says counts more than the environment.
func (c *cli) connect(cmd *cobra.Command) error {
	onSocket := cmd.Flags().Changed("socket")
	r := c.flags
	switch {
	case onSocket && r.url != "":
		return errors.New("--socket and --url contradict each other")
	case onSocket, r.url == "" && c.env.url == "":
		if r != (remote{}) {
			return errors.New("--ca-file, --cert-file, --key-file and --token-file take --url")
		}
		return nil
	case r.url == "" && c.socketInEnv:
		return errors.New("GPUVIRT_URL and GPUVIRT_SOCKET contradict each other: say --url or --socket")
	}
	if r.url != "" && c.env.url != "" && r.url != c.env.url {
		// What the environment has is for the host that it names, and a secret of that one.
		o, err := c.options(r)
		c.remote = &o
		return err
	}
	for _, f := range []struct{ said, env *string }{
		{&r.url, &c.env.url}, {&r.caFile, &c.env.caFile}, {&r.tokenFile, &c.env.tokenFile},
	} {
		if *f.said == "" {
			*f.said = *f.env
		}
	}
	if r.certFile == "" && r.keyFile == "" { // they belong together
		r.certFile, r.keyFile = c.env.certFile, c.env.keyFile
	}
	o, err := c.options(r)
	c.remote = &o
	return err
}

// options reads the files.
func (c *cli) options(r remote) (client.Options, error) {
	o := client.Options{URL: r.url, TLS: &tls.Config{MinVersion: tls.VersionTLS12}, UserAgent: "gpuvirt/" + version.String()}
	if err := client.CheckURL(r.url); err != nil {
		return o, err
	}
	if r.caFile != "" {
		text, err := os.ReadFile(r.caFile)
		if err != nil {
			return o, fmt.Errorf("cannot read the CA: %w", err)
		}
		o.TLS.RootCAs = x509.NewCertPool()
		if !o.TLS.RootCAs.AppendCertsFromPEM(text) {
			return o, fmt.Errorf("cannot read the CA: %q holds no certificate in PEM", r.caFile)
		}
	}
	switch {
	case r.certFile != "" && r.keyFile == "":
		return o, errors.New("--cert-file takes --key-file")
	case r.keyFile != "" && r.certFile == "":
		return o, errors.New("--key-file takes --cert-file")
	case r.certFile != "":
		pair, err := tls.LoadX509KeyPair(r.certFile, r.keyFile)
		if err != nil {
			return o, fmt.Errorf("cannot use the certificate %q with the key %q: %s", r.certFile, r.keyFile, strings.TrimPrefix(err.Error(), "tls: "))
		}
		c.warnOpen(r.keyFile)
		// Shown whatever CAs the daemon names: it says better than nothing what is wrong with it.
		o.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	if r.tokenFile == "" {
		return o, nil
	}
	c.warnOpen(r.tokenFile)
	var err error
	o.Token, err = readToken(r.tokenFile)
	return o, err
}

const maxToken = 512 // bytes

// readToken reads a token from a file. No error holds anything of it.
func readToken(path string) (string, error) {
	f, err := os.Open(path) //nolint:gosec // the file that the caller named
	if err != nil {
		return "", fmt.Errorf("cannot read the token: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("cannot read the token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	strange := func(r rune) bool { return r <= ' ' || r >= 0x7f }
	if token == "" || len(data) > maxToken || strings.ContainsFunc(token, strange) {
		return "", fmt.Errorf("cannot read the token: what %q holds is none", path)
	}
	return token, nil
}

// warnOpen says that others may have read a secret.
func (c *cli) warnOpen(path string) {
	if c.quiet {
		return
	}
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		c.say("warning: others may read %s: chmod 600", path)
	}
}

// trustHint says what to do about certificates.
func trustHint(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return "name the CA of the daemon's certificate with --ca-file. If that is the right one, it is not the daemon that answers there"
	case errors.As(err, &host):
		return "use a name in --url that the daemon's certificate has, or have it certified for this one"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the daemon's certificate has expired, or this clock is wrong. After it is renewed: systemctl reload gpuvirtd"
	case errors.Is(err, http.ErrSchemeMismatch):
		return "what answers there speaks no TLS"
	case errors.As(err, &invalid):
		return "have the daemon another certificate"
	}
	return "the daemon does not accept the certificate of --cert-file: it has expired, or is not of the CA in tls.client_ca on its host"
}

// remoteHint says what to do about a daemon that does not answer over the network.
const remoteHint = "is tls.listen set on its host, and does the firewall let it through? there: gpuvirt health"
