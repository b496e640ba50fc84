package nbd

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"gpuvirt/gpu"
)

const (
	defaultPort = "10809"
	maxName     = 4096 // bytes of an export's name
	maxPath     = 107  // bytes of a socket's path, as Linux has it
)

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})$`)

// A URI says where an export is. Its text is as NBD's own specification of URIs has it:
//
//	nbds://HOST[:PORT]/EXPORT               with TLS
//	nbd://HOST[:PORT]/EXPORT                without
//	nbd+unix:///EXPORT?socket=PATH          on a socket of this host
//	nbds+unix:///EXPORT?socket=PATH&tls-hostname=NAME
//
// With TLS, tls-hostname is the name in the server's certificate where that is not HOST.
type URI struct {
	TLS        bool
	Network    string // "tcp" or "unix"
	Address    string // HOST:PORT, or the path of the socket
	Export     string // its name; may be empty, which is a server's default
	ServerName string // that the server's certificate is of; with TLS only
}

// ParseURI reads a URI. Its error has gpu.CodeInvalid.
func ParseURI(text string) (URI, error) {
	u, err := parseURI(text)
	if err != nil {
		return URI{}, gpu.Errorf(gpu.CodeInvalid, "cannot use NBD URI %q: %w", text, err).
			WithHint("it is nbds://HOST[:PORT]/EXPORT")
	}
	return u, nil
}

func parseURI(text string) (URI, error) {
	in, err := url.Parse(text)
	if err != nil {
		return URI{}, errors.Unwrap(err) // without the text, which is told once
	}
	var u URI
	scheme, unix := strings.CutSuffix(in.Scheme, "+unix")
	switch scheme {
	case "nbds":
		u.TLS = true
	case "nbd":
	default:
		return u, fmt.Errorf("its scheme is %q, and not nbds or nbd", in.Scheme)
	}
	if in.User != nil || in.Fragment != "" || in.Opaque != "" {
		return u, errors.New("it has a user, a fragment, or no //")
	}
	u.Export = strings.TrimPrefix(in.Path, "/")
	if len(u.Export) > maxName || !shown(u.Export) {
		return u, errors.New("the name of the export is too long, or has characters that cannot be shown")
	}
	query, err := url.ParseQuery(in.RawQuery)
	if err != nil {
		return u, err
	}
	for name, values := range query {
		switch {
		case len(values) != 1 || values[0] == "":
			return u, fmt.Errorf("%q is given more than once, or empty", name)
		case name == "socket" && unix, name == "tls-hostname" && u.TLS:
		default:
			return u, fmt.Errorf("%q is not known here", name)
		}
	}
	if unix {
		err = u.socket(in.Host, query.Get("socket"))
	} else {
		err = u.host(in)
	}
	if err != nil {
		return u, err
	}
	u.ServerName = cmp.Or(query.Get("tls-hostname"), u.ServerName)
	if u.TLS && u.ServerName == "" {
		return u, errors.New("tls-hostname is missing, the name in the server's certificate")
	}
	if !shown(u.ServerName) {
		return u, errors.New("tls-hostname has characters that cannot be shown")
	}
	return u, nil
}

func (u *URI) socket(host, path string) error {
	if host != "" || !filepath.IsAbs(path) || len(path) > maxPath || !shown(path) {
		return fmt.Errorf("socket must be an absolute path of at most %d bytes, and no host is given", maxPath)
	}
	u.Network, u.Address = "unix", path
	return nil
}

func (u *URI) host(in *url.URL) error {
	port := cmp.Or(in.Port(), defaultPort)
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is no port", port)
	}
	if _, err := netip.ParseAddr(in.Hostname()); err != nil && !hostName.MatchString(in.Hostname()) {
		return fmt.Errorf("%q is neither a name nor an address of a host", in.Hostname())
	}
	u.Network, u.Address = "tcp", net.JoinHostPort(in.Hostname(), port)
	if u.TLS {
		u.ServerName = in.Hostname()
	}
	return nil
}

// local tells whether what is sent stays on this host, as far as the URI says.
func (u URI) local() bool {
	host, _, _ := net.SplitHostPort(u.Address)
	return u.Network == "unix" || host == "localhost" || net.ParseIP(host).IsLoopback()
}

// String is the URI as ParseURI reads it.
func (u URI) String() string {
	out := url.URL{Scheme: "nbd", Path: "/" + u.Export}
	if u.TLS {
		out.Scheme = "nbds"
	}
	query := url.Values{}
	name := ""
	if u.Network == "unix" {
		out.Scheme += "+unix"
		query.Set("socket", u.Address)
	} else {
		out.Host = u.Address
		name, _, _ = net.SplitHostPort(u.Address)
	}
	if u.ServerName != name && u.ServerName != "" {
		query.Set("tls-hostname", u.ServerName)
	}
	out.RawQuery = query.Encode()
	return out.String()
}

func shown(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
