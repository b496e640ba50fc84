package report

// GPU is a GPU of the source, from PCI where no driver tells more.
type GPU struct {
	Index       int    `json:"index"` // as the driver counts; -1: the driver does not know it
	PCI         string `json:"pci_address"`
	PCIID       string `json:"pci_id"`                  // "10de:20f1"
	Subsystem   string `json:"pci_subsystem,omitempty"` // "10de:145f"
	Vendor      string `json:"vendor"`                  // nvidia, amd, intel, or the number
	Model       string `json:"model,omitempty"`
	UUID        string `json:"uuid,omitempty"`
	Serial      string `json:"serial,omitempty"`
	VBIOS       string `json:"vbios,omitempty"`
	MemoryBytes uint64 `json:"memory_bytes"`     // 0: not known
	BAR1Bytes   uint64 `json:"bar1_bytes"`       // 0: not known
	Driver      string `json:"driver,omitempty"` // of the kernel: nvidia, nouveau, amdgpu, vfio-pci
	NUMANode    *int   `json:"numa_node,omitempty"`
	BootVGA     bool   `json:"boot_vga"`
	// Multiprocessors is how many SMs it has; 0: not known.
	Multiprocessors int    `json:"multiprocessors"`
	Capability      string `json:"compute_capability,omitempty"` // "9.0"
	Persistence     bool   `json:"persistence"`
	ECC             string `json:"ecc,omitempty"`          // enabled, disabled; empty: none or not known
	ComputeMode     string `json:"compute_mode,omitempty"` // default, exclusive-process, prohibited
	PowerWatts      int    `json:"power_limit_watts,omitempty"`
	DisplayActive   bool   `json:"display_active"`
	// MIG is its mode: enabled, disabled; empty: it has none or it is not known.
	MIG       string        `json:"mig,omitempty"`
	Instances []MIGInstance `json:"instances"`
}

// MIGInstance is a GPU instance of the source, with its compute instances.
type MIGInstance struct {
	ID      int      `json:"id"`
	Profile string   `json:"profile"`   // "3g.40gb"
	Place   string   `json:"placement"` // "4:4"
	UUIDs   []string `json:"uuids"`     // of its MIG devices
}

// Driver is NVIDIA's driver on the source.
type Driver struct {
	Version string `json:"version"`        // "550.90.07"
	CUDA    string `json:"cuda,omitempty"` // the newest that it serves: "12.4"
	Flavour string `json:"flavour"`        // open, proprietary, unknown
	// Origin is how it was installed: deb, rpm, runfile, unknown.
	Origin   string   `json:"origin"`
	Packages []string `json:"packages"` // "nvidia-driver=550.90.07-1"
	DKMS     bool     `json:"dkms"`
	// Guest is set where it is the driver of a vGPU's guest already, or a host's manager.
	Guest   bool     `json:"guest,omitempty"`
	Modules []string `json:"modules"` // loaded: nvidia, nvidia_uvm, nvidia_peermem, nouveau, …
}

// Link is how two GPUs, or a GPU and a NIC, reach one another.
type Link struct {
	A    string `json:"a"`    // PCI addresses
	B    string `json:"b"`    //
	Kind string `json:"kind"` // as nvidia-smi's matrix says: NV4, PIX, PXB, PHB, NODE, SYS
}

// Features is what the workload was seen to use, each as a sentence of evidence; an empty
// list means that no sign was seen, not that it is not used.
type Features struct {
	NVLink        []string `json:"nvlink"`
	NVSwitch      []string `json:"nvswitch"`
	P2P           []string `json:"p2p"`
	GPUDirectRDMA []string `json:"gpudirect_rdma"`
	GPUDirectIO   []string `json:"gpudirect_storage"`
	MPS           []string `json:"mps"`
	UnifiedMemory []string `json:"unified_memory"`
	Profilers     []string `json:"profilers"`
	Encoder       []string `json:"encoder"`
	Decoder       []string `json:"decoder"`
	Graphics      []string `json:"graphics"`
}

