package vmapi

import (
	"gpuvirt/gpu"
)

// A hypervisor is one open connection to libvirt. Its calls block for as long as
// libvirt likes; Client bounds them. Errors are libvirt.Error, or wrap one. It
// may be used by many goroutines at once.
type hypervisor interface {
	// Domains lists the UUIDs of all domains, running or not.
	Domains() ([]string, error)
	// Lookup returns the UUID of the domain with a name.
	Lookup(name string) (uuid string, err error)
	// Head finds a domain by its UUID, or by its name where that is given.
	Head(uuid, name string) (gpu.VMHead, error)
	// Read returns what libvirt says of a domain. A brief answer leaves out what
	// only people ask for (state reason, autostart) and so costs fewer round trips.
	Read(uuid string, brief bool) (definition, error)
	// Attach adds a device to the definitions in scope, in one call, and returns
	// what those definitions are then. Where it was added, but that cannot be read,
	// the error is an *unseenError.
	Attach(uuid, xml string, scope gpu.Scope) (definition, error)
	// DetachAlias removes a device by alias. For the live definition this only
	// asks the guest.
	DetachAlias(uuid, alias string, scope gpu.Scope) error
	// Detach is DetachAlias for a libvirt that finds devices by their XML only.
	Detach(uuid, xml string, scope gpu.Scope) error
	maker
	// Versions tells what libvirt and the hypervisor are.
	Versions() (versions, error)
	// Close ends the connection once the calls under way have returned.
	Close()
}

// A maker makes VMs and networks, and lets them run.
type maker interface {
	// Define stores a definition, over one of the same name and UUID.
	Define(xml string) error
	// Undefine removes a definition and what libvirt keeps beside it, and no storage.
	Undefine(uuid string) error
	// Inactive returns the persistent definition with all that starting it takes,
	// passwords too.
	Inactive(uuid string) (string, error)
	// Start starts a domain from its persistent definition.
	Start(uuid string) error
	// Create starts a domain from a definition that is not stored.
	Create(xml string) error
	// Destroy ends a domain's hypervisor process, which may write out what it holds.
	Destroy(uuid string) error
	// Agent has the agent in the guest carry out a command, and waits for some seconds.
	Agent(uuid, request string, seconds int) (string, error)
	// Network finds a network.
	Network(name string) (network, error)
	// Interface tells of which kind an interface of the host is, such as "bridge"; empty where
	// libvirt cannot tell.
	Interface(name string) (kind string, err error)
	// Capabilities tells (XML) what a domain of a kind can have.
	Capabilities(arch, machine, kind string) (string, error)
	// CreateNetwork starts a network from a definition that is not stored.
	CreateNetwork(xml string) error
	// DestroyNetwork stops a network; one that is not stored is gone then.
	DestroyNetwork(name string) error
}

// A network is one of libvirt's.
type network struct {
	uuid               string
	active, persistent bool
}

// An opener opens a connection and registers for its events. It calls event and
// lost from libvirt's event loop, so neither may block.
type opener func(uri string, event func(gpu.VMEvent), lost func(error)) (hypervisor, error)

// A definition is a domain as libvirt tells it.
type definition struct {
	live       string // XML of the running domain, empty if it does not run
	config     string // persistent XML, empty for a transient domain
	state      runState
	autostart  bool
	persistent bool
}

// runState is the part of libvirt's domain state that matters here.
type runState int

const (
	stateOther  runState = iota
	statePaused          // a hypervisor process whose CPUs stand still
	stateCrashed
)

// An unseenError says that a change was made and cannot be looked at.
type unseenError struct{ err error }

func (e *unseenError) Error() string { return e.err.Error() }
func (e *unseenError) Unwrap() error { return e.err }

// versions are the numbers that libvirt gives, as "major.minor.release".
type versions struct{ driver, library, hypervisor string }
