package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"gpuvirt/access"
	"gpuvirt/p2v/assess"
	"gpuvirt/sriov"
)

// A Setting is one of the things that can be said.
type Setting struct {
	Key  string // in a file, "libvirt.uri"
	Flag string // on the command line, "libvirt-uri"; empty: it is said in files only
	Arg  string // what the flag takes, for people: "folder"
	Doc  string // one line or more, for files and for people
	// Live reports that a daemon that runs takes it over; the others take a restart.
	Live bool

	at    func(*Config) any // *string, *float64, *uint64, *bool, *time.Duration, *[]string or *slog.Level
	check func(text string) (string, error)
	rows  bool // of a list: each is keys with values, in words such as "branch=620 vgpu=21"
}

// Settings lists them in the order of the file.
func Settings() []Setting {
	return slices.Concat(basic(), figures(), []Setting{{
		Key: "log.level", Flag: "log-level", Arg: "level", check: anything, Live: true,
		Doc: "debug, info, warn or error.", at: func(c *Config) any { return &c.LogLevel },
	}})
}

// figures are those of the policy of assessments.
func figures() (out []Setting) {
	for _, f := range assess.Figures() {
		out = append(out, Setting{Key: "p2v.policy." + f.Name, Doc: f.Doc, Live: true, at: func(c *Config) any { return f.Of(&c.Policy) }, check: figure(f)})
	}
	return out
}

