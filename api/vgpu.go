package api

// VGPUSettings is how the vGPUs of a GPU should share it, and how they do.
type VGPUSettings struct {
	GPU       string         `json:"gpu"`
	MixedSize MixedSizeState `json:"mixed_size"`
	Scheduler SchedulerState `json:"scheduler"`
	Equal     bool           `json:"equal"` // what is wanted is what is
}

// MixedSizeState is whether vGPUs of a GPU may differ in size.
type MixedSizeState struct {
	Supported   bool   `json:"supported"`
	Wanted      *bool  `json:"wanted,omitempty"`      // nil: nobody has asked
	Actual      *bool  `json:"actual,omitempty"`      // nil: the driver does not tell
	Unavailable string `json:"unavailable,omitempty"` // why it is not supported or not told
}

// SchedulerState is how vGPUs get the time of a GPU, and what the driver would take.
type SchedulerState struct {
	Policies       []string   `json:"policies"`                    // none: it cannot be chosen
	MinTimeSliceNS int        `json:"min_time_slice_ns,omitempty"` // 0: the driver does not say
	MaxTimeSliceNS int        `json:"max_time_slice_ns,omitempty"`
	Wanted         *Scheduler `json:"wanted,omitempty"`      // nil: nobody has asked
	Actual         *Scheduler `json:"actual,omitempty"`      // nil: the driver does not tell
	Unavailable    string     `json:"unavailable,omitempty"` // why it cannot be chosen or is not told
}

// Scheduler is a policy, and the length of a turn.
type Scheduler struct {
	Policy      string `json:"policy"`                  // best-effort, equal-share or fixed-share
	TimeSliceNS int    `json:"time_slice_ns,omitempty"` // 0: the driver's own
	Adaptive    bool   `json:"adaptive,omitempty"`      // the driver shortens turns by itself
}

// VGPUSettingsRequest asks for settings. What is absent stays as it was asked for.
type VGPUSettingsRequest struct {
	MixedSize *bool             `json:"mixed_size,omitempty"`
	Scheduler *SchedulerRequest `json:"scheduler,omitempty"`
}

// SchedulerRequest asks for a policy. Without a time slice any is right.
type SchedulerRequest struct {
	Policy      string `json:"policy"`
	TimeSliceNS *int   `json:"time_slice_ns,omitempty"`
}
