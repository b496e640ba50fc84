package inventory_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// source is a backend that lists what it is told to.
type source struct {
	gpu.Backend
	gpus  []gpu.GPU
	parts []gpu.Partition
	err   error
}

func (s source) IDs(context.Context) (ids []gpu.ID, err error) {
	for _, g := range s.gpus {
		ids = append(ids, g.ID)
	}
	return ids, s.err
}

func (s source) Look(_ context.Context, id gpu.ID) (gpu.GPU, []gpu.Profile, error) {
	if s.err != nil {
		return gpu.GPU{}, nil, s.err
	}
	for _, g := range s.gpus {
		if g.ID == id {
			return g, []gpu.Profile{{Name: "p-" + string(id)}}, nil
		}
	}
	return gpu.GPU{}, nil, gpu.Errorf(gpu.CodeNotFound, "none")
}

func (s source) Partitions(context.Context, gpu.ID) ([]gpu.Partition, error) { return s.parts, s.err }

type vms struct{ events chan gpu.VMEvent }

func (v vms) VMs(context.Context) ([]gpu.VM, error)              { return nil, nil }
func (v vms) VM(context.Context, string) (gpu.VM, error)         { return gpu.VM{}, nil }
func (v vms) VMHead(context.Context, string) (gpu.VMHead, error) { return gpu.VMHead{}, nil }
func (v vms) LibvirtVersion(context.Context) (string, error)     { return "", nil }
func (v vms) Events() <-chan gpu.VMEvent                         { return v.events }
func (v vms) Holders(context.Context, gpu.Partition) ([]gpu.Holder, error) {
	return []gpu.Holder{{Kind: "process", ID: "7"}}, errors.New("not all could be looked at")
}
func (v vms) GPUHolders(context.Context, gpu.ID) ([]gpu.Holder, error) { return nil, nil }

