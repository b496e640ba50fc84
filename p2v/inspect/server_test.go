package inspect

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"gpuvirt/p2v/report"
)

var update = flag.Bool("update", false, "write the golden files anew")

// A server is a made-up one: its file system in a folder, and its programs in another.
type server struct {
	t         *testing.T
	root, bin string
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, root: t.TempDir(), bin: t.TempDir()}
	// Some of its programs are run as nobody.
	s.must(os.Chmod(s.bin, 0o755))
	s.must(os.Chmod(filepath.Dir(s.bin), 0o755))
	return s
}

func (s *server) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) file(name, text string) {
	s.t.Helper()
	at := filepath.Join(s.root, name)
	s.must(os.MkdirAll(filepath.Dir(at), 0o755))
	s.must(os.WriteFile(at, []byte(text), 0o644))
}

func (s *server) link(name, target string) {
	s.t.Helper()
	at := filepath.Join(s.root, name)
	s.must(os.MkdirAll(filepath.Dir(at), 0o755))
	s.must(os.Symlink(target, at))
}

func (s *server) dir(name string) {
	s.t.Helper()
	s.must(os.MkdirAll(filepath.Join(s.root, name), 0o755))
}

// program lays a program of the server, a script.
func (s *server) program(name, script string) {
	s.t.Helper()
	at := filepath.Join(s.bin, name)
	s.must(os.WriteFile(at, []byte("#!/bin/sh\n"+script), 0o755))
	s.must(os.Chmod(at, 0o755))
}

// files lays the files of an archive. "a -> b" is a link; of "dir/*" each line is a file of
// its own, "name: text" or "name -> target".
func (s *server) files(archive string) {
	s.t.Helper()
	for _, f := range txtar.Parse([]byte(archive)).Files {
		text := string(f.Data)
		if name, target, is := strings.Cut(f.Name, " -> "); is {
			s.link(name, target)
			continue
		}
		dir, each := strings.CutSuffix(f.Name, "/*")
		if !each {
			s.file(f.Name, text)
			continue
		}
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n")
			if name, target, is := strings.Cut(line, " -> "); is {
				s.link(filepath.Join(dir, name), target)
			} else if name, value, is := strings.Cut(line, ": "); is {
				s.file(filepath.Join(dir, name), value+"\n")
			}
		}
	}
}

// pci lays a PCI device. Lines are as in files.
func (s *server) pci(address, class, id, driver, lines string) {
	s.t.Helper()
	vendor, device, _ := strings.Cut(id, ":")
	at := "sys/devices/pci0000:00/" + address
	s.files(fmt.Sprintf("-- %s/* --\nclass: 0x%s\nvendor: 0x%s\ndevice: 0x%s\n%s", at, class, vendor, device, lines))
	s.link("sys/bus/pci/devices/"+address, "../../../devices/pci0000:00/"+address)
	if driver != "" {
		s.dir("sys/bus/pci/drivers/" + driver)
		s.link(at+"/driver", "../../../bus/pci/drivers/"+driver)
	}
}

// nvidia lays what NVIDIA's driver has of a GPU beside PCI.
func (s *server) nvidia(address string, minor int, model, uuid string) {
	s.t.Helper()
	s.file("proc/driver/nvidia/gpus/"+address+"/information", fmt.Sprintf(
		"Model: \t\t %s\nIRQ:   \t\t 92\nGPU UUID: \t %s\nVideo BIOS: \t 92.00.45.00.03\nBus Type: \t PCIe\nDevice Minor: \t %d\n", model, uuid, minor))
	s.file(fmt.Sprintf("dev/nvidia%d", minor), "")
	s.file("dev/nvidiactl", "")
}

// disk lays a disk with its partitions: "number start size" in sectors, then what udev knows.
func (s *server) disk(name, under, devno string, sectors uint64, udev string, partitions ...string) {
	s.t.Helper()
	at := "sys/devices/" + under + "/block/" + name
	s.files(fmt.Sprintf("-- %s/* --\ndev: %s\nsize: %d\nro: 0\nremovable: 0\nqueue/logical_block_size: 512\nqueue/rotational: 0\n", at, devno, sectors))
	s.link("sys/block/"+name, "../devices/"+under+"/block/"+name)
	s.link("sys/class/block/"+name, "../../devices/"+under+"/block/"+name)
	s.link("sys/dev/block/"+devno, "../../devices/"+under+"/block/"+name)
	if udev != "" {
		s.file("run/udev/data/b"+devno, udev)
	}
	major, minor, _ := strings.Cut(devno, ":")
	base, err := strconv.Atoi(minor)
	s.must(err)
	for _, p := range partitions {
		var n, start, size int
		head, db, _ := strings.Cut(p, "\n")
		if _, err := fmt.Sscan(head, &n, &start, &size); err != nil {
			s.t.Fatal(err)
		}
		sub, number := fmt.Sprintf("%s%d", name, n), fmt.Sprintf("%s:%d", major, base+n)
		if strings.HasPrefix(name, "nvme") {
			sub = fmt.Sprintf("%sp%d", name, n)
		}
		s.files(fmt.Sprintf("-- %s/%s/* --\ndev: %s\npartition: %d\nstart: %d\nsize: %d\n", at, sub, number, n, start, size))
		s.link("sys/class/block/"+sub, "../../devices/"+under+"/block/"+name+"/"+sub)
		s.link("sys/dev/block/"+number, "../../devices/"+under+"/block/"+name+"/"+sub)
		if db != "" {
			s.file("run/udev/data/b"+number, db)
		}
	}
}

