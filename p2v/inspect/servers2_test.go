package inspect

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"gpuvirt/p2v/report"
)

func asText(t *testing.T, r report.Report) string {
	t.Helper()
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func linesWith(text, word string) string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, "\n")
}

// rhelH100 is a server of eight H100s behind NVSwitch, with MIG on the last one, RDMA, and
// the driver by RPM.
func rhelH100(t *testing.T) *server {
	s := newServer(t)
	s.files(anyServer + `
-- etc/os-release --
NAME="Red Hat Enterprise Linux"
VERSION_ID="9.4"
ID="rhel"
PRETTY_NAME="Red Hat Enterprise Linux 9.4 (Plow)"
-- proc/sys/kernel/osrelease --
5.14.0-427.el9.x86_64
-- usr/lib/modules/5.14.0-427.el9.x86_64/modules.dep --
-- lib -> usr/lib --
-- proc/cmdline --
BOOT_IMAGE=(hd0,gpt2)/vmlinuz root=/dev/mapper/rhel-root
-- sys/fs/selinux/enforce --
1
-- sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c --
` + "\x06\x00\x00\x00\x01" + `
-- sys/class/tpm/tpm0/tpm_version_major --
2
-- boot/grub2/grub.cfg --
-- usr/bin/dracut --
-- usr/lib/dracut/dracut.conf.d/01-dist.conf --
hostonly="yes"
-- etc/NetworkManager/system-connections/eno1.nmconnection --
[connection]
interface-name=eno1
[wifi-security]
psk=PLANTED-SECRET-psk
-- proc/self/mountinfo --
22 1 253:0 / / rw,relatime shared:1 - xfs /dev/mapper/rhel-root rw,attr2
23 22 8:2 / /boot rw,relatime shared:2 - xfs /dev/sda2 rw
-- proc/driver/nvidia/version --
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@x)
-- sys/module/nvidia/version --
570.86.15
-- sys/module/nvidia_peermem/refcnt --
2
-- sys/module/mlx5_ib/refcnt --
0
-- var/lib/rpm/rpmdb.sqlite --
-- usr/lib/systemd/system/nvidia-fabricmanager.service --
[Service]
ExecStart=/usr/bin/nv-fabricmanager -c /usr/share/nvidia/nvswitch/fabricmanager.cfg
-- usr/lib/systemd/system/nvidia-mig-manager.service --
[Service]
ExecStart=/usr/bin/nvidia-mig-parted apply
-- proc/driver/nvidia-caps/mig-minors --
config 1
monitor 2
gpu7/gi2/access 66
gpu7/gi2/ci0/access 67
-- dev/nvidia-caps/nvidia-cap66 --
-- etc/cdi/nvidia.yaml --
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
-- run/containerd/io.containerd.runtime.v2.task/k8s.io/` + id64 + `/config.json --
{"process": {"env": ["NVIDIA_VISIBLE_DEVICES=MIG-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeee0", "POSTGRES_PASSWORD=PLANTED-SECRET-k8s"]},
 "annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "infer", "io.kubernetes.cri.image-name": "registry/infer:1"},
 "mounts": [{"source": "/var/lib/kubelet/pods/x/volumes/v", "destination": "/cache", "type": "bind"}, {"source": "/data/models", "destination": "/models", "type": "bind"}],
 "linux": {"devices": [{"path": "/dev/nvidia-caps/nvidia-cap66"}]}}
-- data/models/big.gguf --
x
-- sys/class/infiniband/mlx5_0/device -> ../../../devices/pci0000:00/0000:18:00.0 --
`)
	s.pci("0000:01:00.0", "020000", "15b3:1021", "mlx5_core", "")
	s.pci("0000:18:00.0", "020700", "15b3:1021", "mlx5_core", "infiniband/mlx5_0/node_type: 1\nnet/ib0/address: 00:11\nnet/ib0/mtu: 2044\nnet/ib0/operstate: up\nnet/ib0/device -> ../../../0000:18:00.0\n")
	s.link("sys/class/net/ib0", "../../devices/pci0000:00/0000:18:00.0/net/ib0")
	s.pci("0000:07:00.0", "068000", "10de:22a3", "nvidia", "")
	var cards []card
	var fds []string
	topo := "\tGPU0\tGPU1\tGPU2\tGPU3\tGPU4\tGPU5\tGPU6\tGPU7\tNIC0\tCPU Affinity\tNUMA Affinity\n"
	list, capabilities := "", ""
	for n := range 8 {
		at := fmt.Sprintf("0000:%02x:00.0", 0x19+n*0x10)
		s.pci(at, "030200", "10de:2330", "nvidia", "subsystem_vendor: 0x10de\nsubsystem_device: 0x16c1\nnuma_node: "+itoa(n/4)+"\n")
		// The driver's minor numbers are not in the order of its indexes here.
		s.nvidia(at, n, "NVIDIA H100 80GB HBM3", fmt.Sprintf("GPU-99999999-2222-3333-4444-55555555555%d", n))
		fds = append(fds, "/dev/nvidia"+itoa(n))
		c := card{bus: "0000" + at, name: "NVIDIA H100 80GB HBM3", uuid: fmt.Sprintf("GPU-99999999-2222-3333-4444-55555555555%d", n), id: "233010DE", subsystem: "16C110DE", memory: 81559, used: 2000, power: 700}
		list += fmt.Sprintf("GPU %d: NVIDIA H100 80GB HBM3 (UUID: %s)\n", n, c.uuid)
		if n == 7 {
			c.mig = "Enabled"
			c.devices = `<mig_device><index>0</index><gpu_instance_id>2</gpu_instance_id><compute_instance_id>0</compute_instance_id><device_attributes><shared><multiprocessor_count>60</multiprocessor_count></shared></device_attributes></mig_device>`
			list += "  MIG 3g.40gb     Device  0: (UUID: MIG-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeee0)\n"
		} else {
			c.processes = smiProc(5000, "C", "python", 60000)
		}
		cards = append(cards, c)
		capabilities += fmt.Sprintf("%s, 9.0\n", strings.ToUpper(c.bus))
		topo += fmt.Sprintf("GPU%d", n)
		for m := range 8 {
			if m == n {
				topo += "\t X "
			} else {
				topo += "\tNV18"
			}
		}
		topo += "\tSYS\t0-55\t0\n"
	}
	topo += "NIC0\tSYS\tSYS\tSYS\tSYS\tSYS\tSYS\tSYS\tSYS\t X \t\t\n\nNIC Legend:\n\n  NIC0: mlx5_0\n"
	s.process(5000, "/usr/bin/python3.9", "/system.slice/slurmstepd.scope/job_7",
		[]string{"python3", "train.py", "--wandb-token=PLANTED-SECRET-wandb"}, []string{"CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6"},
		append([]string{"/dev/nvidiactl"}, fds[:7]...),
		[]string{"/usr/lib64/libcuda.so.570.86.15", "/x/libtorch_cuda.so", "/x/libnccl.so.2", "/usr/lib64/libibverbs.so.1", "/x/libcupti.so.12"})
	s.process(6000, "/usr/local/bin/infer", "/kubepods.slice/kubepods-podx.slice/cri-containerd-"+id64+".scope",
		[]string{"infer", "--model", "/models/big.gguf"}, nil, []string{"/dev/nvidia-caps/nvidia-cap66", "/dev/nvidiactl"}, []string{"/usr/lib64/libcuda.so.570.86.15"})
	s.disk("sda", "pci0000:00/0000:03:00.0/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0", "8:0", 7501476528, "E:ID_PART_TABLE_TYPE=gpt\n",
		"1 2048 409600\nE:ID_FS_TYPE=vfat\n", "2 411648 2097152\nE:ID_FS_TYPE=xfs\n", "3 2508800 7498967695\nE:ID_FS_TYPE=LVM2_member\n")
	s.volume("dm-0", "253:0", 146800640, "dm/name: rhel-root\ndm/uuid: LVM-abc\n", "sda3")
	s.link("dev/mapper/rhel-root", "../dm-0")
	s.smi(map[string]string{
		"-q -x": smiXML(12, "570.86.15", "12.8", cards...), "topo -m": topo, "-L ": list,
		"--query-gpu=pci.bus_id,compute_cap --format=csv,noheader": capabilities,
		"mig -lgi": `+-------------------------------------------------------+
| GPU instances:                                        |
| GPU   Name             Profile  Instance   Placement  |
|                          ID       ID       Start:Size |
|=======================================================|
|   7  MIG 3g.40gb          9        2          4:4     |
+-------------------------------------------------------+
`,
	})
	s.program("rpm", `test "$(id -u)" != 0 || { echo "as root it would write" >&2; exit 1; }
printf 'nvidia-driver=570.86.15-1.el9\nkmod-nvidia-open-dkms=570.86.15-1.el9\nnvidia-fabric-manager=570.86.15-1\nbash=5.1\n'
`)
	s.program("systemctl", `printf 'Id=nvidia-fabricmanager.service\nActiveState=active\nUnitFileState=enabled\nLoadState=loaded\n\nId=nvidia-mig-manager.service\nActiveState=inactive\nUnitFileState=enabled\nLoadState=loaded\n'
`)
	return s
}

