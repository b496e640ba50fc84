package inspect

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/report"
)

func TestFramework(t *testing.T) {
	type want struct {
		name  string
		takes bool
		share float64
	}
	for name, test := range map[string]struct {
		exe  string
		args []string
		env  map[string]string
		libs []string
		want want
	}{
		"vllm":                  {"/usr/bin/python3", []string{"python3", "-m", "vllm.entrypoints.openai.api_server", "--gpu-memory-utilization=0.5"}, nil, nil, want{"vllm", true, 0.5}},
		"vllm's engine":         {"/usr/bin/python3", []string{"VLLM::EngineCore"}, nil, []string{"libtorch_cuda.so"}, want{"vllm", true, 0.9}},
		"nonsense of a share":   {"/usr/bin/python3", []string{"vllm", "serve", "--gpu-memory-utilization", "7"}, nil, nil, want{"vllm", true, 0.9}},
		"sglang":                {"/usr/bin/python3", []string{"python", "-m", "sglang.launch_server", "--mem-fraction-static", "0.8"}, nil, nil, want{"sglang", true, 0.8}},
		"tgi":                   {"/usr/local/bin/text-generation-launcher", []string{"text-generation-launcher"}, nil, nil, want{"tgi", true, 1}},
		"tensorflow":            {"/usr/bin/python3", []string{"python", "x.py"}, nil, []string{"libcuda.so.1", "libtensorflow_cc.so.2"}, want{"tensorflow", true, 0}},
		"tensorflow that grows": {"/usr/bin/python3", []string{"python", "x.py"}, map[string]string{"TF_FORCE_GPU_ALLOW_GROWTH": "true"}, []string{"libtensorflow_cc.so.2"}, want{"tensorflow", false, 0}},
		"jax":                   {"/usr/bin/python3", []string{"python", "x.py"}, nil, []string{"xla_extension.so"}, want{"jax", true, 0.75}},
		"jax, told":             {"/usr/bin/python3", []string{"python", "x.py"}, map[string]string{"XLA_PYTHON_CLIENT_MEM_FRACTION": ".30"}, []string{"xla_cuda_plugin.so"}, want{"jax", true, 0.3}},
		"jax that does not":     {"/usr/bin/python3", []string{"python", "x.py"}, map[string]string{"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, []string{"xla_extension.so"}, want{"jax", false, 0}},
		"pytorch":               {"/usr/bin/python3", []string{"python", "train.py"}, nil, []string{"libcuda.so.1", "libtorch_cuda.so"}, want{"pytorch", false, 0}},
		"a name is no sign":     {"/usr/bin/python3", []string{"python", "train.py", "--model=vllm-tuned"}, nil, []string{"libtorch_cuda.so"}, want{"pytorch", false, 0}},
		"ollama":                {"/usr/local/bin/ollama", []string{"/usr/local/bin/ollama", "runner"}, nil, nil, want{"ollama", false, 0}},
		"a monitor":             {"/usr/bin/nvtop", []string{"nvtop"}, nil, []string{"libnvidia-ml.so.1"}, want{"monitor", false, 0}},
		"a monitor in python":   {"/usr/bin/python3", []string{"/usr/bin/python3", "/usr/local/bin/nvitop"}, nil, nil, want{"monitor", false, 0}},
		"something":             {"/opt/x", []string{"x"}, nil, nil, want{"", false, 0}},
		"no arguments":          {"", nil, nil, nil, want{"", false, 0}},
	} {
		p := process{args: test.args, env: test.env}
		p.Exe, p.Libraries = test.exe, test.libs
		s := &scene{Inspector: newServer(t).inspector(nil), ctx: t.Context()}
		s.recognise(&p)
		if got := (want{p.Framework, p.Preallocates, p.Share}); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

func TestCgroup(t *testing.T) {
	for text, want := range map[string][2]string{
		"0::/system.slice/vllm.service\n":                                           {"vllm.service", ""},
		"12:devices:/x\n1:name=systemd:/system.slice/vllm.service\n0::/\n":          {"vllm.service", ""},
		"0::/system.slice/docker-" + id64 + ".scope\n":                              {"", id64},
		"1:name=systemd:/docker/" + id64 + "\n":                                     {"", id64},
		"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id64 + ".scope":  {"", id64},
		"0::/machine.slice/libpod-" + id64 + ".scope/container\n":                   {"", id64},
		"0::/system.slice/web.service/libpod-payload-" + id64 + "\n":                {"web.service", id64},
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/tune.service\n": {"tune.service", ""},
		"0::/user.slice/user-1000.slice/session-1.scope\n":                          {"", ""},
		"": {"", ""},
	} {
		unit, container := cgroup(text)
		if unit != want[0] || container != want[1] {
			t.Errorf("%q: %q %q", text, unit, container)
		}
	}
}

func TestPinsIn(t *testing.T) {
	for text, want := range map[string][]report.Pin{
		"Environment=\"CUDA_VISIBLE_DEVICES=0,1\"":         {{Key: "CUDA_VISIBLE_DEVICES", Value: "0,1", Kind: "index"}},
		"  - NVIDIA_VISIBLE_DEVICES=" + uuid0:              {{Key: "NVIDIA_VISIBLE_DEVICES", Value: uuid0, Kind: "gpu-uuid"}},
		"  NVIDIA_VISIBLE_DEVICES: all":                    {{Key: "NVIDIA_VISIBLE_DEVICES", Value: "all", Kind: "all"}},
		"export CUDA_VISIBLE_DEVICES=$(pick)":              nil,
		"# CUDA_VISIBLE_DEVICES=0":                         nil,
		"NVIDIA_VISIBLE_DEVICES=void":                      nil,
		"device_ids: ['0', \"" + uuid1 + "\"]":             {{Key: "device_ids", Value: "0," + uuid1, Kind: "gpu-uuid"}},
		"docker run --gpus '\"device=0,2\"' x":             {{Key: "--gpus", Value: "device=0,2", Kind: "index"}},
		"docker run --gpus all x":                          {{Key: "--gpus", Value: "all", Kind: "all"}},
		"podman run --device nvidia.com/gpu=0 x":           {{Key: "cdi", Value: "nvidia.com/gpu=0", Kind: "index"}},
		"AddDevice=nvidia.com/gpu=all":                     {{Key: "cdi", Value: "nvidia.com/gpu=all", Kind: "all"}},
		"nvidia-smi -i 0000:41:00.0 -pl 250":               {{Key: "nvidia-smi -i", Value: "0000:41:00.0", Kind: "pci"}},
		"x MIG-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeee0 y":     {{Key: "uuid", Value: "MIG-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeee0", Kind: "mig-uuid"}},
		"MIG-GPU-11111111-2222-3333-4444-555555555550/7/0": {{Key: "uuid", Value: "MIG-GPU-11111111-2222-3333-4444-555555555550/7/0", Kind: "mig-uuid"}},
		"DeviceAllow=/dev/nvidia3 rw":                      {{Key: "device", Value: "/dev/nvidia3", Kind: "device-file"}},
		"DeviceAllow=/dev/nvidiactl rw":                    nil,
	} {
		for n := range want {
			want[n].Where, want[n].Line = "f:1", text
		}
		if diff := cmp.Diff(want, pinsIn("f", text, "#")); diff != "" {
			t.Errorf("%q\n%s", text, diff)
		}
	}
}

// Those that podman removes when they end, as it does with those of its units, are in a list of
// their own.
func TestPodman(t *testing.T) {
	s := newServer(t)
	other, unit := id64[:63]+"e", id64[:63]+"c"
	spec := func(env string) string {
		return `{"process": {"env": [` + env + `]}, "mounts": [{"source": "/srv/m", "destination": "/m", "type": "bind"}, {"source": "proc", "destination": "/proc", "type": "proc"}]}`
	}
	s.files(`
-- var/lib/containers/storage/overlay-containers/containers.json --
[{"id": "` + id64 + `", "names": ["web"], "metadata": "{\"image-name\":\"docker.io/x:1\"}"}, {"id": "` + other + `", "names": ["old"]}, {"id": "../../../../../etc", "names": ["bad"]}]
-- run/containers/storage/overlay-containers/` + id64 + `/userdata/config.json --
` + spec(`"NVIDIA_VISIBLE_DEVICES=0"`) + `
-- run/containers/storage/overlay-containers/` + id64 + `/userdata/pidfile --
77
-- proc/77/stat --
-- var/lib/containers/storage/overlay-containers/volatile-containers.json --
[{"id": "` + unit + `", "names": ["systemd-infer"]}]
-- run/containers/storage/overlay-containers/` + unit + `/userdata/config.json --
` + spec(`"NVIDIA_VISIBLE_DEVICES=1"`) + `
-- run/containers/storage/overlay-containers/` + unit + `/userdata/pidfile --
77
-- var/lib/containers/storage/overlay-containers/` + other + `/userdata/config.json --
` + spec(`"NVIDIA_VISIBLE_DEVICES=void"`) + `
`)
	sc := &scene{Inspector: s.inspector(nil), ctx: t.Context()}
	var got []report.Workload
	for _, c := range sc.containers() {
		got = append(got, c.Workload)
	}
	want := []report.Workload{
		{ID: other, Name: "old", Runtime: "podman", State: "exited", Mounts: []string{"/srv/m"}},
		{ID: unit, Name: "systemd-infer", Runtime: "podman", State: "running", GPUs: []string{"1"}, Mounts: []string{"/srv/m"}},
		{ID: id64, Name: "web", Image: "docker.io/x:1", Runtime: "podman", State: "running", GPUs: []string{"0"}, Mounts: []string{"/srv/m"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Whoever may not read Docker's files may still ask it.
func TestAskDocker(t *testing.T) {
	s := newServer(t)
	s.file("run/docker.sock", "")
	s.program("docker", `case "$1" in
ps) echo `+id64+`; echo "WARNING: something" >&2;;
inspect) test "$2" = `+id64+` && cat <<'END'
[{"Id": "`+id64+`", "Name": "/web", "Config": {"Image": "x", "Env": ["NVIDIA_VISIBLE_DEVICES=all"]}, "State": {"Status": "running"}, "Mounts": [{"Source": "/srv", "Destination": "/d"}],
 "HostConfig": {"RestartPolicy": {"Name": "always"}, "DeviceRequests": [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}, {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1"]}]}}]
END
esac`)
	sc := &scene{Inspector: s.inspector(nil), ctx: t.Context()}
	all := sc.containers()
	want := report.Workload{ID: id64, Name: "web", Image: "x", Runtime: "docker", State: "running", GPUs: []string{"all", "nvidia.com/gpu=1"}, Restart: "always", Mounts: []string{"/srv"}}
	if len(all) != 1 {
		t.Fatalf("%+v %+v", all, sc.unseen)
	}
	if diff := cmp.Diff(want, all[0].Workload); diff != "" {
		t.Error(diff)
	}
	s.program("docker", "echo 'permission denied while trying to connect' >&2; exit 1")
	sc = &scene{Inspector: s.inspector(nil), ctx: t.Context()}
	if all := sc.containers(); len(all) != 0 || len(sc.unseen) != 1 {
		t.Errorf("%+v %+v", all, sc.unseen)
	}
}

func TestNICs(t *testing.T) {
	s := newServer(t)
	s.files(anyServer + `
-- sys/class/net/bond0/* --
address: ac:1f:6b:00:00:01
mtu: 9000
operstate: up
speed: 20000
ifindex: 9
bonding/mode: 802.3ad 4
lower_eno1 -> ../eno1
-- sys/class/net/bond0.7/* --
address: ac:1f:6b:00:00:01
uevent: DEVTYPE=vlan
lower_bond0 -> ../bond0
-- sys/class/net/br0/* --
bridge/bridge_id: x
lower_veth1 -> ../veth1
-- sys/class/net/veth1/* --
address: x
-- etc/sysconfig/network-scripts/ifcfg-bond0 --
DEVICE=bond0
-- run/systemd/netif/links/9 --
NETWORK_FILE=/run/systemd/network/x.network
`)
	s.pci("0000:01:00.0", "020000", "8086:1563", "ixgbe", "")
	r := s.inspect()
	var got []string
	for _, n := range r.NICs {
		got = append(got, n.Name+" "+n.Kind+" "+n.Config)
	}
	if diff := cmp.Diff([]string{"bond0 bond ifcfg", "bond0.7 vlan ", "eno1 physical "}, got); diff != "" {
		t.Error(diff)
	}
}

// As another user it tells what it could not see, and is told to be so.
func TestUnprivileged(t *testing.T) {
	s := debianA100(t)
	r, err := s.inspector(func(o *Options) { o.Unprivileged = true }).Inspect(t.Context())
	if err != nil || r.Privileged || len(r.Unseen) == 0 || r.Unseen[0].What != "privileged" {
		t.Errorf("%v %+v", err, r.Unseen)
	}
	if os.Geteuid() == 0 {
		return
	}
	s.must(os.Chmod(s.root+"/proc/812/fd", 0))
	if r := s.inspect(); r.Privileged {
		t.Errorf("%+v", r.Unseen)
	}
}

// A line of the report is one that is found in the file again.
func TestPinsInTellLines(t *testing.T) {
	text := "\n\n  gpu:\r\n\tCUDA_VISIBLE_DEVICES=0 \r\n# x\nAPI_KEY=abcdefgh CUDA_VISIBLE_DEVICES=1\nCUDA_VISIBLE_DEVICES=2\v\nCUDA_VISIBLE_DEVICES=3\r"
	want := []report.Pin{
		{Where: "f:4", Key: "CUDA_VISIBLE_DEVICES", Value: "0", Kind: "index", Line: "\tCUDA_VISIBLE_DEVICES=0 "},
		{Where: "f:6", Key: "CUDA_VISIBLE_DEVICES", Value: "1", Kind: "index"}, // it has a secret
		{Where: "f:7", Key: "CUDA_VISIBLE_DEVICES", Value: "2", Kind: "index"}, // it cannot be shown
		{Where: "f:8", Key: "CUDA_VISIBLE_DEVICES", Value: "3", Kind: "index"}, // nor can this, as it has no end
	}
	if diff := cmp.Diff(want, pinsIn("f", text, "#")); diff != "" {
		t.Error(diff)
	}
	// The file may go on where reading it ended.
	cut := (strings.Repeat("#\n", small/2-12) + "CUDA_VISIBLE_DEVICES=0,1,2,3")[:small]
	want = []report.Pin{{Where: fmt.Sprintf("f:%d", small/2-11), Key: "CUDA_VISIBLE_DEVICES", Value: "0,1", Kind: "index"}}
	if diff := cmp.Diff(want, pinsIn("f", cut, "#")); diff != "" {
		t.Error(diff)
	}
}

// What a router gave a NIC, or DHCP for a while, is told apart from what it has of itself.
func TestLearnedAddresses(t *testing.T) {
	s := newServer(t)
	s.files(anyServer + `
-- proc/net/if_inet6 --
20010db8000000000000000000000001 02 40 00 80     eno1
20010db800000000ae1f6bfffe000001 02 40 00 00     eno1
20010db8000000000000000000000009 03 40 00 00     eno2
fe80000000000000ae1f6bfffe000001 02 40 20 80     eno1
notanaddress 02 40 00 00 eno1
`)
	s.pci("0000:01:00.0", "020000", "8086:1563", "ixgbe", "")
	all := []string{"10.0.0.1/24", "2001:db8::1/64", "2001:db8::ae1f:6bff:fe00:1/64", "2001:db8::9/64", "fe80::ae1f:6bff:fe00:1/64"}
	r, err := s.inspector(func(o *Options) { o.Addresses = func(string) ([]string, error) { return all, nil } }).Inspect(t.Context())
	if err != nil || len(r.NICs) != 1 {
		t.Fatal(err, r.NICs)
	}
	if diff := cmp.Diff(all[2:3], r.NICs[0].Learned); diff != "" {
		t.Error(diff)
	}
}

// A Fabric Manager that runs where there is no GPU is no sign of an NVSwitch.
func TestFabricManagerAlone(t *testing.T) {
	for _, gpus := range [][]report.GPU{nil, {{PCI: "0000:41:00.0"}}} {
		s := newServer(t)
		s.files(anyServer)
		sc := &scene{Inspector: s.inspector(nil), ctx: t.Context()}
		r := report.Report{GPUs: gpus, Services: []report.Service{{Unit: "nvidia-fabricmanager.service", State: "active", Role: "fabric-manager"}}}
		if got := sc.features(&r, nil, nil).NVSwitch; len(got) != len(gpus) {
			t.Errorf("%d GPUs: %q", len(gpus), got)
		}
	}
}
