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
	MaxPerInstance   int    // on one GPU instance; 0: unknown, or it lives on none
	Heads            int    // displays
	Resolution       string // of the first of them, "7680x4320"; empty: unknown
	License          string // the editions that it takes, as the driver names them
	// GPUInstanceProfile is the driver's id of the MIG profile that it lives on, and On that
	// profile's name; nil and empty for a type that shares the whole GPU by time.
	GPUInstanceProfile *int
	On                 string
}
