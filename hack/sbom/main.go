// Command sbom prints what programs are made of, as CycloneDX 1.5: the modules that Go's
// linker recorded in them, with their versions and checksums.
//
//	sbom VERSION PROGRAM…
package main

import (
	"cmp"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
)

type document struct {
	Format      string       `json:"bomFormat"`
	SpecVersion string       `json:"specVersion"`
	Version     int          `json:"version"`
	Metadata    metadata     `json:"metadata"`
	Components  []component  `json:"components"`
	Depends     []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type    string     `json:"type"`
	Ref     string     `json:"bom-ref"`
	Name    string     `json:"name"`
	Version string     `json:"version"`
	PURL    string     `json:"purl,omitempty"`
	Hashes  []checksum `json:"hashes,omitempty"`
}

type checksum struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

type dependency struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn"`
}

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: sbom VERSION PROGRAM…")
	}
	version, programs := args[0], args[1:]
	doc := document{
		Format: "CycloneDX", SpecVersion: "1.5", Version: 1,
		Metadata: metadata{component{Type: "application", Ref: "gpuvirt", Name: "gpuvirt", Version: version, PURL: "pkg:generic/gpuvirt@" + version}},
	}
	all := dependency{Ref: "gpuvirt", On: []string{}}
	for _, path := range programs {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return fmt.Errorf("cannot read %q: %w", path, err)
		}
		name := filepath.Base(path)
		ref := "program:" + name // one of them has the name of all
		doc.Components = append(doc.Components, component{Type: "application", Ref: ref, Name: name, Version: version})
		all.On = append(all.On, ref)
		on := dependency{Ref: ref}
		// What a program contains first of all is Go's own library.
		for _, m := range append([]*debug.Module{{Path: "std", Version: strings.TrimPrefix(info.GoVersion, "go")}}, info.Deps...) {
			if m.Replace != nil {
				m = m.Replace
			}
			c, err := componentOf(m)
			if err != nil {
				return err
			}
			on.On = append(on.On, c.Ref)
			if !slices.ContainsFunc(doc.Components, func(x component) bool { return x.Ref == c.Ref }) {
				doc.Components = append(doc.Components, c)
			}
		}
		doc.Depends = append(doc.Depends, on)
	}
	doc.Depends = append(doc.Depends, all)
	slices.SortFunc(doc.Components, func(a, b component) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.SortFunc(doc.Depends, func(a, b dependency) int { return cmp.Compare(a.Ref, b.Ref) })
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

// componentOf is a module. Go's checksum of it is one of its files' names and contents
// (dirhash H1), of which SHA-256 is the last step.
func componentOf(m *debug.Module) (component, error) {
	purl := "pkg:golang/" + m.Path + "@" + m.Version
	c := component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, PURL: purl}
	sum, ok := strings.CutPrefix(m.Sum, "h1:")
	if !ok {
		return c, nil
	}
	raw, err := base64.StdEncoding.DecodeString(sum)
	if err != nil {
		return c, fmt.Errorf("cannot read the checksum of %s: %w", m.Path, err)
	}
	c.Hashes = []checksum{{"SHA-256", hex.EncodeToString(raw)}}
	return c, nil
}