// basic are those before the policy.
func basic() []Setting {
	return []Setting{
		{
			Key: stateDir, Flag: "state-dir", Arg: "folder", check: absolute,
			Doc: "Folder of the store. Moving it takes the folder along by hand.", at: func(c *Config) any { return &c.StateDir },
		},
		{
			Key: "socket.path", Flag: "socket", Arg: "path", check: absolute,
			Doc: "Unix socket to serve on, where systemd passes none.", at: func(c *Config) any { return &c.SocketPath },
		},
		{
			Key: "socket.group", Flag: "socket-group", Arg: "group", check: anything,
			Doc: "Group whose members may use the socket as operators, where it exists. Empty: root only.", at: func(c *Config) any { return &c.SocketGroup },
		},
		{
			Key: "tls.listen", Flag: "tls-listen", Arg: "address", check: hostPort,
			Doc: "Address and port to serve on over the network as well, such as 0.0.0.0:8443 or [::]:8443.\nEmpty: not at all. Whoever comes needs a token, or a certificate that is let in below.",
			at:  func(c *Config) any { return &c.TLSListen },
		},
		{
			Key: "tls.certificate", Flag: "tls-certificate", Arg: "file", check: absoluteIfAny, Live: true,
			Doc: "Certificate to show there, with those between it and its CA, in PEM.\nA reload reads the files of this section anew, and keeps the old where one cannot be used.",
			at:  func(c *Config) any { return &c.TLSCertificate },
		},
		{
			Key: "tls.key", Flag: "tls-key", Arg: "file", check: absoluteIfAny, Live: true,
			Doc: "Key of the certificate, in PEM; its mode is 0600 or 0640.", at: func(c *Config) any { return &c.TLSKey },
		},
		{
			Key: "tls.client_ca", Flag: "tls-client-ca", Arg: "file", check: absoluteIfAny, Live: true,
			Doc: "CA, or several, whose clients may come with a certificate instead of a token, in PEM.", at: func(c *Config) any { return &c.TLSClientCA },
		},
		{
			Key: "tls.admins", Flag: "tls-admin", Arg: "client", check: client, Live: true,
			Doc: "Clients of that CA that are administrators: subject:, cn:, dns:, email: or uri: with what the\ncertificate has there, such as cn:alice, or any for all of the CA. Who is in no list is let do nothing.",
			at:  func(c *Config) any { return &c.TLSAdmins },
		},
		{
			Key: "tls.operators", Flag: "tls-operator", Arg: "client", check: client, Live: true,
			Doc: "Clients that may give partitions to VMs and take them back.", at: func(c *Config) any { return &c.TLSOperators },
		},
		{
			Key: "tls.viewers", Flag: "tls-viewer", Arg: "client", check: client, Live: true,
			Doc: "Clients that may look.", at: func(c *Config) any { return &c.TLSViewers },
		},
		{
			Key: "libvirt.uri", Flag: "libvirt-uri", Arg: "uri", check: something,
			Doc: "Libvirt to connect to.", at: func(c *Config) any { return &c.LibvirtURI },
		},
		{
			Key: "libvirt.detach_timeout", Flag: "detach-timeout", Arg: "duration", check: between(time.Second, 10*time.Minute), Live: true,
			Doc: "How long a guest may take to let go of a device before the detach is undone.", at: func(c *Config) any { return &c.DetachTimeout },
		},
		{
			Key: "restore.timeout", Flag: "restore-timeout", Arg: "duration", check: between(10*time.Second, time.Hour),
			Doc: "How long the restore at boot waits for GPUs to appear. gpuvirt-restore.service\nends it after 3 minutes.",
			at:  func(c *Config) any { return &c.RestoreTimeout },
		},
		{
			Key: "nvidia.nvml", Flag: "nvml", Arg: "library", check: something,
			Doc: "NVIDIA's management library, by path or as the dynamic linker finds it.", at: func(c *Config) any { return &c.NVML },
		},
		{
			Key: "nvidia.sriov_manage", Flag: "sriov-manage", Arg: "program", check: absolute,
			Doc: "NVIDIA's program that turns virtual functions on and off.", at: func(c *Config) any { return &c.SRIOVManage },
		},
		{
			Key: "pci_gpus", Flag: "pci-gpu", Arg: "vendor:device", check: sriov.ParseDevice,
			Doc: "PCI devices that are GPUs though their class does not say so, by vendor:device.", at: func(c *Config) any { return &c.PCIGPUs },
		},
		{
			Key: "placement", Flag: "placement", Arg: "how", check: oneOf("pack", "spread"), Live: true,
			Doc: "How a GPU is chosen where several fit and a request does not say: pack takes the\nfullest, so that others stay whole; spread the emptiest. The same goes for MIG instances that\nseveral vGPUs share, where their GPU has no placement of its own.", at: func(c *Config) any { return &c.Placement },
		},
		{
			Key: "p2v.credentials", Flag: "credentials", Arg: "folder", check: absolute,
			Doc: "Folder with the private keys that physical servers are reached with by ssh, and with folders of\ncertificates for disks that come by NBD. A request names a file or a folder in it.", at: func(c *Config) any { return &c.Credentials },
		},
		{
			Key: "p2v.inspector", Flag: "inspector", Arg: "program", check: absolute,
			Doc: "Program that is brought to a physical server to look at it: the command gpuvirt.", at: func(c *Config) any { return &c.Inspector },
		},
		{
			Key: "p2v.mirrors", Flag: "mirrors", Arg: "folder", check: plainPath,
			Doc: "Folder of the copies of physical servers' disks, and of the disks that VMs have of them. libvirt\nhas to be let in there. Another one has to be opened to the daemon by a drop-in of its unit,\nwith ReadWritePaths=, and the folders above it must let everybody pass (mode 0711).", at: func(c *Config) any { return &c.Mirrors },
		},
		{
			Key: "p2v.scratch", Flag: "scratch", Arg: "folder", check: plainPath,
			Doc: "Folder of what conversions of disks need while they go on, with 2 GiB of room. Another one has\nto be opened to the daemon in the same way.", at: func(c *Config) any { return &c.Scratch },
		},
		{
			Key: "p2v.convert_user", Flag: "convert-user", Arg: "user", check: userName,
			Doc: "User whom conversions of disks run as. It must not be root, nor anybody who has other things to do.", at: func(c *Config) any { return &c.ConvertUser },
		},
		{
			Key: "p2v.guest_files", Flag: "guest-files", Arg: "folder", check: plainPath,
			Doc: "Folder of packages for VMs that servers become, in SYSTEM/agent (QEMU's guest agent) and\nSYSTEM/driver (NVIDIA's guest driver), where SYSTEM is such as debian-12 or rhel-9. They must be\nreadable to the user above.", at: func(c *Config) any { return &c.GuestFiles },
		},
		{
			Key: "p2v.images", Flag: "images", Arg: "folder", check: folder,
			Doc: "Folders from which migrations may read disks of servers that are off: raw images, and sockets of\nNBD; /dev for disks that are plugged in here. Whoever may begin migrations has a VM made of any file\nin them. Empty: none. What lies in /home, /root or /tmp is not seen by the daemon.", at: func(c *Config) any { return &c.Images },
		},
		{
			Key: "p2v.listen", Flag: "p2v-listen", Arg: "address", check: hostPort,
			Doc: "Address and port where servers that were started from virt-p2v may come, such as 192.0.2.10:2222.\nIt takes virt-p2v.password or virt-p2v.keys in the folder of credentials. Empty: nowhere.", at: func(c *Config) any { return &c.P2VListen },
		},
		{
			Key: "p2v.lease", Flag: "lease", Arg: "duration", check: lease, Live: true,
			Doc: "How long the partitions of a migration are kept while nobody does anything with it, where its request\ndoes not say: 1h to 8760h, or 0: until it ends. A week before, or a quarter of that, it is told.", at: func(c *Config) any { return &c.Lease },
		},
		{
			Key: "p2v.drivers", Flag: "driver-row", Arg: "row", check: assess.DriverRow, rows: true, Live: true,
			Doc: "Rows for the table of which drivers of NVIDIA go together, over the built-in ones of the same branch\nor compute capability. Of a branch: branch, vgpu, long_term, same_branch, previous, previous_long_term,\ncuda, certain, long_term_certain; of an architecture: compute_capability, since, until, modules.", at: func(c *Config) any { return &c.Drivers },
		},
	}
}

