package gpu

// Kind is a kind of partition.
type Kind string

// The kinds of partition.
const (
	KindMIG  Kind = "mig"  // GPU instance with its compute instances
	KindMdev Kind = "mdev" // mediated device
	KindVGPU Kind = "vgpu" // vendor-VFIO virtual function with a vGPU type
	KindVF   Kind = "vf"   // plain SR-IOV virtual function
	KindCard Kind = "card" // the whole GPU
)

// A Profile is a size of partition that a GPU can make. It is asked for by name;
// the driver's own type id is a read-only detail, because it differs between
// drivers and cards.
type Profile struct {
	Name         string
	Kind         Kind
	GPU          ID
	On           string // what it is made on, if not the GPU itself: a MIG profile
	MemoryBytes  uint64 // 0: unknown
	MaxInstances int    // per GPU; 0: unknown
	Available    int    // how many more fit now
	// Reserved is how many more would fit on devices that definitions of VMs name.
	Reserved int
	// Ahead is how many of these fit only when a partition of profile On is made for them.
	Ahead     int
	NativeID  string // the driver's id: "nvidia-746", "mbochs-small"
	DeviceAPI string // "vfio-pci", "vfio-ccw", "vfio-ap"
	// Attributes are further facts as the driver states them, under stable keys: "name",
	// "description", "num_heads", "max_resolution" ("7680x4320"), "frl_config" (frames per
	// second), …; of NVIDIA's vGPUs "series" too (A, B, C or Q), and where the driver's
	// library tells them "class", "license", "max_per_vm" and, for those on a GPU instance,
	// "max_per_instance" and "gpu_instance_profile".
	Attributes map[string]string
	// NotCreatable says why a partition of this profile cannot be made or attached
	// on this host at all, empty if it can.
	NotCreatable string
}