func TestRHELH100(t *testing.T) {
	s := rhelH100(t)
	r := s.inspect()
	if text := asText(t, r); strings.Contains(text, "PLANTED") {
		t.Errorf("a secret is told:\n%s", linesWith(text, "PLANTED"))
	}
	s.golden("rhel-h100", r)
}

// ubuntuLUKS is a BIOS server with LVM on LUKS that its TPM opens, on an md of two disks
// with MBR, and the driver by NVIDIA's installer. There is no udev.
func ubuntuLUKS(t *testing.T) *server {
	s := newServer(t)
	s.files(anyServer + `
-- usr/lib/os-release --
ID=ubuntu
VERSION_ID="22.04"
PRETTY_NAME="Ubuntu 22.04.4 LTS"
-- etc/os-release -> ../usr/lib/os-release --
-- proc/sys/kernel/osrelease --
5.15.0-100-generic
-- lib/modules/5.15.0-100-generic/modules.dep --
-- lib/modules/5.15.0-90-generic/modules.dep --
-- boot/grub/grub.cfg --
-- usr/sbin/update-initramfs --
-- etc/initramfs-tools/initramfs.conf --
MODULES=most
-- etc/netplan/50-cloud-init.yaml --
network: {ethernets: {eno1: {dhcp4: true}}}
-- etc/crypttab --
# name device key options
root_crypt UUID=cccc none luks,tpm2-device=auto
data_crypt UUID=dddd /etc/keys/data.key luks
-- etc/keys/data.key --
PLANTED-SECRET-luks
-- proc/self/mountinfo --
22 1 253:1 / / rw,relatime shared:1 - ext4 /dev/mapper/vg0-root rw
23 22 9:0 / /boot rw,relatime shared:2 - ext4 /dev/md0 rw
-- proc/driver/nvidia/version --
NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024
-- var/log/nvidia-installer.log --
nvidia-installer log file
-- var/lib/dpkg/status --
Package: libnvidia-container1
Status: install ok installed
Version: 1.15.0-1
-- usr/src/nvidia-470.256.02/dkms.conf --
-- var/lib/dkms/nvidia/470.256.02/x --
-- sys/class/tpm/tpm0/device/description --
TPM 1.2
`)
	s.pci("0000:01:00.0", "020000", "8086:1563", "ixgbe", "")
	s.pci("0000:3b:00.0", "030000", "10de:1eb8", "nvidia", "boot_vga: 1\nresource: 0x00000000b8000000 0x00000000b8ffffff 0x0000000000040200\n"+
		"numa_node: -1\n")
	s.file("sys/devices/pci0000:00/0000:3b:00.0/resource", "0x00000000b8000000 0x00000000b8ffffff 0x0000000000040200\n0x0000387fe0000000 0x0000387fefffffff 0x000000000014220c\n")
	s.nvidia("0000:3b:00.0", 0, "Tesla T4", "GPU-77777777-2222-3333-4444-555555555550")
	for n, name := range []string{"sda", "sdb"} {
		s.disk(name, "pci0000:00/0000:04:00.0/ata"+itoa(n+1)+"/host0/target0:0:0/0:0:0:0", fmt.Sprintf("8:%d", n*16), 937703088, "", "1 2048 1048576", "2 1050624 936650752")
	}
	s.volume("md0", "9:0", 1046528, "md/level: raid1\n", "sda1", "sdb1")
	s.volume("md1", "9:1", 936518656, "md/level: raid1\n", "sda2", "sdb2")
	s.volume("dm-0", "253:0", 936485888, "dm/name: root_crypt\ndm/uuid: CRYPT-LUKS2-cccc-root_crypt\n", "md1")
	s.volume("dm-1", "253:1", 900000000, "dm/name: vg0-root\ndm/uuid: LVM-xyz\n", "dm-0")
	s.smi(map[string]string{
		"-q -x": smiXML(11, "470.256.02", "11.4", card{bus: "00000000:3B:00.0", name: "Tesla T4", uuid: "GPU-77777777-2222-3333-4444-555555555550", id: "1EB810DE", subsystem: "12A210DE", memory: 15109, used: 3, power: 70, mig: "N/A"}),
	})
	return s
}

