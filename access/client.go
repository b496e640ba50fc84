package access

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// A Client says which certificates are meant: by one of their names, or all.
type Client struct{ kind, value string }

const anyClient = "any"

// names returns the names of one kind that a certificate has.
func names(kind string, c *x509.Certificate) []string {
	switch kind {
	case "subject":
		return []string{c.Subject.String()}
	case "cn":
		return []string{c.Subject.CommonName}
	case "dns":
		return c.DNSNames
	case "email":
		return c.EmailAddresses
	case "uri":
		var out []string
		for _, u := range c.URIs {
			out = append(out, u.String())
		}
		return out
	}
	return nil
}

// ParseClient reads "any", or a kind and a name, such as "cn:alice",
// "subject:CN=alice,OU=Ops,O=Bank" (as RFC 2253 has it), "dns:ci.bank.example",
// "email:alice@bank.example" and "uri:spiffe://bank/ci".
func ParseClient(text string) (Client, error) {
	if text == anyClient {
		return Client{kind: anyClient}, nil
	}
	kind, value, found := strings.Cut(text, ":")
	switch {
	case !found || !slices.Contains([]string{"subject", "cn", "dns", "email", "uri"}, kind):
		return Client{}, fmt.Errorf("%q is neither any nor one of subject:, cn:, dns:, email:, uri: with a name behind it", text)
	case value == "" || strings.TrimSpace(value) != value:
		return Client{}, fmt.Errorf("%q names nobody", text)
	}
	return Client{kind, value}, nil
}

// Matches reports whether a certificate is meant. It must have been verified.
func (c Client) Matches(cert *x509.Certificate) bool {
	return c.kind == anyClient || slices.Contains(names(c.kind, cert), c.value)
}

// Clients are those that have each role.
type Clients struct{ Admins, Operators, Viewers []Client }

// ParseClients reads the lists of a configuration.
func ParseClients(admins, operators, viewers []string) (Clients, error) {
	var errs []error
	parse := func(texts []string) (out []Client) {
		for _, text := range texts {
			c, err := ParseClient(text)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			out = append(out, c)
		}
		return out
	}
	c := Clients{Admins: parse(admins), Operators: parse(operators), Viewers: parse(viewers)}
	return c, errors.Join(errs...)
}

// RoleOf is the highest role that a certificate is listed for, or Nobody.
func (c Clients) RoleOf(cert *x509.Certificate) Role {
	means := func(x Client) bool { return x.Matches(cert) }
	switch {
	case slices.ContainsFunc(c.Admins, means):
		return Admin
	case slices.ContainsFunc(c.Operators, means):
		return Operator
	case slices.ContainsFunc(c.Viewers, means):
		return Viewer
	}
	return Nobody
}

// NameOf tells whose a certificate is, for operations and the log: by its subject, or where
// that is empty by its first other name. It is readable, on one line, and short.
func NameOf(cert *x509.Certificate) string {
	name := cert.Subject.String()
	for _, kind := range []string{"uri", "email", "dns"} {
		if all := names(kind, cert); len(all) > 0 {
			name = cmp.Or(name, all[0])
		}
	}
	name = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
	const most = 200 // runes
	if r := []rune(name); len(r) > most {
		name = string(r[:most-1]) + "…"
	}
	return cmp.Or(name, "serial "+cert.SerialNumber.Text(16))
}