// volume lays a device of the device mapper, or an md.
func (s *server) volume(name, devno string, sectors uint64, lines string, on ...string) {
	s.t.Helper()
	at := "sys/devices/virtual/block/" + name
	s.files(fmt.Sprintf("-- %s/* --\ndev: %s\nsize: %d\n%s", at, devno, sectors, lines))
	s.dir(at + "/slaves")
	for _, o := range on {
		s.link(at+"/slaves/"+o, "../../"+o)
	}
	for _, l := range []string{"sys/block/" + name, "sys/class/block/" + name, "sys/dev/block/" + devno} {
		s.link(l, strings.Repeat("../", strings.Count(l, "/")-1)+"devices/virtual/block/"+name)
	}
}

// process lays one.
func (s *server) process(pid int, exe, cgroup string, args, env, fds, libraries []string) {
	s.t.Helper()
	dir := fmt.Sprintf("proc/%d", pid)
	s.file(dir+"/stat", fmt.Sprintf("%d (x) S 1", pid))
	s.file(dir+"/status", fmt.Sprintf("Name:\tx\nPid:\t%d\nPPid:\t1\nUid:\t1000\t1000\t1000\t1000\n", pid))
	s.file(dir+"/cmdline", strings.Join(args, "\x00")+"\x00")
	s.file(dir+"/environ", strings.Join(env, "\x00")+"\x00")
	s.file(dir+"/cgroup", "0::"+cgroup+"\n")
	s.link(dir+"/exe", exe)
	s.link(dir+"/cwd", "/srv")
	s.dir(dir + "/fd")
	for n, f := range fds {
		s.link(fmt.Sprintf("%s/fd/%d", dir, n), f)
	}
	var maps strings.Builder
	for n, l := range libraries {
		fmt.Fprintf(&maps, "7f%010x-7f%010x r-xp 00000000 08:02 %d                    %s\n", n<<12, (n+1)<<12, n+100, l)
	}
	s.file(dir+"/maps", maps.String())
}

// smi lays an nvidia-smi that prints what is in some files, by its first two arguments.
func (s *server) smi(answers map[string]string) {
	s.t.Helper()
	script := "case \"$1 $2\" in\n"
	n := 0
	for args, text := range answers {
		n++
		name := filepath.Join(s.bin, fmt.Sprintf("answer%d.txt", n))
		s.must(os.WriteFile(name, []byte(text), 0o644))
		script += fmt.Sprintf("%q*) exec cat %s;;\n", args, name)
	}
	s.program("nvidia-smi", script+"*) echo \"Invalid combination of input arguments: $*\"; exit 2;;\nesac\n")
}

func (s *server) inspector(change func(*Options)) *Inspector {
	s.t.Helper()
	o := Options{
		Root: s.root, Bin: []string{s.bin}, Version: "test", Now: func() time.Time { return time.Unix(1800000000, 0) },
		Addresses: func(nic string) ([]string, error) { return []string{"10.0.0.1/24"}, nil }, CallLimit: 10 * time.Second,
	}
	if change != nil {
		change(&o)
	}
	i, err := New(o)
	s.must(err)
	s.t.Cleanup(func() { s.must(i.Close()) })
	return i
}

// inspect inspects it, and reads the document as the other side does.
func (s *server) inspect() report.Report {
	s.t.Helper()
	r, err := s.inspector(nil).Inspect(s.t.Context())
	s.must(err)
	data, err := json.Marshal(r)
	s.must(err)
	r, err = report.Read(bytes.NewReader(data))
	s.must(err)
	return r
}

// golden compares a report with what it was.
func (s *server) golden(name string, r report.Report) {
	s.t.Helper()
	for n := range r.Filesystems { // those of the machine that runs the test
		f := &r.Filesystems[n]
		f.SizeBytes, f.UsedBytes, f.Inodes, f.FreeInodes = 0, 0, 0, 0
	}
	for n := range r.Models {
		r.Models[n].SizeBytes = 0 // blocks of that one's file system
	}
	r.Privileged, r.OS.Arch = true, "x86_64"
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	s.must(enc.Encode(r))
	path := filepath.Join("testdata", name+".json")
	if *update {
		s.must(os.MkdirAll("testdata", 0o755))
		s.must(os.WriteFile(path, b.Bytes(), 0o644))
	}
	want, err := os.ReadFile(path)
	s.must(err)
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		s.t.Errorf("-want +got (if it is right: go test ./p2v/inspect -update)\n%s", diff)
	}
}