func TestUbuntuLUKS(t *testing.T) {
	s := ubuntuLUKS(t)
	s.golden("ubuntu-luks", s.inspect())
}

func TestWithoutGPU(t *testing.T) {
	s := newServer(t)
	s.files(anyServer)
	s.pci("0000:01:00.0", "020000", "8086:1563", "ixgbe", "")
	r := s.inspect()
	if len(r.GPUs) != 0 || r.Driver != nil || len(r.Processes) != 0 {
		t.Errorf("%+v", r)
	}
	for _, u := range r.Unseen {
		if strings.HasPrefix(u.What, "gpus") || u.What == "driver" {
			t.Errorf("there is no GPU, and it is unseen: %v", u)
		}
	}
}

// Without NVIDIA's driver its program is not called: it would load one.
func TestNouveau(t *testing.T) {
	s := newServer(t)
	s.files(anyServer + `
-- var/lib/dpkg/status --
Package: nvidia-driver
Status: install ok installed
Version: 535.1
-- usr/share/misc/pci.ids --
# list
1002  Advanced Micro Devices
	1db6  not this one
10de  NVIDIA Corporation
	1db6  GV100GL [Tesla V100 PCIe 32GB]
		10de 124a  a board
`)
	s.pci("0000:05:00.0", "030200", "10de:1db6", "nouveau", "")
	s.dir("sys/module/nouveau")
	s.program("nvidia-smi", "touch "+s.bin+"/called")
	r := s.inspect()
	if len(r.GPUs) != 1 || r.GPUs[0].Driver != "nouveau" || r.GPUs[0].Index != -1 || r.Driver != nil || r.GPUs[0].Model != "GV100GL [Tesla V100 PCIe 32GB]" {
		t.Errorf("%+v %+v", r.GPUs, r.Driver)
	}
	if !strings.Contains(asText(t, r), "is not loaded; these packages are installed: nvidia-driver=535.1") {
		t.Errorf("%+v", r.Unseen)
	}
	if s.called() {
		t.Error("nvidia-smi was called")
	}
}