// IsList reports whether a setting takes several values.
func (s Setting) IsList() bool {
	_, is := s.at(new(Config)).(*[]string)
	return is
}

// Values returns what a configuration says, as text: of a list its entries, else one.
func (s Setting) Values(c Config) []string {
	switch v := s.at(&c).(type) {
	case *string:
		return []string{*v}
	case *float64:
		return []string{strconv.FormatFloat(*v, 'f', -1, 64)}
	case *uint64:
		return []string{strconv.FormatUint(*v, 10)}
	case *bool:
		return []string{strconv.FormatBool(*v)}
	case *time.Duration:
		return []string{v.String()}
	case *slog.Level:
		return []string{strings.ToLower(v.String())}
	case *[]string:
		return slices.Clone(*v)
	}
	return nil
}

// Set says something, as text; nothing is changed where that cannot be.
func (s Setting) Set(c *Config, values ...string) error {
	var out []string
	for _, text := range values {
		text, err := s.check(text)
		if err != nil {
			return err
		}
		out = append(out, text)
	}
	at := s.at(c)
	if list, ok := at.(*[]string); ok {
		*list = out
		return nil
	}
	if len(out) != 1 {
		return errors.New("it takes one value")
	}
	switch v := at.(type) {
	case *string:
		*v = out[0]
	case *float64:
		n, err := strconv.ParseFloat(out[0], 64)
		if err != nil {
			return err
		}
		*v = n
	case *uint64:
		n, err := strconv.ParseUint(out[0], 10, 64)
		if err != nil {
			return err
		}
		*v = n
	case *bool:
		*v = out[0] == "true"
	case *time.Duration:
		d, err := time.ParseDuration(out[0])
		if err != nil {
			return notADuration(out[0])
		}
		*v = d
	case *slog.Level:
		i := slices.Index([]string{"debug", "info", "warn", "error"}, out[0])
		if i < 0 {
			return fmt.Errorf("%q is none of debug, info, warn, error", out[0])
		}
		*v = []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}[i]
	}
	return nil
}

