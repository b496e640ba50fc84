package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
)

// lay writes files below a folder.
func lay(t *testing.T, dir string, mode os.FileMode, files map[string]string) {
	t.Helper()
	for name, text := range files {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
}

// What a simulated host makes VMs with is simulated, and there.
func TestToolsOfASimulatedHost(t *testing.T) {
	for _, p := range []assess.Presence{tools(true, nil).Converter, tools(true, nil).UEFI, tools(true, nil).SecureBoot, tools(true, nil).TPM} {
		if p != (assess.Presence{Known: true}) {
			t.Errorf("%+v", p)
		}
	}
	c := convert.New(convert.Config{Path: []string{t.TempDir()}})
	if got := tools(false, c).Converter; !got.Known || !strings.Contains(got.Lacks, "virt-v2v-in-place") || !strings.Contains(got.Lacks, "debian: ") {
		t.Errorf("%+v", got)
	}
}

func TestEmulatedTPM(t *testing.T) {
	dir := t.TempDir()
	lay(t, dir, 0o755, map[string]string{"a/swtpm": "", "b/x": ""})
	lay(t, dir, 0o644, map[string]string{"b/swtpm_setup": ""})
	path := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "none")}
	if got := emulatedTPM(path...); !got.Known || !strings.Contains(got.Lacks, "swtpm_setup is missing") {
		t.Errorf("%+v", got)
	}
	if err := os.Chmod(filepath.Join(dir, "b/swtpm_setup"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := emulatedTPM(path...); got != assess.Found(nil) {
		t.Errorf("%+v", got)
	}
}

// Descriptors as Debian's ovmf has them.
func TestFirmware(t *testing.T) {
	const plain, secure = `"verbose-dynamic"`, `"enrolled-keys", "requires-smm", "secure-boot"`
	describe := func(image, machine, features string) string {
		return `{"interface-types": ["uefi"], "mapping": {"device": "flash", "executable": {"filename": "` + image + `", "format": "raw"}},
			"targets": [{"architecture": "x86_64", "machines": ["` + machine + `"]}], "features": ["acpi-s3", ` + features + `], "tags": []}`
	}
	for name, c := range map[string]struct {
		files         map[string]string // %s: an image that is there
		plain, secure bool
	}{
		"nothing":            {},
		"both":               {map[string]string{"usr/1.json": describe("%s", "pc-q35-*", plain), "usr/2.json": describe("%s", "pc-q35-*", secure)}, true, true},
		"plain alone":        {map[string]string{"usr/1.json": describe("%s", "pc-q35-*", plain)}, true, false},
		"secure alone":       {map[string]string{"usr/1.json": describe("%s", "pc-q35-*", secure)}, false, true},
		"no keys":            {map[string]string{"usr/1.json": describe("%s", "pc-q35-*", `"secure-boot"`)}, false, false},
		"no image":           {map[string]string{"usr/1.json": describe("/nowhere/x", "pc-q35-*", plain)}, false, false},
		"of another machine": {map[string]string{"usr/1.json": describe("%s", "virt-*", plain)}, false, false},
		"of another kind":    {map[string]string{"usr/1.json": strings.ReplaceAll(describe("%s", "pc-q35-*", plain), `"uefi"`, `"bios"`)}, false, false},
		"hidden":             {map[string]string{"usr/1.json": describe("%s", "pc-q35-*", plain), "etc/1.json": ""}, false, false},
		"the host's own":     {map[string]string{"etc/1.json": describe("%s", "pc-q35-*", plain)}, true, false},
		"garbled":            {map[string]string{"usr/0.json": "{", "usr/1.json": describe("%s", "pc-q35-*", plain), "usr/readme": "x"}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for at, text := range c.files {
				c.files[at] = strings.ReplaceAll(text, "%s", filepath.Join(dir, "image.fd"))
			}
			lay(t, dir, 0o644, map[string]string{"image.fd": ""})
			lay(t, dir, 0o644, c.files)
			gotPlain, gotSecure := firmware(filepath.Join(dir, "usr"), filepath.Join(dir, "etc"))
			if !gotPlain.Known || !gotSecure.Known || (gotPlain.Lacks == "") != c.plain || (gotSecure.Lacks == "") != c.secure {
				t.Errorf("%+v, %+v", gotPlain, gotSecure)
			}
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	lay(t, filepath.Dir(file), 0o644, map[string]string{"file": ""})
	if got, _ := firmware(file); got.Known {
		t.Errorf("what cannot be read is %+v", got)
	}
}
