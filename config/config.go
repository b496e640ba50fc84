// Package config owns the daemon's configuration: which settings there are, what they may
// be, and how files of them are read. It knows nothing of what they do.
//
// A file is YAML. Unknown keys, keys that stand there twice and values that cannot be are
// errors that name the file and the line; all of a file's are told at once. Files in a
// folder beside it, named like it with ".d" instead of ".yaml", come after it by name, and
// of what several of them say the last counts.
package config

import (
	"log/slog"
	"time"

	"gpuvirt/mig"
	"gpuvirt/p2v/assess"
	"gpuvirt/sriov"
)

// DefaultPath is the file that is read where none is named.
const DefaultPath = "/etc/gpuvirt/gpuvirtd.yaml"

// Config is what the daemon does its work with.
type Config struct {
	StateDir       string        // folder of the store, absolute
	SocketPath     string        // unix socket, absolute
	SocketGroup    string        // whose members may use it; empty: nobody but root
	LibvirtURI     string        // "qemu:///system"
	DetachTimeout  time.Duration // for a guest to let go of a device
	RestoreTimeout time.Duration // for GPUs to appear at boot
	NVML           string        // NVIDIA's management library: a path, or a name for the dynamic linker
	SRIOVManage    string        // NVIDIA's program that turns virtual functions on and off
	PCIGPUs        []string      // "vendor:device" in lower case
	Placement      string        // "pack" or "spread", where a wish does not say
	Credentials    string        // folder of the keys that servers are reached with, absolute
	Inspector      string        // program that looks at servers from within, absolute
	Mirrors        string        // folder of the copies of disks, absolute
	Scratch        string        // folder of what conversions need while they go on, absolute
	ConvertUser    string        // who they run as, by name
	GuestFiles     string        // folder of packages for guests, absolute
	P2VListen      string        // address and port where virt-p2v may come; empty: nowhere
	Images         []string      // folders from which disks of servers that are off may be read, absolute
	Policy         assess.Policy // the figures that assessments and plans are made with
	Drivers        []string      // rows of the table of drivers that are laid over the built-in ones, as assess.DriverRow writes them
	Lease          time.Duration // for which partitions of migrations are kept while nobody does anything; 0: until they end
	LogLevel       slog.Level

	TLSListen      string // address and port; empty: not over the network
	TLSCertificate string // file, absolute
	TLSKey         string // file, absolute
	TLSClientCA    string // file, absolute; empty: no client is known by a certificate
	// The clients that have each role, as access.ParseClient reads them.
	TLSAdmins, TLSOperators, TLSViewers []string
}

// Default is the configuration where nobody has said anything.
func Default() Config {
	return Config{ //nolint:gosec // a folder is no credential
		StateDir: "/var/lib/gpuvirt", SocketPath: "/run/gpuvirt/gpuvirtd.sock", SocketGroup: "gpuvirt",
		LibvirtURI: "qemu:///system", DetachTimeout: 30 * time.Second, RestoreTimeout: 90 * time.Second,
		NVML: mig.DefaultPath, SRIOVManage: sriov.DefaultTool, Placement: "pack",
		Credentials: "/etc/gpuvirt/credentials", Inspector: "/usr/bin/gpuvirt", Mirrors: "/var/lib/libvirt/images/gpuvirt",
		Scratch: "/var/cache/gpuvirt", ConvertUser: "gpuvirt-p2v", GuestFiles: "/usr/local/share/gpuvirt/guest",
		Policy: assess.Policy{}.WithDefaults(), Lease: 30 * 24 * time.Hour, LogLevel: slog.LevelInfo,
	}
}
