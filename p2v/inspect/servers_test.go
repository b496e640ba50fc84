package inspect

import (
	"strings"
	"testing"
)

// What the fixtures have in common.
const anyServer = `
-- proc/sys/kernel/hostname --
gpu7
-- proc/sys/kernel/arch --
x86_64
-- proc/sys/kernel/random/boot_id --
6f0f3a0e-5d0c-4a1b-9a67-0c2f0b3f9a11
-- proc/cpuinfo --
processor	: 0
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8358 CPU @ 2.60GHz
physical id	: 0
core id		: 0
flags		: fpu vme sse4_2 avx avx2 avx512f amx_tile hypervisorless

processor	: 1
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8358 CPU @ 2.60GHz
physical id	: 1
core id		: 0
flags		: fpu vme sse4_2 avx avx2 avx512f amx_tile hypervisorless
-- proc/meminfo --
MemTotal:       527960000 kB
MemAvailable:   500000000 kB
HugePages_Total:    1024
Hugepagesize:       2048 kB
SwapTotal:       8388604 kB
-- proc/stat --
cpu  1 2 3
btime 1799990000
-- sys/devices/system/node/node0/cpulist --
0
-- sys/devices/system/node/node1/cpulist --
1
-- etc/machine-id --
0123456789abcdef0123456789abcdef
-- etc/passwd --
root:x:0:0:root:/root:/bin/bash
ml:x:1000:1000::/home/ml:/bin/bash
-- sys/class/dmi/id/* --
sys_vendor: Supermicro
product_name: AS -4124GS-TNR
product_serial: S123456X
product_uuid: 00000000-0000-0000-0000-ac1f6bdeadbe
-- sys/devices/pci0000:00/0000:01:00.0/net/eno1/* --
address: ac:1f:6b:de:ad:be
mtu: 1500
operstate: up
speed: 10000
ifindex: 2
device -> ../../../0000:01:00.0
-- sys/class/net/eno1 -> ../../devices/pci0000:00/0000:01:00.0/net/eno1 --
-- sys/devices/virtual/net/lo/* --
address: 00:00:00:00:00:00
-- sys/class/net/lo -> ../../devices/virtual/net/lo --
-- sys/devices/virtual/net/docker0/* --
address: 02:42:00:00:00:01
bridge/bridge_id: x
-- sys/class/net/docker0 -> ../../devices/virtual/net/docker0 --
`

const (
	uuid0 = "GPU-11111111-2222-3333-4444-555555555550"
	uuid1 = "GPU-11111111-2222-3333-4444-555555555551"
)

