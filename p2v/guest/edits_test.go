package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
)

func text(t *testing.T, v any) string {
	t.Helper()
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

// What is done to whole servers, as a person reads it.
func TestEditsRead(t *testing.T) {
	for _, name := range servers {
		r := inspected(t, name)
		for kind, w := range map[string]assess.Wish{"card": vgpus(r, "card"), "vgpu": vgpus(r, "X-80C")} {
			edits, left, err := Edits(r, planned(r, w), brought(r))
			if err != nil {
				t.Fatal(err)
			}
			type readable struct {
				convert.Edit

				Content string `json:"content,omitempty"` // as a text
			}
			var doc struct {
				Edits []readable `json:"edits"`
				Left  []Left     `json:"left"`
			}
			for _, e := range edits {
				doc.Edits = append(doc.Edits, readable{e, string(e.Content)})
			}
			doc.Left = left
			golden(t, name+"-"+kind+".json", text(t, doc))
		}
	}
}

// check reports what is wrong with edits whatever the report says.
func check(t *testing.T, p assess.Plan, edits []convert.Edit, left []Left) {
	t.Helper()
	done := map[string]bool{}
	if len(edits) > convert.MaxEdits {
		t.Errorf("%d edits", len(edits))
	}
	ids := map[string]bool{}
	for _, e := range edits {
		if _, err := e.Render(); err != nil {
			t.Error(err)
		}
		if e.What == "" || e.Why == "" || e.Undo == "" || ids[e.ID] {
			t.Errorf("%+v", e)
		}
		ids[e.ID] = true
		done[e.ID[:strings.LastIndex(e.ID, "-")]] = true
	}
	for _, l := range left {
		if l.Why == "" || l.By == "" {
			t.Errorf("%+v", l)
		}
		done[l.Change.ID] = true
	}
	for _, c := range p.Changes {
		if !done[c.ID] {
			t.Errorf("nothing is said of %s", c.ID)
		}
		delete(done, c.ID)
	}
	for id := range done {
		t.Errorf("%s is no change of the plan", id)
	}
}

// Each change of a plan has an edit, or it is said why not.
func TestEveryChange(t *testing.T) {
	plans := map[string]assess.Plan{}
	reports := map[string]report.Report{}
	for _, name := range servers {
		r := inspected(t, name)
		for kind, w := range map[string]assess.Wish{"": {}, "-card": vgpus(r, "card"), "-vgpu": vgpus(r, "X-20C"), "-none": {Partitions: nil, Disks: []string{"none"}}} {
			plans[name+kind], reports[name+kind] = planned(r, w), r
		}
	}
	files, err := filepath.Glob("../assess/testdata/*.golden.json")
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	for _, file := range files { // plans of servers whose inspection is not kept
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var p assess.Plan
		if err := json.Unmarshal(text, &p); err != nil {
			t.Fatal(err)
		}
		plans[file], reports[file] = p, report.Report{}
	}
	for name, p := range plans {
		for _, o := range []Options{{}, brought(reports[name])} {
			edits, left, err := Edits(reports[name], p, o)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			check(t, p, edits, left)
		}
	}
}

// The package knows all changes that a plan can have, and its documentation has them.
func TestKnowsAllChanges(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	id := regexp.MustCompile(`(?:\bID: |\boff\()"([a-z-]+)"`)
	var all []string
	for _, file := range []string{"guest.go", "guest_driver.go"} {
		source, err := os.ReadFile(filepath.Join("..", "assess", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range id.FindAllStringSubmatch(string(source), -1) {
			all = append(all, m[1])
		}
	}
	if len(all) < 30 {
		t.Fatalf("found only %q", all)
	}
	for _, id := range all {
		if makers[id] == nil && persons[id] == "" {
			t.Errorf("%s is not known", id)
		}
		if !strings.Contains(string(doc), "\t"+id+" ") {
			t.Errorf("%s is not documented", id)
		}
	}
	for id := range makers {
		if !slices.Contains(all, id) {
			t.Errorf("no plan has %s", id)
		}
	}
	for id := range persons {
		if !slices.Contains(all, id) {
			t.Errorf("no plan has %s", id)
		}
	}
}

// made are the edits of a plan with one change, by what is done, and who does what is left.
func made(t *testing.T, r report.Report, p assess.Plan, o Options, c assess.GuestChange) (out []string) {
	t.Helper()
	c.What, c.Why, c.Undo = "what", "why", "undo"
	p.Changes = append(slices.Clone(p.Changes), c)
	edits, left, err := Edits(r, p, o)
	if err != nil {
		t.Fatal(err)
	}
	check(t, p, edits, left)
	for _, e := range edits {
		if e.ID[:strings.LastIndex(e.ID, "-")] == c.ID {
			out = append(out, strings.TrimSpace(strings.Join([]string{string(e.Kind), e.From, e.Path, e.Unit, e.Module, string(e.Command), e.Old, e.New, string(e.Content), strings.Join(e.Files, " ")}, " ")))
		}
	}
	for _, l := range left {
		if l.Change.ID == c.ID {
			out = append(out, fmt.Sprintf("%s %q", l.By, l.Change.Items))
		}
	}
	for i := range out {
		out[i] = strings.Join(strings.Fields(out[i]), " ")
	}
	return out
}

func TestChanges(t *testing.T) {
	yes, no := true, false
	deb := Options{Agent: []string{"/p/a.deb"}, Driver: Driver{Packages: []string{"/p/d.deb"}, Token: []byte("t")}}
	debian := report.OS{ID: "debian", GuestAgent: &no}
	efi := func(loader string, programs ...string) report.Report {
		return report.Report{Firmware: report.Firmware{Type: "uefi", EFI: &report.EFI{Mount: "/boot/efi", Loader: loader, Programs: programs}}}
	}
	settings := func(kind, file, role, exec string, lines ...string) report.Report {
		return report.Report{
			Services: []report.Service{{Unit: "x.service", Role: role, Exec: exec}},
			Configs:  []report.Config{{Path: file, Kind: kind, Lines: lines, Exact: lines}},
		}
	}
	auto := func(id string, items ...string) assess.GuestChange {
		return assess.GuestChange{ID: id, When: assess.Offline, Automatic: true, Items: items}
	}
	for name, c := range map[string]struct {
		r      report.Report
		o      Options
		change assess.GuestChange
		want   []string
	}{
		"agent":              {report.Report{OS: debian}, deb, auto("virtio-drivers"), []string{"packages /p/a.deb", "conversion []"}},
		"agent is there":     {report.Report{OS: report.OS{GuestAgent: &yes}}, deb, auto("virtio-drivers"), []string{"conversion []", "nobody []"}},
		"agent unseen":       {report.Report{}, deb, auto("virtio-drivers"), []string{"conversion []", "person []"}},
		"agent not brought":  {report.Report{OS: debian}, Options{}, auto("virtio-drivers"), []string{"conversion []", "conversion []"}},
		"agent of others":    {report.Report{OS: report.OS{ID: "rocky", GuestAgent: &no}}, deb, auto("virtio-drivers"), []string{"conversion []", "person []"}},
		"serial, told":       {report.Report{OS: report.OS{Cmdline: "ro console=ttyS0,115200"}}, Options{}, auto("serial-console"), []string{"write /etc/systemd/system/getty.target.d/90-gpuvirt-serial.conf # Of the move to a VM: its console can be read on the host. [Unit] Wants=serial-getty@ttyS0.service"}},
		"shim":               {efi("/EFI/debian/shimx64.efi", "grubx64.efi", "MMX64.EFI", "shimx64.efi", "fbx64.efi"), Options{}, auto("boot-fallback"), []string{"copy /boot/efi/EFI/debian/shimx64.efi /boot/efi/EFI/BOOT/BOOTX64.EFI", "copy /boot/efi/EFI/debian/grubx64.efi /boot/efi/EFI/BOOT/grubx64.efi", "copy /boot/efi/EFI/debian/MMX64.EFI /boot/efi/EFI/BOOT/mmx64.efi"}},
		"shim alone":         {efi("/EFI/debian/shimx64.efi", "shimx64.efi"), Options{}, auto("boot-fallback"), []string{"person []"}},
		"a fallback":         {report.Report{Firmware: report.Firmware{EFI: &report.EFI{Mount: "/boot/efi", Loader: "/EFI/a/grubx64.efi", Fallback: true}}}, Options{}, auto("boot-fallback"), []string{"nobody []"}},
		"systemd-boot":       {efi("/EFI/systemd/systemd-bootx64.efi"), Options{}, auto("boot-fallback"), []string{"copy /boot/efi/EFI/systemd/systemd-bootx64.efi /boot/efi/EFI/BOOT/BOOTX64.EFI"}},
		"a kernel":           {efi("/vmlinuz.efi"), Options{}, auto("boot-fallback"), []string{"person []"}},
		"loader outside":     {efi("/EFI/../../etc/grub.efi"), Options{}, auto("boot-fallback"), []string{`person ["/boot/efi/EFI/../../etc/grub.efi"]`}},
		"remove":             {report.Report{}, Options{}, auto("driver-remove"), []string{"firstboot purge-nvidia"}},
		"vgpu":               {report.Report{OS: debian}, deb, auto("driver-vgpu"), []string{"firstboot-packages /p/d.deb", "firstboot load-drivers"}},
		"vgpu, and work":     {report.Report{OS: debian, Services: []report.Service{{Unit: "a.service", Role: "workload", State: "active"}, {Unit: "b.service", Role: "workload"}, {Unit: "c d", Role: "workload", State: "active"}}}, deb, auto("driver-vgpu"), []string{"firstboot-packages /p/d.deb", "firstboot load-drivers", "firstboot-restart a.service"}},
		"vgpu, not brought":  {report.Report{OS: debian}, Options{}, auto("driver-vgpu"), []string{"person []"}},
		"vgpu of others":     {report.Report{OS: report.OS{ID: "fedora"}}, deb, auto("driver-vgpu"), []string{"person []"}},
		"token":              {report.Report{}, deb, auto("licence"), []string{"write /etc/nvidia/gridd.conf # Of the move to a VM: the licence for its vGPU. FeatureType=1", "write /etc/nvidia/ClientConfigToken/client_configuration_token_gpuvirt.tok t"}},
		"token, not brought": {report.Report{}, Options{}, auto("licence"), []string{"write /etc/nvidia/gridd.conf # Of the move to a VM: the licence for its vGPU. FeatureType=1", "person []"}},
		"gridd is there": {report.Report{
			Services: []report.Service{{Unit: "nvidia-gridd.service", Role: "gridd", Enabled: "disabled"}},
			Configs: []report.Config{
				{Path: "/etc/nvidia/gridd.conf", Kind: "gridd", Lines: []string{"FeatureType=0", "A=1"}, Exact: []string{" FeatureType=0", "A=1"}},
				{Path: "/etc/nvidia/ClientConfigToken/old.tok", Kind: "licence-token"},
				{Path: "/etc/ssl/key.pem", Kind: "licence-token"}, // the inspector would not say so
			},
		}, deb, auto("licence"), []string{
			"line /etc/nvidia/gridd.conf FeatureType=0 FeatureType=1", "delete /etc/nvidia/ClientConfigToken/old.tok",
			"write /etc/nvidia/ClientConfigToken/client_configuration_token_gpuvirt.tok t", "unit-enable nvidia-gridd.service",
		}},
		"gridd without a type": {settings("gridd", "/etc/nvidia/gridd.conf", "", "", "A=1"), Options{}, auto("licence"), []string{"write /etc/nvidia/gridd.conf # Of the move to a VM: the licence for its vGPU. A=1 FeatureType=1", "person []"}},
		"gridd unseen": {report.Report{Configs: []report.Config{{Path: "/etc/nvidia/gridd.conf", Kind: "gridd", Lines: []string{"FeatureType=2"}}}}, Options{}, auto("licence"), []string{
			`person ["/etc/nvidia/gridd.conf"]`, "person []",
		}},
		"modules": {
			report.Report{Configs: []report.Config{
				{Path: "/etc/modprobe.d/n.conf", Kind: "modprobe", Lines: []string{"options nvidia a=1", "blacklist nouveau", "softdep nvidia pre: x", "alias y nvidia-current", "options vfio-pci ids=1"}, Exact: []string{"  options nvidia a=1", "blacklist nouveau", "alias y nvidia-current"}},
				{Path: "/etc/modules", Kind: "modules-load", Lines: []string{"nvidia_uvm", "amdgpu"}, Exact: []string{"nvidia_uvm", "amdgpu"}},
			}}, Options{}, auto("driver-modules", "/etc/modprobe.d/n.conf", "/etc/modules"), []string{
				"line /etc/modprobe.d/n.conf options nvidia a=1 # not in a VM: options nvidia a=1", "line /etc/modprobe.d/n.conf alias y nvidia-current # not in a VM: alias y nvidia-current",
				"line /etc/modules nvidia_uvm # not in a VM: nvidia_uvm", `person ["/etc/modprobe.d/n.conf"]`,
			},
		},
		"settings' unit":    {settings("power", "/etc/systemd/system/x.service", "settings", "/usr/bin/nvidia-smi -pl 250", "ExecStart=/usr/bin/nvidia-smi -pl 250"), Options{}, auto("gpu-settings", "/etc/systemd/system/x.service"), []string{"unit-off x.service"}},
		"settings and work": {settings("power", "/etc/systemd/system/x.service", "settings", "/bin/sh -c 'nvidia-smi -pl 250; serve'", "ExecStart=/bin/sh -c 'nvidia-smi -pl 250; serve'"), Options{}, auto("gpu-settings", "/etc/systemd/system/x.service"), []string{`person ["/etc/systemd/system/x.service"]`}},
		"settings' unit in use": {report.Report{
			Processes: []report.Process{{Unit: "x.service"}}, Services: []report.Service{{Unit: "x.service", Role: "settings", Exec: "nvidia-smi -pl 9"}},
			Configs: []report.Config{{Path: "/etc/systemd/system/x.service", Kind: "power", Lines: []string{"ExecStart=nvidia-smi -pl 9"}}},
		}, Options{}, auto("gpu-settings", "/etc/systemd/system/x.service"), []string{`person ["/etc/systemd/system/x.service"]`}},
		"a workload's unit":   {settings("mig", "/etc/systemd/system/x.service", "workload", "/bin/serve", "ExecStartPre=-nvidia-smi mig -cgi 9"), Options{}, auto("mig-scripts", "/etc/systemd/system/x.service"), []string{"line /etc/systemd/system/x.service ExecStartPre=-nvidia-smi mig -cgi 9 # not in a VM: ExecStartPre=-nvidia-smi mig -cgi 9"}},
		"a drop-in":           {settings("power", "/etc/systemd/system/x.service.d/a.conf", "workload", "/bin/serve", `ExecStartPre=nvidia-smi -pl 2 \`), Options{}, auto("gpu-settings", "/etc/systemd/system/x.service.d/a.conf"), []string{`person ["/etc/systemd/system/x.service.d/a.conf"]`}},
		"rc.local":            {settings("power", "/etc/rc.local", "", "", "nvidia-smi -pl 250"), Options{}, auto("gpu-settings", "/etc/rc.local"), []string{"line /etc/rc.local nvidia-smi -pl 250 : # not in a VM: nvidia-smi -pl 250"}},
		"rc.local's if":       {settings("power", "/etc/rc.local", "", "", "if nvidia-smi -pm 1; then serve; fi"), Options{}, auto("gpu-settings", "/etc/rc.local"), []string{`person ["/etc/rc.local"]`}},
		"crontab":             {settings("power", "/etc/crontab", "", "", "@reboot root nvidia-smi -pm 1"), Options{}, auto("gpu-settings", "/etc/crontab"), []string{"line /etc/crontab @reboot root nvidia-smi -pm 1 # not in a VM: @reboot root nvidia-smi -pm 1"}},
		"crontab's more":      {settings("power", "/etc/crontab", "", "", "@reboot root nvidia-smi -pm 1 && serve"), Options{}, auto("gpu-settings", "/etc/crontab"), []string{`person ["/etc/crontab"]`}},
		"persistence":         {settings("persistence", "/etc/systemd/system/nvidia-persistenced.service.d/a.conf", "", ""), Options{}, auto("persistence-daemon", "nvidia-persistenced.service", "/etc/systemd/system/nvidia-persistenced.service.d/a.conf"), []string{"unit-off nvidia-persistenced.service", `nobody ["/etc/systemd/system/nvidia-persistenced.service.d/a.conf"]`}},
		"no lines":            {report.Report{}, Options{}, auto("mig-scripts", "/etc/rc.local"), []string{`person ["/etc/rc.local"]`}},
		"long file":           {settings("modprobe", "/etc/modprobe.d/a.conf", "", "", slices.Repeat([]string{"options nvidia a=1"}, maxLines)...), Options{}, auto("driver-modules", "/etc/modprobe.d/a.conf"), []string{"line /etc/modprobe.d/a.conf options nvidia a=1 # not in a VM: options nvidia a=1", `person ["/etc/modprobe.d/a.conf"]`}},
		"xorg":                {settings("xorg", "/etc/X11/xorg.conf", "", "", `Driver "nvidia"`, `	BusID "PCI:1:0:0"`), Options{}, auto("xorg-busid", "/etc/X11/xorg.conf"), []string{`line /etc/X11/xorg.conf BusID "PCI:1:0:0" # not in a VM: BusID "PCI:1:0:0"`}},
		"cdi":                 {report.Report{}, Options{}, auto("cdi-files", "/etc/cdi/nvidia.yaml"), []string{`person ["/etc/cdi/nvidia.yaml"]`}},
		"cdi by itself":       {report.Report{}, Options{}, auto("cdi-files", "/etc/cdi/nvidia.yaml", "nvidia-cdi-refresh.service"), []string{`guest ["/etc/cdi/nvidia.yaml" "nvidia-cdi-refresh.service"]`}},
		"identity":            {report.Report{}, Options{}, auto("identity"), []string{"nobody []"}},
		"nouveau":             {report.Report{}, Options{}, auto("nouveau"), []string{"blacklist-module nouveau"}},
		"not known":           {report.Report{}, Options{}, auto("from-a-later-version"), []string{"person []"}},
		"a person's":          {report.Report{}, deb, assess.GuestChange{ID: "driver-vgpu"}, []string{"person []"}},
		"nothing to do":       {report.Report{}, Options{}, auto("xorg-busid", "/etc/X11/xorg.conf"), []string{`nobody ["/etc/X11/xorg.conf"]`}},
		"a unit of no kind":   {report.Report{}, Options{}, auto("fabric-manager", "a b.service", "ok.service"), []string{"unit-off ok.service", `person ["a b.service"]`}},
		"the same unit twice": {report.Report{}, Options{}, auto("fabric-manager", "ok.service", "ok.service"), []string{"unit-off ok.service", `nobody ["ok.service"]`}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, made(t, c.r, assess.Plan{}, c.o, c.change)); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// The old driver is taken away before the new one comes, or a person does both.
func TestDriverOrder(t *testing.T) {
	r := report.Report{OS: report.OS{ID: "debian"}}
	o := Options{Driver: Driver{Packages: []string{"/p/d.deb"}}}
	p := assess.Plan{Changes: []assess.GuestChange{{ID: "driver-remove", Automatic: true, What: "w", Why: "w", Undo: "u"}}}
	vgpu := assess.GuestChange{ID: "driver-vgpu", Automatic: true}
	if diff := cmp.Diff([]string{"firstboot-packages /p/d.deb", "firstboot load-drivers"}, made(t, r, p, o, vgpu)); diff != "" {
		t.Error(diff)
	}
	p.Changes[0].Automatic = false
	if diff := cmp.Diff([]string{"person []"}, made(t, r, p, o, vgpu)); diff != "" {
		t.Error(diff)
	}
}

// What lies on a disk that is not moved, or is not mounted by the guest's fstab, is not
// edited: the program that edits would fail for all.
func TestEditsWhatIsThere(t *testing.T) {
	r := report.Report{
		Disks:   []report.Disk{{Name: "sda", Partitions: []report.Partition{{Name: "sda1"}, {Name: "sda2"}}}, {Name: "sdb"}},
		Volumes: []report.Volume{{Name: "dm-0", On: []string{"dm-1"}}, {Name: "dm-1", On: []string{"sda2"}}, {Name: "dm-2", On: []string{"dm-0", "sdb"}}, {Name: "dm-3", On: []string{"dm-3"}}},
		Filesystems: []report.Filesystem{
			{Source: "sda1", Mount: "/"},
			{Source: "dm-0", Mount: "/srv"},
			{Source: "dm-2", Mount: "/data"},
			{Source: "nas:/x", Mount: "/nas"},
			{Source: "sda2", Mount: "/unlisted"},
			{Source: "sda2", Mount: "/later"},
			{Source: "dm-3", Mount: "/loop"},
		},
		Boot: report.Boot{Fstab: []report.FstabRow{{Mount: "/"}, {Mount: "/srv"}, {Mount: "/data"}, {Mount: "/nas"}, {Mount: "/later", Options: "rw,noauto"}, {Mount: "/loop"}}},
	}
	m := &maker{Report: r, plan: assess.Plan{Wish: assess.Wish{Disks: []string{"sda"}}}}
	m.place()
	for file, want := range map[string]bool{
		"/etc/x": true, "/srv/x": true, "/srvx": true, "/data/x": false, "/nas/x": false, "/unlisted/x": false, "/later/x": false, "/loop/x": false,
	} {
		if got := m.there(file); got != want {
			t.Errorf("%s: %v, want %v", file, got, want)
		}
	}
}

// A fault of what an operator brought is the operator's to hear of.
func TestEditsRefused(t *testing.T) {
	no := false
	r := report.Report{OS: report.OS{GuestAgent: &no}}
	p := assess.Plan{Changes: []assess.GuestChange{{ID: "virtio-drivers", Automatic: true}, {ID: "driver-vgpu", Automatic: true}, {ID: "licence", Automatic: true}}}
	for name, o := range map[string]Options{
		"agent":  {Agent: []string{"agent.deb"}},
		"driver": {Driver: Driver{Packages: []string{"/p/NVIDIA-Linux.run"}}},
		"token":  {Driver: Driver{Token: make([]byte, 1<<20+1)}},
	} {
		if edits, left, err := Edits(r, p, o); gpu.CodeOf(err) != gpu.CodeInvalid || edits != nil || left != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What crypttab names by the kernel's names it names by what the volume is called in the VM, too,
// where that is known and its line is told; virt-v2v sees to fstab.
func TestDeviceNames(t *testing.T) {
	const luks, part = "UUID=0b8c7d52-1d9b-4a3c-9d7e-3f0f6a0d1c11", "PARTUUID=1a2b3c4d-02"
	rows := []report.CryptRow{
		{Name: "root", Source: "UUID=cccc"},
		{Name: "data", Source: "/dev/nvme0n1p3", KernelName: true, Stable: luks, Line: " data\t/dev/nvme0n1p3  /dev/nvme0n1p3 luks"},
		{Name: "swap", Source: "/dev/sda2", KernelName: true, Stable: part, Line: "swap /dev/sda2 /dev/urandom swap"},
		{Name: "unknown", Source: "/dev/sdb1", KernelName: true, Line: "unknown /dev/sdb1 none"},
		{Name: "masked", Source: "/dev/sdb2", KernelName: true, Stable: luks},
		{Name: "other", Source: "/dev/sdb3", KernelName: true, Stable: luks, Line: "other /dev/sdb4 none luks"},
		{Name: "evil", Source: "/dev/sdb5", KernelName: true, Stable: "UUID=x none luks,keyscript=/evil", Line: "evil /dev/sdb5 none luks"},
		{Name: "evil2", Source: "/dev/sdb6", KernelName: true, Stable: luks + "\nroot", Line: "evil2 /dev/sdb6 none luks"},
	}
	change := assess.GuestChange{ID: "device-names", Automatic: true, Why: "w", Undo: "u"}
	r := report.Report{Boot: report.Boot{CryptRows: rows}}
	edits, left, err := Edits(r, assess.Plan{Changes: []assess.GuestChange{change}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range edits {
		if e.Kind != convert.EditLine || e.Path != "/etc/crypttab" {
			t.Errorf("%+v", e)
		}
		got = append(got, e.Old+" => "+e.New)
	}
	if diff := cmp.Diff([]string{
		" data\t/dev/nvme0n1p3  /dev/nvme0n1p3 luks =>  data\t" + luks + "  /dev/nvme0n1p3 luks", "swap /dev/sda2 /dev/urandom swap => swap " + part + " /dev/urandom swap",
	}, got); diff != "" {
		t.Error(diff)
	}
	var names []string
	for _, l := range left {
		if l.By != ByPerson {
			t.Errorf("%+v", l)
		}
		names = append(names, l.Change.Items...)
	}
	if diff := cmp.Diff([]string{"evil /dev/sdb5", "evil2 /dev/sdb6", "unknown /dev/sdb1", "masked /dev/sdb2", "other /dev/sdb3"}, names); diff != "" {
		t.Error(diff)
	}
	r.Boot.Fstab = []report.FstabRow{{Spec: "/dev/sda1", Mount: "/"}, {Spec: "UUID=x", Mount: "/srv"}}
	_, left, err = Edits(r, assess.Plan{Changes: []assess.GuestChange{change}}, Options{})
	if err != nil || left[0].By != ByConversion || !slices.Equal(left[0].Change.Items, []string{"/dev/sda1 /"}) {
		t.Errorf("%+v, %v", left, err)
	}
}
