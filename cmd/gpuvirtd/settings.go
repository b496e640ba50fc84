package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	"gpuvirt/access"
	"gpuvirt/config"
	rest "gpuvirt/daemon"
)

// overrides are what was said on the command line, by a setting's key.
type overrides map[string][]string

// settingFlags gives every setting its flag. That of a list may be repeated.
func settingFlags(flags *flag.FlagSet) overrides {
	said := overrides{}
	for _, s := range config.Settings() {
		if s.Flag == "" {
			continue
		}
		usage := fmt.Sprintf("`%s`: %s", s.Arg, strings.ReplaceAll(s.Doc, "\n", " "))
		if s.IsList() {
			usage += " May be repeated."
		} else {
			usage += " (default " + s.Values(config.Default())[0] + ")"
		}
		flags.Func(s.Flag, usage, func(text string) error {
			if !s.IsList() {
				said[s.Key] = nil
			}
			said[s.Key] = append(said[s.Key], text)
			return s.Set(new(config.Config), said[s.Key]...)
		})
	}
	return said
}

// load reads the configuration: what was said on the command line counts more than any
// file. A simulated host has nothing to do with this one's file. Where something is wrong
// it returns what can be used, too.
func load(file string, simulated bool, said overrides) (config.Loaded, error) {
	out := config.Loaded{Config: config.Default(), Origin: map[string]string{}}
	var err error
	if file != "" || !simulated {
		if out, err = config.Load(cmp.Or(file, config.DefaultPath), file == ""); err != nil {
			err = fmt.Errorf("the configuration cannot be used:\n%w", err)
		}
	}
	for _, s := range config.Settings() {
		if values, ok := said[s.Key]; ok {
			err = errors.Join(err, out.Override(s, values...))
		}
	}
	if err == nil {
		if err = out.Check(); err != nil {
			err = fmt.Errorf("the configuration cannot be used:\n%w", err)
		}
	}
	return out, err
}

// tlsOf is how a configuration has the network served; false: not at all.
func tlsOf(c config.Config) (rest.TLS, bool, error) {
	if c.TLSListen == "" {
		return rest.TLS{}, false, nil
	}
	clients, err := access.ParseClients(c.TLSAdmins, c.TLSOperators, c.TLSViewers)
	return rest.TLS{Certificate: c.TLSCertificate, Key: c.TLSKey, ClientCA: c.TLSClientCA, Clients: clients}, true, err
}

// checkFiles reads the files that a configuration names as the daemon would.
func checkFiles(c config.Config, now time.Time) error {
	var errs []error
	if c.TLSCertificate != "" {
		_, err := access.LoadPair(c.TLSCertificate, c.TLSKey, now)
		errs = append(errs, err)
	}
	if c.TLSClientCA != "" {
		_, err := access.LoadCA(c.TLSClientCA, now)
		errs = append(errs, err)
	}
	if c.P2VListen != "" {
		_, err := admission(c.Credentials)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
