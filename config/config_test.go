package config_test

import (
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/config"
	"gpuvirt/p2v/assess"
)

var update = flag.Bool("update", false, "write packaging/gpuvirtd.yaml anew")

// folder writes files and returns where they are.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The file that the package installs says every setting, and nothing other than what holds
// without it; with its comments gone it reads as just that.
func TestReference(t *testing.T) {
	const path = "../packaging/gpuvirtd.yaml"
	text := config.Reference()
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	there, err := os.ReadFile(path)
	if err != nil || string(there) != text {
		t.Errorf("%s is stale (go test ./config -update): %v\n%s", path, err, cmp.Diff(text, string(there)))
	}
	var plain strings.Builder
	for line := range strings.Lines(text) {
		if bare := strings.TrimLeft(line, " "); strings.HasPrefix(bare, "#") && !strings.HasPrefix(bare, "# ") {
			line = strings.Replace(line, "#", "", 1)
		}
		plain.WriteString(line)
	}
	dir := folder(t, map[string]string{"as-it-is.yaml": text, "plain.yaml": plain.String()})
	for _, name := range []string{"as-it-is.yaml", "plain.yaml"} {
		got, err := config.Load(filepath.Join(dir, name), false)
		if err != nil || len(config.Differ(got.Config, config.Default())) != 0 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if all := len(config.Settings()); name == "plain.yaml" && len(got.Origin) != all || name != "plain.yaml" && len(got.Origin) != 0 {
			t.Errorf("%s says %d of %d settings", name, len(got.Origin), all)
		}
	}
}