// Differ lists the settings that two configurations differ in.
func Differ(a, b Config) (out []Setting) {
	for _, s := range Settings() {
		if !slices.Equal(s.Values(a), s.Values(b)) {
			out = append(out, s)
		}
	}
	return out
}

func anything(text string) (string, error) { return text, nil }

func something(text string) (string, error) {
	if text == "" {
		return "", errors.New("it is empty")
	}
	return text, nil
}

func oneOf(words ...string) func(string) (string, error) {
	return func(text string) (string, error) {
		if !slices.Contains(words, text) {
			return "", fmt.Errorf("%q is none of %s", text, strings.Join(words, ", "))
		}
		return text, nil
	}
}

func absolute(text string) (string, error) {
	if !filepath.IsAbs(text) {
		return "", fmt.Errorf("%q is no absolute path", text)
	}
	return text, nil
}

// folder takes a folder other than that of everything.
func folder(text string) (string, error) {
	if _, err := absolute(text); err != nil {
		return "", err
	}
	if filepath.Clean(text) == "/" {
		return "", errors.New("it is everything")
	}
	return filepath.Clean(text), nil
}

// plainPath takes a path that programs of others take as no more than that.
func plainPath(text string) (string, error) {
	if _, err := absolute(text); err != nil {
		return "", err
	}
	if strings.ContainsAny(text, ":,") || strings.ContainsFunc(text, unicode.IsControl) {
		return "", fmt.Errorf("%q has a colon, a comma or a control character", text)
	}
	return filepath.Clean(text), nil
}

var userNames = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,30}$`)

func userName(text string) (string, error) {
	if !userNames.MatchString(text) || text == "root" {
		return "", fmt.Errorf("%q is no name of a user, or root", text)
	}
	return text, nil
}

func absoluteIfAny(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	return absolute(text)
}

func hostPort(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(text)
	n, errPort := strconv.ParseUint(port, 10, 16)
	_, errHost := netip.ParseAddr(host)
	if err != nil || errPort != nil || n == 0 || host != "" && errHost != nil {
		return "", fmt.Errorf("%q is no address with a port, such as 0.0.0.0:8443 or [::]:8443", text)
	}
	return text, nil
}

func client(text string) (string, error) {
	_, err := access.ParseClient(text)
	return text, err
}

func between(least, most time.Duration) func(string) (string, error) {
	return func(text string) (string, error) {
		d, err := time.ParseDuration(text)
		if err != nil {
			return "", notADuration(text)
		}
		if d < least || d > most {
			return "", fmt.Errorf("%s is not between %s and %s", text, least, most)
		}
		return text, nil
	}
}

// figure takes what a figure of the policy can be. Zero is none: it stands for the default.
func figure(f assess.Figure) func(string) (string, error) {
	return func(text string) (string, error) {
		var n float64
		var err error
		switch f.Of(new(assess.Policy)).(type) {
		case *bool:
			if text != "true" && text != "false" {
				return "", fmt.Errorf("%q is neither true nor false", text)
			}
			return text, nil
		case *uint64:
			var whole uint64
			if whole, err = strconv.ParseUint(text, 10, 64); err != nil {
				return "", fmt.Errorf("%q is no whole number", text)
			}
			n = float64(whole)
		default:
			if n, err = strconv.ParseFloat(text, 64); err != nil {
				return "", fmt.Errorf("%q is no number", text)
			}
		}
		if !(n > 0 && n <= f.Most) { //nolint:staticcheck // so that NaN is none
			return "", fmt.Errorf("%s is not more than 0 and at most %s", text, strconv.FormatFloat(f.Most, 'f', -1, 64))
		}
		return text, nil
	}
}

func lease(text string) (string, error) {
	if d, err := time.ParseDuration(text); err == nil && d == 0 {
		return text, nil
	}
	return between(time.Hour, 365*24*time.Hour)(text)
}

func notADuration(text string) error {
	return fmt.Errorf("%q is no duration, such as 30s or 1m30s", text)
}
