// Package version knows which gpuvirt this is. The Makefile and hack/packages set
// the version when they link; a binary built by other means falls back to what the
// Go toolchain recorded in it.
package version

import (
	"cmp"
	"runtime/debug"
)

// Set by the linker (-X gpuvirt/internal/version.version=…) and never changed.
var version string

// String returns the version, such as "0.3.1", "0.3.1+5.g1a2b3c4+dirty", or
// "devel" when nothing is known.
func String() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	return fromBuildInfo(info)
}

func fromBuildInfo(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	return cmp.Or(revision, "devel") + dirty
}
