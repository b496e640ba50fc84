package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/internal/secret"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/guest"
	"gpuvirt/p2v/report"
)

// licenceToken is the name of the file in the folder of credentials.
const licenceToken = "licence.tok"

// guestFiles tells what operators bring for guests: packages from a folder, in
// SYSTEM/agent and SYSTEM/driver, where SYSTEM is the ID of os-release with its version, or
// the first number of it ("debian-12", "rhel-9"); and the licence token from among the
// credentials, where a move is to take it.
func guestFiles(folder, credentials string) func(report.OS, assess.Wish) (guest.Options, error) {
	return func(system report.OS, w assess.Wish) (guest.Options, error) {
		var o guest.Options
		var err error
		if o.Agent, err = packagesOf(folder, system, "agent"); err != nil {
			return o, err
		}
		if o.Driver.Packages, err = packagesOf(folder, system, "driver"); err != nil {
			return o, err
		}
		if w.LicenceToken {
			o.Driver.Token, err = readToken(credentials)
		}
		return o, err
	}
}

// readSecret reads files of the folder of credentials, by their names.
func readSecret(credentials string) func(name string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		root, err := os.OpenRoot(credentials)
		if err != nil {
			return nil, err
		}
		defer root.Close() //nolint:errcheck // only read
		return secret.Read(root, name)
	}
}

func readToken(credentials string) ([]byte, error) {
	token, err := readSecret(credentials)(licenceToken)
	if err != nil {
		return nil, gpu.Errorf(gpu.CodeConflict, "cannot read the licence token: %w", err).
			WithHint("bring it as %s, or begin the migration without one", filepath.Join(credentials, licenceToken))
	}
	return token, nil
}

// What a server calls itself becomes the name of a folder.
var systemName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}-[0-9]{1,4}(\.[0-9]{1,4}){0,3}$`)

// packagesOf are the packages for a system, of the folder for just its version or for all of
// its release; none, where there is no such folder.
func packagesOf(folder string, system report.OS, kind string) ([]string, error) {
	major, _, _ := strings.Cut(system.VersionID, ".")
	for _, version := range slices.Compact([]string{system.VersionID, major}) {
		name := system.ID + "-" + version
		if !systemName.MatchString(name) {
			continue
		}
		dir := filepath.Join(folder, name, kind)
		all, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, gpu.Errorf(gpu.CodeConflict, "cannot read the packages for guests: %w", err)
		}
		var out []string
		for _, e := range all {
			if e.Type().IsRegular() && slices.Contains([]string{".deb", ".rpm"}, filepath.Ext(e.Name())) {
				out = append(out, filepath.Join(dir, e.Name()))
			}
		}
		return out, nil
	}
	return nil, nil
}
