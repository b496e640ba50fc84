package report

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// ErrSilent is in the error of a server of which nothing is heard: nobody takes the connection.
// One that is there and does not let us in, for whatever reason, is not silent, nor is one of
// which the name or the way to it is not known.
var ErrSilent = errors.New("nobody answers there")

// Source is a server that is reached by ssh, and how. It holds no secret: the key is a file
// of the host, named here.
type Source struct {
	Address string `json:"address"` // a name of DNS, or an IP address
	Port    int    `json:"port"`
	User    string `json:"user"`
	// HostKey is the fingerprint of the server's key, as ssh-keygen -l prints it:
	// "SHA256:…". A server with another is not spoken to.
	HostKey string `json:"host_key"`
	// Credential names the private key, a file in the host's folder of credentials.
	Credential string `json:"credential"`
	// Sudo has the inspector run by sudo, which must not ask for a password.
	Sudo bool `json:"sudo"`
}

var (
	dnsName     = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$`)
	userName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
	fingerprint = regexp.MustCompile(`^SHA256:[A-Za-z0-9+/]{43}$`)
	// Credential is what names of credentials look like: no path.
	Credential = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?$`)
)

// Complete fills in what was left out, and refuses what is no server. The error says which
// field of the source is wrong.
func (s Source) Complete() (Source, error) {
	s.Port, s.User = cmp.Or(s.Port, 22), cmp.Or(s.User, "root")
	_, err := netip.ParseAddr(s.Address)
	switch {
	case s.Address == "":
		return s, errors.New("address is missing: the server's name or IP address")
	case err != nil && !dnsName.MatchString(s.Address):
		return s, fmt.Errorf("address %q is neither a name nor an IP address", s.Address)
	case s.Port < 1 || s.Port > 65535:
		return s, fmt.Errorf("port %d: it must be 1 to 65535", s.Port)
	case !userName.MatchString(s.User):
		return s, fmt.Errorf("user %q is no name of a user", s.User)
	case s.HostKey == "":
		return s, errors.New("host_key is missing: the fingerprint of the server's key, which \"ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub\" prints there")
	case !fingerprint.MatchString(s.HostKey):
		return s, fmt.Errorf("host_key %q is no fingerprint: it is SHA256: and 43 characters, as ssh-keygen -l prints it", s.HostKey)
	case s.Credential == "":
		return s, errors.New("credential is missing: the name of a private key in the host's folder of credentials")
	case !Credential.MatchString(s.Credential) || strings.Contains(s.Credential, ".."):
		return s, fmt.Errorf("credential %q is no name of a file", s.Credential)
	}
	return s, nil
}
