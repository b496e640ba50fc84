package gpu

import "strconv"

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

// Attributes are a type's further facts under the keys of Profile.Attributes: "name",
// "class", "num_heads", "max_resolution", "license", "max_per_vm", "max_per_instance" and
// "gpu_instance_profile". What is not known is left out.
func (t VGPUType) Attributes() map[string]string {
	out := map[string]string{}
	add := func(key, value string) {
		if value != "" && value != "0" {
			out[key] = value
		}
	}
	add("name", t.Name)
	add("class", t.Class)
	add("num_heads", strconv.Itoa(t.Heads))
	add("max_resolution", t.Resolution)
	add("license", t.License)
	add("max_per_vm", strconv.Itoa(t.MaxPerVM))
	add("max_per_instance", strconv.Itoa(t.MaxPerInstance))
	if t.GPUInstanceProfile != nil {
		out["gpu_instance_profile"] = strconv.Itoa(*t.GPUInstanceProfile)
	}
	return out
}