// Figures of the policy and rows of the table of drivers are read, file by file and figure by
// figure, and printed as they are read.
func TestPolicyAndDrivers(t *testing.T) {
	dir := folder(t, map[string]string{
		"x.yaml":     "p2v:\n  policy:\n    memory_margin_ratio: 0.25\n    boot_seconds: 300\n  drivers:\n    - branch: 620\n      vgpu: 21\n      previous: 595\n      long_term: true\n    - {since: 620, compute_capability: '13.0'}\n",
		"x.d/1.yaml": "p2v: {policy: {boot_seconds: 240.5, accept_unknown_compute: true, context_bytes: 1073741824}}\n",
	})
	got, err := config.Load(filepath.Join(dir, "x.yaml"), false)
	if err = errors.Join(err, got.Check()); err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Policy.MemoryMarginRatio, want.Policy.BootSeconds, want.Policy.AcceptUnknownCompute, want.Policy.ContextBytes = 0.25, 240.5, true, 1<<30
	want.Drivers = []string{"branch=620 vgpu=21 long_term=true previous=595", "compute_capability=13.0 since=620"}
	if diff := cmp.Diff(want, got.Config); diff != "" {
		t.Error(diff)
	}
	if from := got.Origin["p2v.policy.boot_seconds"]; from != filepath.Join(dir, "x.d/1.yaml")+":1" || got.Origin["p2v.policy.memory_margin_ratio"] != filepath.Join(dir, "x.yaml")+":3" {
		t.Errorf("%v", got.Origin)
	}
	text := config.Format(got)
	for _, line := range []string{
		"  policy:\n", "    memory_margin_ratio: 0.25  # " + dir, "    window_seconds: 86400\n", "    accept_unknown_compute: true  # ",
		`    - {branch: "620", vgpu: "21", long_term: "true", previous: "595"}` + "\n",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	again, err := config.Load(filepath.Join(folder(t, map[string]string{"x.yaml": text}), "x.yaml"), false)
	if diff := cmp.Diff(got.Config, again.Config); diff != "" || err != nil {
		t.Error(err, diff)
	}
	if len(config.Differ(got.Config, config.Default())) != 5 {
		t.Errorf("%v", config.Differ(got.Config, config.Default()))
	}
}

// What is printed reads back.
func TestFormat(t *testing.T) {
	want := config.Loaded{Config: config.Config{
		StateDir: "/s", SocketPath: "/a: b", SocketGroup: "", LibvirtURI: "test:///default", DetachTimeout: time.Minute, RestoreTimeout: 10 * time.Second,
		NVML: "/lib # x", SRIOVManage: "/bin/true", PCIGPUs: []string{"1b36:0010", "8086:1234"}, Placement: "spread", Credentials: "/etc/keys", Inspector: "/bin/gpuvirt", Mirrors: "/srv/m", Scratch: "/srv/s", ConvertUser: "someone", GuestFiles: "/srv/g", LogLevel: slog.LevelDebug,
		Policy: assess.Policy{ComputeQuantile: 1}.WithDefaults(), Drivers: []string{"branch=620 vgpu=21"},
		TLSListen: "[::]:8443", TLSCertificate: "/c", TLSKey: "/k", TLSClientCA: "/ca",
		TLSAdmins: []string{"subject:CN=alice,O=A: B"}, TLSOperators: []string{"cn:#1"}, TLSViewers: []string{"any"},
	}, Origin: map[string]string{"state_dir": "command line", "pci_gpus": "f.yaml:3"}}
	text := config.Format(want)
	if !strings.Contains(text, "state_dir: /s  # command line\n") {
		t.Errorf("%s", text)
	}
	got, err := config.Load(filepath.Join(folder(t, map[string]string{"x.yaml": text}), "x.yaml"), false)
	if diff := cmp.Diff(want.Config, got.Config); diff != "" || err != nil {
		t.Errorf("%v\n%s\n%s", err, text, diff)
	}
}

// Files of the folder come after the file, by name; the last counts, and it is known which
// it was.
func TestDropIns(t *testing.T) {
	dir := folder(t, map[string]string{
		"gpuvirtd.yaml":          "log: {level: warn}\nlibvirt:\n  uri: test:///one\npci_gpus: ['1B36:0010']\n",
		"gpuvirtd.d/20-b.yaml":   "libvirt: {uri: 'test:///two'}\n",
		"gpuvirtd.d/10-a.yaml":   "# only a comment\n",
		"gpuvirtd.d/30-c.yaml":   "pci_gpus:\n- 8086:56c0\nlibvirt:\n  detach_timeout: 1m\n",
		"gpuvirtd.d/40-no.yml":   "nonsense",
		"gpuvirtd.d/README":      "nonsense",
		"gpuvirtd.d/.30-c.yaml":  "nonsense",
		"other.d/10-other.yaml":  "nonsense: 1",
		"[a].d/10.yaml":          "log: {level: error}",
		"[a].yaml":               "",
		"a.d/10-not-matched.yml": "",
	})
	path := func(name string) string { return filepath.Join(dir, name) }
	got, err := config.Load(path("gpuvirtd.yaml"), false)
	if err != nil {
		t.Fatal(err)
	}
	if got.LogLevel != slog.LevelWarn || got.LibvirtURI != "test:///two" || got.DetachTimeout != time.Minute || !slices.Equal(got.PCIGPUs, []string{"8086:56c0"}) {
		t.Errorf("%+v", got.Config)
	}
	if want := []string{path("gpuvirtd.yaml"), path("gpuvirtd.d/10-a.yaml"), path("gpuvirtd.d/20-b.yaml"), path("gpuvirtd.d/30-c.yaml")}; !slices.Equal(got.Files, want) {
		t.Errorf("%v", got.Files)
	}
	want := map[string]string{
		"log.level": path("gpuvirtd.yaml") + ":1", "libvirt.uri": path("gpuvirtd.d/20-b.yaml") + ":1",
		"libvirt.detach_timeout": path("gpuvirtd.d/30-c.yaml") + ":4", "pci_gpus": path("gpuvirtd.d/30-c.yaml") + ":2",
	}
	if diff := cmp.Diff(want, got.Origin); diff != "" {
		t.Error(diff)
	}
	if got, err := config.Load(path("[a].yaml"), false); err != nil || got.LogLevel != slog.LevelError {
		t.Errorf("%+v, %v", got, err)
	}
	// Without the file itself the folder counts all the same.
	if err := os.Remove(path("gpuvirtd.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path("gpuvirtd.yaml"), false); err == nil || !strings.Contains(err.Error(), "gpuvirtd.yaml") {
		t.Errorf("%v", err)
	}
	if got, err := config.Load(path("gpuvirtd.yaml"), true); err != nil || got.LibvirtURI != "test:///two" || len(got.Files) != 3 {
		t.Errorf("%+v, %v", got, err)
	}
}

// All that is wrong is told, with the line.
func TestWrongFiles(t *testing.T) {
	for text, want := range map[string][]string{
		"placement: near\n": {`:1: placement: "near" is none of pack, spread`},
		"sokcet: {}\n":      {`:1: there is no setting "sokcet": there are state_dir, socket, tls, libvirt, restore, nvidia, pci_gpus, placement, p2v, log`},
		"\nlibvirt:\n  urI: x\n  detach_timeout: 0s\nlog: {level: loud}\n": {
			`:3: there is no setting "libvirt.urI": there are uri, detach_timeout`,
			`:4: libvirt.detach_timeout: 0s is not between 1s and 10m0s`,
			`:5: log.level: "loud" is none of debug, info, warn, error`,
		},
		"state_dir: var\n":                    {`:1: state_dir: "var" is no absolute path`},
		"state_dir: [/var]\n":                 {`:1: state_dir must be a text`},
		"state_dir:\n":                        {`:1: state_dir must be a text`},
		"state_dir: /a\nstate_dir: /b\n":      {`:2: state_dir stands there twice, first in line 1`},
		"libvirt: x\n":                        {`:1: libvirt must be a list of keys with values`},
		"- x\n":                               {`:1: the file must be a list of keys with values`},
		"pci_gpus: 8086:56c0\n":               {`:1: pci_gpus must be a list`},
		"pci_gpus: [8086]\n":                  {`:1: pci_gpus: `},
		"restore: {timeout: soon}\n":          {`:1: restore.timeout: "soon" is no duration, such as 30s or 1m30s`},
		"restore: {timeout: 0s}\n":            {`:1: restore.timeout: 0s is not between 10s and 1h0m0s`},
		"libvirt: {uri: ''}\n":                {`:1: libvirt.uri: it is empty`},
		"p2v: {mirrors: '/a:b'}\n":            {`:1: p2v.mirrors: "/a:b" has a colon, a comma or a control character`},
		"p2v: {scratch: tmp}\n":               {`:1: p2v.scratch: "tmp" is no absolute path`},
		"p2v: {convert_user: root}\n":         {`:1: p2v.convert_user: "root" is no name of a user, or root`},
		"p2v: {images: [srv]}\n":              {`:1: p2v.images: "srv" is no absolute path`},
		"p2v: {images: [/dev/../]}\n":         {`:1: p2v.images: it is everything`},
		"p2v: {convert_user: '0'}\n":          {`:1: p2v.convert_user: "0" is no name of a user, or root`},
		"p2v: {policy: {memory_margin: 1}}\n": {`:1: there is no setting "p2v.policy.memory_margin": there are memory_margin_ratio, `},
		"p2v:\n  policy:\n    compute_quantile: 95\n    boot_seconds: 2m\n    context_bytes: 1.5\n    change_ratio: 0\n    accept_unknown_compute: yes\n    fixed_seconds: NaN\n    overlay_min_bytes: -1\n": {
			`:3: p2v.policy.compute_quantile: 95 is not more than 0 and at most 1`,
			`:4: p2v.policy.boot_seconds: "2m" is no number`,
			`:5: p2v.policy.context_bytes: "1.5" is no whole number`,
			`:6: p2v.policy.change_ratio: 0 is not more than 0 and at most 1`,
			`:7: p2v.policy.accept_unknown_compute: "yes" is neither true nor false`,
			`:8: p2v.policy.fixed_seconds: NaN is not more than 0 and at most `,
			`:9: p2v.policy.overlay_min_bytes: "-1" is no whole number`,
		},
		"p2v: {policy: 1}\n":                {`:1: p2v.policy must be a list of keys with values`},
		"p2v: {drivers: {branch: 620}}\n":   {`:1: p2v.drivers must be a list`},
		"p2v: {drivers: [branch=620]}\n":    {`:1: p2v.drivers must be a list of rows, each of keys with values`},
		"p2v: {drivers: [{branch: [1]}]}\n": {`:1: p2v.drivers must be a list of rows, each of keys with values`},
		"p2v: {drivers: [{vgpu: a b}]}\n":   {`:1: p2v.drivers: "a b" is more than a word`},
		"p2v:\n  drivers:\n    - branch: 620\n      vgpu: 21\n      previous: 630\n    - branch: 625\n      branch: 626\n    - vgup: 1\n      branch: 630\n    - {}\n": {
			`:5: p2v.drivers: previous: a branch before 620 is not older`,
			`:7: p2v.drivers: branch stands there twice`,
			`:8: p2v.drivers: "vgup" is none of branch, vgpu, long_term`,
			`:10: p2v.drivers: a row says branch or compute_capability`,
		},
		"tls: {listen: '8443'}\n":      {`:1: tls.listen: "8443" is no address with a port`},
		"tls: {listen: 'host:8443'}\n": {`:1: tls.listen: "host:8443" is no address with a port`},
		"tls: {listen: '[::]:0'}\n":    {`:1: tls.listen: "[::]:0" is no address with a port`},
		"tls: {key: server.key}\n":     {`:1: tls.key: "server.key" is no absolute path`},
		"tls: {admins: [alice]}\n":     {`:1: tls.admins: "alice" is neither any nor one of subject:, cn:, dns:, email:, uri: with a name`},
		"a: [\n":                       {`: line 1: `},
		"{}\n---\n{}\n":                {`: it holds more than one document`},
		"? {a: 1}\n: 2\n":              {`:1: `},
	} {
		path := filepath.Join(folder(t, map[string]string{"x.yaml": text}), "x.yaml")
		got, err := config.Load(path, false)
		if err == nil {
			t.Errorf("%q: %+v", text, got)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != len(want) {
			t.Errorf("%q: %v", text, err)
			continue
		}
		for i, w := range want {
			if !strings.HasPrefix(lines[i], path+w) {
				t.Errorf("%q: %s, want %s", text, lines[i], w)
			}
		}
	}
}

// Settings that contradict each other are told, with where they stand.
func TestCheck(t *testing.T) {
	for text, want := range map[string][]string{
		"tls: {listen: ':8443', certificate: /c, key: /k}\n":                nil,
		"tls: {certificate: /c, key: /k, client_ca: /ca, viewers: [any]}\n": nil,
		"tls: {listen: ':8443'}\n":                                          {":1: tls.listen takes tls.certificate and tls.key"},
		"tls:\n  listen: ':8443'\n  certificate: /c\n":                      {":3: tls.certificate takes tls.key"},
		"tls: {key: /k}\n": {":1: tls.key takes tls.certificate"},
		"p2v: {drivers: [{branch: 620}, {branch: 620, vgpu: 21}]}\n":         {":1: p2v.drivers has two rows of branch 620"},
		"p2v: {policy: {bandwidth_min_bytes_per_second: 2000000000}}\n":      {":1: p2v.policy.bandwidth_min_bytes_per_second is more than bandwidth_max_bytes_per_second"},
		"p2v:\n  policy:\n    bandwidth_max_bytes_per_second: 1\n":           {":3: p2v.policy.bandwidth_max_bytes_per_second is less than bandwidth_min_bytes_per_second"},
		"tls: {client_ca: /ca}\n":                                            {":1: tls.client_ca lets nobody in"},
		"tls:\n  admins: ['cn:a']\n  operators: []\n  viewers:\n    - any\n": {":2: tls.admins takes tls.client_ca", ":5: tls.viewers takes tls.client_ca"},
	} {
		path := filepath.Join(folder(t, map[string]string{"x.yaml": text}), "x.yaml")
		got, err := config.Load(path, false)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		var lines []string
		if err := got.Check(); err != nil {
			lines = strings.Split(err.Error(), "\n")
		}
		if !slices.EqualFunc(lines, want, func(line, w string) bool { return strings.HasPrefix(line, path+w) }) {
			t.Errorf("%q: %q, want %q", text, lines, want)
		}
	}
}

// Where the store may be elsewhere, and a mistake hides where, that is told: what an old
// store says must not be taken for what was asked for.
func TestStoreUnknown(t *testing.T) {
	state := config.Settings()[0]
	for text, unknown := range map[string]bool{
		"": false, "log: [\n": false, "# state_dir: /s\nlog: [\n": false, "log: {level: loud}\n": false,
		"state_dir: /s\nlog: {level: loud}\n": false, "state_dir: /s\nlog: [\n": true, "{log: [, 'state_dir': /s}\n": true,
		"state_dir: s\n": true, "state_dir: [/s]\n": true, "state_dir: /s\nstate_dir: /t\n": true,
	} {
		dir := folder(t, map[string]string{"x.yaml": text})
		got, _ := config.Load(filepath.Join(dir, "x.yaml"), false)
		if got.StoreUnknown != unknown {
			t.Errorf("%q: %t", text, got.StoreUnknown)
		}
		if err := got.Override(state, "/u"); err != nil || got.StoreUnknown {
			t.Errorf("%q: named on the command line: %t, %v", text, got.StoreUnknown, err)
		}
	}
	dir := folder(t, map[string]string{"x.yaml": "state_dir: s\n", "x.d/1.yaml": "state_dir: /s\n"})
	if got, err := config.Load(filepath.Join(dir, "x.yaml"), false); err == nil || got.StoreUnknown || got.StateDir != "/s" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := config.Load(filepath.Join(dir, "none.yaml"), false); err == nil || !got.StoreUnknown {
		t.Errorf("%+v, %v", got, err)
	}
}

// What says nothing is no error.
func TestEmptyFiles(t *testing.T) {
	for _, text := range []string{"", "# x\n", "---\n", "{}\n", "libvirt:\nlog:\n"} {
		got, err := config.Load(filepath.Join(folder(t, map[string]string{"x.yaml": text}), "x.yaml"), false)
		if err != nil || len(got.Origin) != 0 {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("libvirt:\n  uri: x\n")
	f.Add("pci_gpus: [8086:56c0]\n&a a: *a\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, "x.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := config.Load(path, false)
		if err == nil && got.DetachTimeout <= 0 {
			t.Errorf("%q: %+v", text, got)
		}
	})
}