// debianA100 is a server with two A100s, Triton in a container by compose, and vLLM by a
// unit of its own.
func debianA100(t *testing.T) *server {
	s := newServer(t)
	s.files(anyServer + `
-- etc/os-release --
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
ID=debian
VERSION_ID="12"
-- proc/sys/kernel/osrelease --
6.1.0-28-amd64
-- proc/cmdline --
BOOT_IMAGE=/boot/vmlinuz-6.1.0-28-amd64 root=UUID=aaaa ro quiet intel_iommu=on
-- lib -> usr/lib --
-- usr/lib/modules/6.1.0-28-amd64/modules.dep --
-- usr/lib/modules/6.1.0-28-amd64/build -> /usr/src/linux-headers-6.1.0-28-amd64 --
-- usr/src/linux-headers-6.1.0-28-amd64/Makefile --
-- sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c --
` + "\x06\x00\x00\x00\x00" + `
-- proc/self/mountinfo --
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw,errors=remount-ro
23 22 259:1 / /boot/efi rw,relatime shared:2 - vfat /dev/nvme0n1p1 rw,fmask=0077
24 22 0:25 / /proc rw,nosuid shared:3 - proc proc rw
25 22 0:60 / /mnt/with\040space rw,relatime shared:4 - nfs4 nas.bank.example:/models rw,vers=4.2,addr=10.0.0.9
26 22 259:2 /srv/a /srv/b rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
-- mnt/with space/x --
-- boot/efi/EFI/debian/grubx64.efi --
-- boot/grub/grub.cfg --
-- usr/sbin/update-initramfs --
-- etc/initramfs-tools/initramfs.conf --
# comment
MODULES=most
-- etc/initramfs-tools/conf.d/dep --
MODULES=dep
-- etc/fstab --
# <file system>
UUID=aaaa / ext4 errors=remount-ro 0 1
UUID=BBBB-CCCC /boot/efi vfat umask=0077 0 1
//nas/share /mnt/cifs cifs username=svc,password=PLANTED-SECRET-fstab,uid=1000 0 0
-- etc/network/interfaces --
auto eno1
iface eno1 inet dhcp
-- sys/module/nvidia/version --
550.90.07
-- sys/module/nvidia_uvm/refcnt --
4
-- proc/driver/nvidia/version --
NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
-- var/lib/dpkg/status --
Package: nvidia-driver
Status: install ok installed
Version: 550.90.07-1

Package: nvidia-kernel-dkms
Status: install ok installed
Version: 550.90.07-1

Package: nvidia-settings
Status: deinstall ok config-files
Version: 550.90.07-1

Package: vim
Status: install ok installed
Version: 9
-- var/lib/dkms/nvidia-current/550.90.07/x --
-- etc/modprobe.d/nvidia.conf --
# NVIDIA
blacklist nouveau
options nvidia NVreg_RestrictProfilingToAdminUsers=0
-- etc/modprobe.d/sound.conf --
options snd index=0
-- etc/modules-load.d/nvidia.conf --
nvidia
nvidia_uvm
-- etc/systemd/system/vllm.service --
[Unit]
After=nvidia-persistenced.service
[Service]
Environment=CUDA_VISIBLE_DEVICES=1
Environment=HF_TOKEN=hf_PLANTEDSECRETunit0123
EnvironmentFile=-/etc/vllm/env
ExecStart=/opt/vllm/bin/vllm serve /srv/models/llama-3-8b --gpu-memory-utilization 0.85 --api-key PLANTED-SECRET-exec
[Install]
WantedBy=multi-user.target
-- etc/systemd/system/multi-user.target.wants/vllm.service -> /etc/systemd/system/vllm.service --
-- etc/systemd/system/vllm.service.d/10-gpu.conf --
[Service]
DeviceAllow=/dev/nvidia1 rw
-- etc/systemd/system/gpu-clocks.service --
[Service]
Type=oneshot
ExecStart=/usr/bin/nvidia-smi -i 0 -lgc 1410
-- etc/systemd/system/backup.service --
[Service]
ExecStart=/usr/bin/backup
-- etc/vllm/env --
# CUDA_VISIBLE_DEVICES=7
NVIDIA_VISIBLE_DEVICES=` + uuid1 + `
VLLM_API_KEY=PLANTED-SECRET-envfile
-- usr/lib/systemd/system/nvidia-persistenced.service --
[Service]
ExecStart=/usr/bin/nvidia-persistenced --user nvidia
-- opt/triton/compose.yaml --
services:
  triton:
    image: nvcr.io/nvidia/tritonserver:24.05-py3
    environment:
      AWS_SECRET_ACCESS_KEY: PLANTED-SECRET-compose
    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
              capabilities: [gpu]
              device_ids:
                - "0"
-- etc/docker/daemon.json --
{"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}, "registry-token": "PLANTED-SECRET-daemon"}
-- var/lib/docker/containers/` + id64 + `/config.v2.json --
{"ID": "` + id64 + `", "Name": "/triton", "State": {"Running": true},
 "Config": {"Image": "nvcr.io/nvidia/tritonserver:24.05-py3", "Env": ["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_REQUIRE_CUDA=cuda>=12.4", "NGC_API_KEY=PLANTED-SECRET-container"],
  "Labels": {"com.docker.compose.project.config_files": "/opt/triton/compose.yaml"}},
 "MountPoints": {"/models": {"Source": "/srv/repository", "Destination": "/models"}, "/etc/hosts": {"Source": "/var/lib/docker/containers/x/hosts", "Destination": "/etc/hosts"}}}
-- var/lib/docker/containers/` + id64 + `/hostconfig.json --
{"Runtime": "runc", "RestartPolicy": {"Name": "unless-stopped"}, "DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": ["0"], "Capabilities": [["gpu"]]}]}
-- srv/repository/resnet/config.pbtxt --
name: "resnet"
-- srv/repository/resnet/1/model.plan --
engine
-- srv/repository/text/config.pbtxt --
name: "text"
-- srv/repository/text/1/model.onnx --
-- srv/models/llama-3-8b/model-00001-of-00002.safetensors --
weights
-- srv/models/llama-3-8b/config.json --
{}
-- home/ml/.cache/huggingface/hub/models--meta--llama/blobs/abc --
blob
-- home/ml/.cache/huggingface/token --
PLANTED-SECRET-hf-token
-- home/ml/.ssh/id_ed25519 --
-----BEGIN OPENSSH PRIVATE KEY-----
PLANTED-SECRET-ssh
-- etc/nvidia/ClientConfigToken/client.tok --
PLANTED-SECRET-licence
-- etc/nvidia/gridd.conf --
# comment
FeatureType=1
ServerAddress=dls.example
-- etc/X11/xorg.conf --
Section "Device"
    Driver "nvidia"
    BusID "PCI:65:0:0"
EndSection
-- dev/nvidia-uvm --
`)
	s.file(efiVariable("BootCurrent"), "\x06\x00\x00\x00\x01\x00")
	s.file(efiVariable("Boot0001"), string(bootEntry("debian", partition, node(4, 4, utf16Bytes(`\EFI\debian\grubx64.efi`)))))
	s.pci("0000:00:02.0", "030000", "1a03:2000", "ast", "boot_vga: 1\n")
	s.pci("0000:01:00.0", "020000", "8086:1563", "ixgbe", "")
	for n, at := range []string{"0000:41:00.0", "0000:c1:00.0"} {
		s.pci(at, "030200", "10de:20b5", "nvidia", "subsystem_vendor: 0x10de\nsubsystem_device: 0x1533\nnuma_node: "+itoa(n)+"\n")
		s.nvidia(at, n, "NVIDIA A100 80GB PCIe", "GPU-11111111-2222-3333-4444-55555555555"+itoa(n))
	}
	s.disk("nvme0n1", "pci0000:00/0000:02:00.0/nvme/nvme0", "259:0", 1875385008,
		"E:ID_PART_TABLE_TYPE=gpt\nE:ID_SERIAL_SHORT=NV123\n",
		"1 2048 1048576\nE:ID_FS_TYPE=vfat\nE:ID_PART_ENTRY_TYPE=c12a7328-f81f-11d2-ba4b-00a0c93ec93b\nE:ID_FS_UUID=BBBB-CCCC\n",
		"2 1050624 1874332672\nE:ID_FS_TYPE=ext4\nE:ID_PART_ENTRY_TYPE=0fc63daf-8483-4772-8e79-3d69d8477de4\nE:ID_FS_UUID=aaaa\nE:ID_PART_ENTRY_NAME=root\\x20fs\n")
	s.process(812, "/opt/vllm/bin/python3.11", "/system.slice/vllm.service",
		[]string{"/opt/vllm/bin/python3", "/opt/vllm/bin/vllm", "serve", "/srv/models/llama-3-8b", "--gpu-memory-utilization", "0.85", "--api-key", "PLANTED-SECRET-arg"},
		[]string{"CUDA_VISIBLE_DEVICES=1", "HF_TOKEN=hf_PLANTEDSECRETprocess", "PATH=/usr/bin"},
		[]string{"/dev/null", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia1", "socket:[123]"},
		[]string{"/usr/lib/x86_64-linux-gnu/libcuda.so.550.90.07", "/opt/vllm/lib/libtorch_cuda.so", "/opt/vllm/lib/libnccl.so.2", "/usr/lib/libc.so.6"})
	s.process(900, "/opt/tritonserver/bin/tritonserver", "/system.slice/docker-"+id64+".scope",
		[]string{"tritonserver", "--model-repository=/models"}, []string{"NVIDIA_VISIBLE_DEVICES=all"},
		[]string{"/dev/nvidiactl", "/dev/nvidia0"}, []string{"/usr/lib/libcuda.so.550.90.07", "/opt/tritonserver/lib/libnvinfer.so.10", "/usr/lib/libnvcuvid.so.550.90.07"})
	s.process(450, "/usr/bin/nvidia-persistenced", "/system.slice/nvidia-persistenced.service", []string{"/usr/bin/nvidia-persistenced"}, nil,
		[]string{"/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1"}, nil)
	s.process(1, "/usr/lib/systemd/systemd", "/init.scope", []string{"/sbin/init"}, nil, []string{"/dev/null"}, nil)
	s.smi(map[string]string{
		"-q -x": smiXML(12, "550.90.07", "12.4",
			card{bus: "00000000:41:00.0", name: "NVIDIA A100 80GB PCIe", uuid: uuid0, id: "20B510DE", subsystem: "153310DE", memory: 81920, used: 9000, power: 300, sessions: 2, processes: smiProc(900, "C", "tritonserver", 8400)},
			card{bus: "00000000:C1:00.0", name: "NVIDIA A100 80GB PCIe", uuid: uuid1, id: "20B510DE", subsystem: "153310DE", memory: 81920, used: 70000, power: 300, processes: smiProc(812, "C", "/opt/vllm/bin/python3", 69500)}),
		"--query-gpu=pci.bus_id,compute_cap --format=csv,noheader": "00000000:41:00.0, 8.0\n00000000:C1:00.0, 8.0\n",
		"topo -m": "\t\x1b[4mGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\nGPU0\t X \tNV12\t0-31\t0\t\tN/A\nGPU1\tNV12\t X \t32-63\t1\t\tN/A\n\nLegend:\n\n  X    = Self\n",
	})
	s.program("systemctl", `cat <<END
Id=gpu-clocks.service
ActiveState=inactive
UnitFileState=enabled
FragmentPath=/etc/systemd/system/gpu-clocks.service
LoadState=loaded

Id=nvidia-persistenced.service
ActiveState=active
UnitFileState=enabled
FragmentPath=/usr/lib/systemd/system/nvidia-persistenced.service
LoadState=loaded

Id=vllm.service
ActiveState=active
UnitFileState=enabled
FragmentPath=/etc/systemd/system/vllm.service
LoadState=loaded
END
`)
	return s
}

var id64 = strings.Repeat("0a1b2c3d", 8)

func TestDebianA100(t *testing.T) {
	s := debianA100(t)
	s.golden("debian-a100", s.inspect())
}

// The inspection of a server has none of what is secret on it.
func TestSecrets(t *testing.T) {
	s := debianA100(t)
	r := s.inspect()
	text := asText(t, r)
	if strings.Contains(text, "PLANTED") {
		t.Errorf("a secret is told:\n%s", linesWith(text, "PLANTED"))
	}
	for _, there := range []string{"hf_", "--api-key", "client.tok"} {
		if !strings.Contains(text, there) && there != "hf_" {
			t.Errorf("%q is not told at all", there)
		}
	}
}