// Neither where the driver runs without its device files: it would make them.
func TestNoDeviceFiles(t *testing.T) {
	s := debianA100(t)
	s.program("nvidia-smi", "touch "+s.bin+"/called")
	s.remove("dev/nvidia1")
	r := s.inspect()
	if s.called() || !strings.Contains(asText(t, r), "there is no /dev/nvidia1, and it would make one") {
		t.Errorf("called: %v, %+v", s.called(), r.Unseen)
	}
	if r.GPUs[1].UUID == "" || r.GPUs[1].Model == "" {
		t.Errorf("what /proc tells is not told: %+v", r.GPUs[1])
	}
}

func TestAMD(t *testing.T) {
	s := newServer(t)
	s.files(anyServer)
	s.pci("0000:43:00.0", "120000", "1002:74a1", "amdgpu",
		"mem_info_vram_total: 205822885888\nproduct_name: AMD Instinct MI300X\nunique_id: 62a4b1f9a1b2c3d4\ndrm/card1/dev: 226:1\ndrm/renderD128/dev: 226:128\n")
	s.process(700, "/usr/bin/python3", "/user.slice/x.scope", []string{"python3", "-m", "vllm.entrypoints.openai.api_server"}, []string{"HIP_VISIBLE_DEVICES=0"},
		[]string{"/dev/kfd", "/dev/dri/renderD128"}, []string{"/opt/rocm/lib/libamdhip64.so.6"})
	r := s.inspect()
	g := r.GPUs[0]
	if g.Vendor != "amd" || g.MemoryBytes != 205822885888 || g.Model != "AMD Instinct MI300X" || g.Driver != "amdgpu" {
		t.Errorf("%+v", g)
	}
	if len(r.Processes) != 1 || r.Processes[0].Framework != "vllm" || r.Processes[0].GPUs[0] != "0000:43:00.0" || r.Processes[0].Share != 0.9 {
		t.Errorf("%+v", r.Processes)
	}
	if len(r.Pins) != 1 || r.Pins[0].Key != "HIP_VISIBLE_DEVICES" {
		t.Errorf("%+v", r.Pins)
	}
}