// Process is a process that has a GPU open.
type Process struct {
	PID  int      `json:"pid"`
	Exe  string   `json:"exe"`
	Args []string `json:"args"` // what looks like a secret is masked
	User string   `json:"user"`
	GPUs []string `json:"gpus"` // PCI addresses
	// Type is compute, graphics, both, or empty where only its open files tell of it.
	Type        string `json:"type,omitempty"`
	MemoryBytes uint64 `json:"memory_bytes"` // on the GPUs; 0: not known
	Unit        string `json:"unit,omitempty"`
	Container   string `json:"container,omitempty"` // its id
	// Framework is what it is known to be: vllm, triton, tgi, sglang, pytorch, tensorflow,
	// jax, ollama, monitor (it only watches), …; empty: not known.
	Framework string `json:"framework,omitempty"`
	// Preallocates is set where it takes a share of whatever memory it sees; the share where
	// it is known, else 0.
	Preallocates bool     `json:"preallocates"`
	Share        float64  `json:"share,omitempty"`
	Libraries    []string `json:"libraries"` // those of the GPU that it has mapped: libcuda.so.550.90.07, …
}

// Service is a unit of systemd that has to do with GPUs.
type Service struct {
	Unit    string `json:"unit"`
	State   string `json:"state"`   // active, inactive, failed
	Enabled string `json:"enabled"` // enabled, disabled, static, masked
	// Role is workload, or what of NVIDIA's it is: persistence, fabric-manager, dcgm, mps,
	// gridd, container-toolkit, cdi, mig-manager, powerd, display-manager; or settings: it
	// sets clocks, power or MIG by nvidia-smi.
	Role string `json:"role"`
	Exec string `json:"exec,omitempty"`
	File string `json:"file,omitempty"` // where the unit is written
}

// Workload is a container that may use a GPU.
type Workload struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Image   string   `json:"image"`
	Runtime string   `json:"runtime"` // docker, podman, containerd, kubernetes
	State   string   `json:"state"`
	GPUs    []string `json:"gpus"` // as it asks: "all", "device=0", a UUID, a CDI name
	Restart string   `json:"restart,omitempty"`
	// RequireCUDA is the image's NVIDIA_REQUIRE_CUDA, empty: none.
	RequireCUDA string   `json:"require_cuda,omitempty"`
	Mounts      []string `json:"mounts"` // folders of the host that it sees
}

// Pin is a place where one GPU is named, which after the move has another name.
type Pin struct {
	// Where is a file and line ("/etc/systemd/system/infer.service:7"), a process
	// ("process 812"), or a container ("container web").
	Where string `json:"where"`
	Key   string `json:"key"`   // CUDA_VISIBLE_DEVICES, NVIDIA_VISIBLE_DEVICES, device, BusID, …
	Value string `json:"value"` // "0,1", "GPU-…", "MIG-…", "0000:41:00.0"
	Kind  string `json:"kind"`  // index, gpu-uuid, mig-uuid, pci, device-file, all
	// Line is the line of the file as it stands, with the space around it; empty: it is in no
	// file, or something in it had to be masked, escaped or cut.
	Line string `json:"line,omitempty"`
}

// Models is a folder with models.
type Models struct {
	Path      string `json:"path"`
	Kind      string `json:"kind"` // triton, huggingface, ollama, tensorrt, gguf, safetensors
	SizeBytes uint64 `json:"size_bytes"`
	Files     int    `json:"files"`
	// Complete is false where the look at it was ended for its size.
	Complete bool `json:"complete"`
	// Engines is how many files were built for one model of GPU (TensorRT), and have to
	// be built again for another.
	Engines int `json:"engines"`
}

// Config is a file about GPUs that a person or a package laid, and that matters in the VM.
type Config struct {
	Path string `json:"path"`
	// Kind is modprobe, modules-load, udev, xorg, gridd, licence-token, persistence, mig,
	// power, container-runtime, cdi.
	Kind string `json:"kind"`
	// Lines are those that say something, without secrets; none of a token.
	Lines []string `json:"lines"`
	// Exact are those of Lines as they stand, with the space around them, in which nothing
	// had to be masked, escaped or cut.
	Exact []string `json:"exact,omitempty"`
}