// A card is a GPU as nvidia-smi tells of it.
type card struct {
	bus, name, uuid, id, subsystem string
	memory, used, power, sessions  int
	mig, virtual                   string
	devices, processes             string
}

// smiXML writes "nvidia-smi -q -x" in the order of its document type, without most of what
// nobody here reads. Version 11 has the power elsewhere.
func smiXML(dtd int, driver, cuda string, cards ...card) string {
	var b strings.Builder
	fmt.Fprintf(&b, "<?xml version=\"1.0\" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM \"nvsmi_device_v%d.dtd\">\n<nvidia_smi_log>\n\t<timestamp>Mon Jan  4 10:00:00 2027</timestamp>\n", dtd)
	fmt.Fprintf(&b, "\t<driver_version>%s</driver_version>\n\t<cuda_version>%s</cuda_version>\n\t<attached_gpus>%d</attached_gpus>\n", driver, cuda, len(cards))
	for n, c := range cards {
		if c.mig == "" {
			c.mig = "Disabled"
		}
		if c.virtual == "" {
			c.virtual = "None"
		}
		power := fmt.Sprintf("<gpu_power_readings><power_state>P0</power_state><power_draw>61.20 W</power_draw><current_power_limit>%d.00 W</current_power_limit></gpu_power_readings>", c.power)
		if dtd < 12 {
			power = fmt.Sprintf("<power_readings><power_state>P0</power_state><power_draw>61.20 W</power_draw><power_limit>%d.00 W</power_limit><enforced_power_limit>%d.00 W</enforced_power_limit></power_readings>", c.power, c.power)
		}
		fmt.Fprintf(&b, `	<gpu id="%s">
		<product_name>%s</product_name>
		<product_brand>NVIDIA</product_brand>
		<product_architecture>Ampere</product_architecture>
		<display_mode>Enabled</display_mode>
		<display_active>Disabled</display_active>
		<persistence_mode>Enabled</persistence_mode>
		<addressing_mode>None</addressing_mode>
		<mig_mode>
			<current_mig>%s</current_mig>
			<pending_mig>%s</pending_mig>
		</mig_mode>
		<mig_devices>
			%s
		</mig_devices>
		<accounting_mode>Disabled</accounting_mode>
		<driver_model><current_dm>N/A</current_dm><pending_dm>N/A</pending_dm></driver_model>
		<serial>132%07d</serial>
		<uuid>%s</uuid>
		<minor_number>%d</minor_number>
		<vbios_version>92.00.45.00.0%d</vbios_version>
		<gpu_virtualization_mode><virtualization_mode>%s</virtualization_mode><host_vgpu_mode>N/A</host_vgpu_mode></gpu_virtualization_mode>
		<pci>
			<pci_bus>%s</pci_bus>
			<pci_device_id>%s</pci_device_id>
			<pci_bus_id>%s</pci_bus_id>
			<pci_sub_system_id>%s</pci_sub_system_id>
		</pci>
		<fb_memory_usage><total>%d MiB</total><reserved>600 MiB</reserved><used>%d MiB</used><free>%d MiB</free></fb_memory_usage>
		<bar1_memory_usage><total>65536 MiB</total><used>2 MiB</used><free>65534 MiB</free></bar1_memory_usage>
		<compute_mode>Default</compute_mode>
		<utilization><gpu_util>12 %%</gpu_util><memory_util>3 %%</memory_util><encoder_util>0 %%</encoder_util><decoder_util>0 %%</decoder_util></utilization>
		<encoder_stats><session_count>%d</session_count><average_fps>0</average_fps><average_latency>0</average_latency></encoder_stats>
		<ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>
		%s
		<processes>
			%s
		</processes>
		<accounted_processes></accounted_processes>
	</gpu>
`, c.bus, c.name, c.mig, c.mig, c.devices, n+7, c.uuid, n, n, c.virtual, c.bus[9:11], c.id, c.bus, c.subsystem, c.memory, c.used, c.memory-c.used, c.sessions, power, c.processes)
	}
	return b.String() + "</nvidia_smi_log>\n"
}

func smiProc(pid int, kind, name string, mib int) string {
	return fmt.Sprintf("<process_info><gpu_instance_id>N/A</gpu_instance_id><compute_instance_id>N/A</compute_instance_id><pid>%d</pid><type>%s</type><process_name>%s</process_name><used_memory>%d MiB</used_memory></process_info>", pid, kind, name, mib)
}

func (s *server) called() bool {
	_, err := os.Stat(filepath.Join(s.bin, "called"))
	return err == nil
}

func (s *server) remove(name string) {
	s.t.Helper()
	s.must(os.RemoveAll(filepath.Join(s.root, name)))
}
