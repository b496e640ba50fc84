package gpu

// A VGPUType is a type of vGPU that a driver knows for a GPU, whether or not one
// more fits now. Its number is the driver's own, and another for another card or
// another version of the driver.
type VGPUType struct {
	ID               uint32
	Name             string // "NVIDIA L40S-8Q"
	Class            string // "Quadro", "Compute"
	FramebufferBytes uint64
	MaxInstances     int    // per GPU that has no other size on it; 0: unknown
	MaxPerVM         int    // 0: unknown
	Heads            int    // displays
	Resolution       string // of the first of them, "7680x4320"; empty: unknown
	License          string // the editions that it takes, as the driver names them
	// GPUInstanceProfile is the driver's id of the MIG profile that it lives on; nil for
	// a type that shares the whole GPU by time.
	GPUInstanceProfile *int
	// MIGProfile is the name of that profile on this GPU, empty if it is not known, and
	// PerInstance how many of the type share one such instance by time; 0: unknown.
	MIGProfile  string
	PerInstance int
}
