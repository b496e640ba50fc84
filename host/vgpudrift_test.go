package host

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
	"gpuvirt/operation/operationtest"
)

// forgetfulStore reads the records of GPUs once, and not again.
type forgetfulStore struct {
	Store

	reads int
}

func (s *forgetfulStore) GPURecords() ([]gpu.GPURecord, error) {
	if s.reads++; s.reads > 1 {
		return nil, errors.New("the disk is gone")
	}
	on := true
	return []gpu.GPURecord{{ID: "0000:61:00.0", Managed: true, VGPU: gpu.VGPUWish{MixedSize: &on}}}, nil
}

// A GPU that cannot be looked at has drifted as it had before: told again, it would be news.
func TestVGPUDriftIsKeptWhereItCannotBeLooked(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	h := New(Config{
		Store: &forgetfulStore{}, Inventory: inventory.New(inventory.Config{}), Log: log, Now: time.Now,
		Engine: operation.New(operation.Config{Store: operationtest.NewMemory(), Log: log}),
	})
	const key, how = "gpu/0000:61:00.0/vgpu", "asked for mixed sizes on, but they are off"
	h.drift = map[string]string{key: how}
	now := map[string]string{}
	if err := h.reportVGPUs(t.Context(), now); err != nil {
		t.Error(err)
	}
	if now[key] != how {
		t.Errorf("%q", now)
	}
}
