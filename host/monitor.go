package host

import (
	"context"
	"slices"
	"strconv"

	"gpuvirt/gpu"
)

// withModes is a GPU with its modes.
func (h *Host) withModes(ctx context.Context, g gpu.GPU) gpu.GPU {
	out := []gpu.GPU{g}
	h.addModes(ctx, out)
	return out[0]
}

// addModes adds what drivers tell of GPUs beside how they are cut. Where one does not tell
// that is no news: whatever is wrong with it, the GPU's conditions say.
func (h *Host) addModes(ctx context.Context, gpus []gpu.GPU) {
	ids := make([]gpu.ID, len(gpus))
	for i, g := range gpus {
		ids[i] = g.ID
	}
	modes, err := h.cfg.Inventory.Modes(ctx, ids...)
	if err != nil {
		h.cfg.Log.DebugContext(ctx, "modes of gpus are not known", "err", err)
	}
	for i, g := range gpus {
		gpus[i].Modes = modes[g.ID]
	}
}

// describe adds to NVIDIA's types of mediated devices what sysfs does not say of them: the
// driver's library knows the same types, by the same numbers.
func (h *Host) describe(ctx context.Context, id gpu.ID, profiles []gpu.Profile) {
	lacks := func(p gpu.Profile) bool { return p.Kind == gpu.KindMdev && p.Attributes["series"] != "" }
	if !slices.ContainsFunc(profiles, lacks) {
		return
	}
	types, err := h.cfg.Inventory.VGPUTypes(ctx, id)
	if err != nil {
		h.cfg.Log.DebugContext(ctx, "types of vgpus are not known", "gpu", id, "err", err)
	}
	for _, t := range types {
		native := "nvidia-" + strconv.FormatUint(uint64(t.ID), 10)
		i := slices.IndexFunc(profiles, func(p gpu.Profile) bool { return lacks(p) && p.NativeID == native && p.Attributes["name"] == t.Name })
		if i < 0 {
			continue
		}
		for key, value := range t.Attributes() {
			if _, known := profiles[i].Attributes[key]; !known {
				profiles[i].Attributes[key] = value
			}
		}
	}
}
