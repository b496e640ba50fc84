// Package access owns the question who is asking: the roles, which client certificates
// and which texts of an Authorization header say who somebody is, the files that a TLS
// listener takes, and how many failures to say it are put up with. What a role may do is
// not said here but in the daemon's table of routes.
package access

import "fmt"

// A Role is what somebody may do. Each role may do what those before it may.
type Role int

// The roles.
const (
	Nobody   Role = iota // may use open routes only
	Viewer               // may look
	Operator             // may also ask for partitions and attach them to VMs
	Admin                // may also decide about GPUs and tokens and give up on operations
)

// Roles are those that somebody can be given.
func Roles() []Role { return []Role{Viewer, Operator, Admin} }

// String returns the role's name.
func (r Role) String() string {
	switch r {
	case Nobody:
		return "nobody"
	case Viewer:
		return "viewer"
	case Operator:
		return "operator"
	case Admin:
		return "admin"
	}
	return fmt.Sprintf("Role(%d)", int(r))
}

// ParseRole reads the name of a role that somebody can be given.
func ParseRole(text string) (Role, error) {
	for _, r := range Roles() {
		if r.String() == text {
			return r, nil
		}
	}
	return Nobody, fmt.Errorf("%q is none of viewer, operator, admin", text)
}