// A card that two backends know is one GPU, whatever order they list in (T43).
func TestOneCardOfTwoBackends(t *testing.T) {
	inv := inventory.New(inventory.Config{Backends: map[gpu.Kind]gpu.Backend{
		gpu.KindMdev: source{gpus: []gpu.GPU{{ID: "b", Kinds: []gpu.Kind{gpu.KindMdev}}, {ID: "a", Kinds: []gpu.Kind{gpu.KindMdev}}}},
		gpu.KindMIG:  source{gpus: []gpu.GPU{{ID: "b", UUID: "GPU-1", Kinds: []gpu.Kind{gpu.KindMIG}, MIG: gpu.MIGMode{Capable: true}, MemoryBytes: 5}}},
	}})
	got, err := inv.GPUs(t.Context())
	want := []gpu.GPU{
		{ID: "a", Kinds: []gpu.Kind{gpu.KindMdev}},
		{ID: "b", UUID: "GPU-1", Kinds: []gpu.Kind{gpu.KindMdev, gpu.KindMIG}, MIG: gpu.MIGMode{Capable: true}, MemoryBytes: 5},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if l, err := inv.Look(t.Context(), "b"); err != nil || l.Err != nil || len(l.Profiles) != 2 {
		t.Errorf("profiles %+v: %v", l, err)
	}
	if _, err := inv.Backend(gpu.KindCard); gpu.CodeOf(err) != gpu.CodeInvalid {
		t.Errorf("a kind without backend: %v", err)
	}
}

// A backend that fails does not hide the others, and is not passed over (T23).
func TestFailingBackend(t *testing.T) {
	inv := inventory.New(inventory.Config{Backends: map[gpu.Kind]gpu.Backend{
		gpu.KindMdev: source{gpus: []gpu.GPU{{ID: "a", Kinds: []gpu.Kind{gpu.KindMdev}}}},
		gpu.KindMIG:  source{err: gpu.Errorf(gpu.CodeDriverMissing, "no driver")},
	}})
	got, err := inv.GPUs(t.Context())
	if len(got) != 1 || gpu.CodeOf(err) != gpu.CodeDriverMissing {
		t.Errorf("gpus %+v: %v", got, err)
	}
	if l, err := inv.Look(t.Context(), "a"); err != nil || gpu.CodeOf(l.Err) != gpu.CodeDriverMissing {
		t.Errorf("a GPU that is there: %+v, %v", l, err)
	}
	if _, err := inv.Look(t.Context(), "b"); gpu.CodeOf(err) != gpu.CodeDriverMissing {
		t.Errorf("a GPU that may be there: %v, want the reason why it is not known", err)
	}
}

// Whoever names a device holds it, running or not; what the scan could not see is
// told with what it saw (T17).
func TestHolders(t *testing.T) {
	inv := inventory.New(inventory.Config{Holders: vms{}})
	p := gpu.Partition{Handle: gpu.Handle{MdevUUID: "u"}}
	got, err := inv.Holders(t.Context(), p, []gpu.VM{
		{UUID: "1", Name: "one", Hostdevs: []gpu.Hostdev{{Config: true, Handle: gpu.Handle{MdevUUID: "u"}}}},
		{UUID: "2", Name: "two", Hostdevs: []gpu.Hostdev{{Live: true, Handle: gpu.Handle{MdevUUID: "other"}}}},
	})
	want := []gpu.Holder{{Kind: "vm", ID: "1", Name: "one"}, {Kind: "process", ID: "7"}}
	if diff := cmp.Diff(want, got); diff != "" || err == nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestSame(t *testing.T) {
	for _, tc := range []struct {
		a, b gpu.Handle
		want bool
	}{
		{gpu.Handle{MdevUUID: "u"}, gpu.Handle{MdevUUID: "u"}, true},
		{gpu.Handle{MdevUUID: "u"}, gpu.Handle{}, false},
		{gpu.Handle{}, gpu.Handle{}, false},
		{gpu.Handle{PCIAddress: "0000:01:00.0"}, gpu.Handle{PCIAddress: "0000:01:00.0"}, true},
		{gpu.Handle{MdevUUID: "u", PCIAddress: "x"}, gpu.Handle{MdevUUID: "v", PCIAddress: "x"}, false},
	} {
		if got := inventory.Same(tc.a, tc.b); got != tc.want {
			t.Errorf("Same(%+v, %+v) = %t", tc.a, tc.b, got)
		}
	}
}

// Follow hears of both kinds of change, and outlives a source that ends.
func TestFollow(t *testing.T) {
	devices, events := make(chan string, 1), make(chan gpu.VMEvent, 1)
	inv := inventory.New(inventory.Config{VMs: vms{events}, Devices: devices})
	ctx, cancel := context.WithCancel(t.Context())
	devices <- "mbochs"
	var heard []string
	inv.Follow(ctx, func(c inventory.Change) {
		if c.VM == nil {
			heard = append(heard, "device "+c.Device)
			close(devices)
			events <- gpu.VMEvent{UUID: "1", Kind: "lifecycle"}
			return
		}
		heard = append(heard, "vm "+c.VM.UUID)
		cancel()
	})
	if diff := cmp.Diff([]string{"device mbochs", "vm 1"}, heard); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Each backend knows a part of what a card is: who lists it first decides nothing.
func TestIdentityOfTwoBackends(t *testing.T) {
	ids := gpu.Identity{Model: "10de:20f1", Subsystem: "10de:145f"}
	known := gpu.Identity{Model: "10de:20f1", UUID: "GPU-1", Serial: "s"}
	inv := inventory.New(inventory.Config{Backends: map[gpu.Kind]gpu.Backend{
		gpu.KindCard: source{gpus: []gpu.GPU{{ID: "a", Model: "10de:20f1", Identity: ids, Kinds: []gpu.Kind{gpu.KindCard}}}},
		gpu.KindMIG:  source{gpus: []gpu.GPU{{ID: "a", Model: "A100", UUID: "GPU-1", Serial: "s", Identity: known, Kinds: []gpu.Kind{gpu.KindMIG}}}},
	}})
	got, err := inv.GPUs(t.Context())
	want := []gpu.GPU{{
		ID: "a", Model: "A100", UUID: "GPU-1", Serial: "s", Kinds: []gpu.Kind{gpu.KindCard, gpu.KindMIG},
		Identity: gpu.Identity{Model: "10de:20f1", UUID: "GPU-1", Serial: "s", Subsystem: "10de:145f"},
	}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// A GPU shows the serial number of its board, as on its label, where a newer kernel tells
// another; what it is known by stays what is told also where its driver is away.
func TestSerialOfTheBoard(t *testing.T) {
	dsn := "8a-2b-01-ff-ff-2d-b0-48"
	inv := inventory.New(inventory.Config{Backends: map[gpu.Kind]gpu.Backend{
		gpu.KindCard: source{gpus: []gpu.GPU{{ID: "a", Serial: dsn, Identity: gpu.Identity{Serial: dsn}}}},
		gpu.KindMIG:  source{gpus: []gpu.GPU{{ID: "a", UUID: "GPU-1", Serial: "1322923004711", Identity: gpu.Identity{UUID: "GPU-1", Serial: "1322923004711"}}}},
		gpu.KindVF:   source{gpus: []gpu.GPU{{ID: "a", Serial: dsn, Identity: gpu.Identity{Serial: dsn}}}},
	}})
	got, err := inv.GPUs(t.Context())
	if err != nil || len(got) != 1 || got[0].Serial != "1322923004711" || got[0].Identity.Serial != dsn {
		t.Errorf("%+v, %v", got, err)
	}
}
