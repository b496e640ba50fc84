package mig

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuvirt/gpu"
)

// DefaultPath is where the dynamic linker looks for the library.
const DefaultPath = "libnvidia-ml.so.1"

// NVML is the library of NVIDIA's driver. It is a Library.
type NVML struct {
	mu  sync.Mutex // the binding guards its own loading, but not a look at what it has loaded
	lib nvml.Interface
}

// New returns the library at a path, which is not opened yet.
func New(path string) *NVML {
	return &NVML{lib: nvml.New(nvml.WithLibraryPath(cmp.Or(path, DefaultPath)))}
}

// needed are the functions that are called. The process ends at the call of one that
// the library does not have, so a session with an older one is refused instead. Each
// entry is one function under the names it has had.
var needed = [][]string{
	{"nvmlSystemGetDriverVersion"},
	{"nvmlDeviceGetCount_v2", "nvmlDeviceGetCount"},
	{"nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByIndex"},
	{"nvmlDeviceGetHandleByPciBusId_v2", "nvmlDeviceGetHandleByPciBusId"},
	{"nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetPciInfo_v2", "nvmlDeviceGetPciInfo"},
	{"nvmlDeviceGetName"},
	{"nvmlDeviceGetUUID"},
	{"nvmlDeviceGetSerial"},
	{"nvmlDeviceGetMinorNumber"},
	{"nvmlDeviceGetMemoryInfo"},
	{"nvmlDeviceGetArchitecture"},
	{"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetComputeRunningProcesses"},
	{"nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2", "nvmlDeviceGetGraphicsRunningProcesses"},
	{"nvmlDeviceGetMigMode"},
	{"nvmlDeviceSetMigMode"},
	{"nvmlDeviceGetMaxMigDeviceCount"},
	{"nvmlDeviceGetMigDeviceHandleByIndex"},
	{"nvmlDeviceGetGpuInstanceId"},
	{"nvmlDeviceGetComputeInstanceId"},
	{"nvmlDeviceGetGpuInstanceProfileInfo"},
	{"nvmlDeviceGetGpuInstanceProfileInfoV"},
	{"nvmlDeviceGetGpuInstancePossiblePlacements_v2", "nvmlDeviceGetGpuInstancePossiblePlacements"},
	{"nvmlDeviceGetGpuInstanceRemainingCapacity"},
	{"nvmlDeviceCreateGpuInstanceWithPlacement"},
	{"nvmlDeviceGetGpuInstances"},
	{"nvmlDeviceGetGpuInstanceById"},
	{"nvmlGpuInstanceGetInfo"},
	{"nvmlGpuInstanceDestroy"},
	{"nvmlGpuInstanceGetComputeInstanceProfileInfo"},
	{"nvmlGpuInstanceGetComputeInstanceProfileInfoV"},
	{"nvmlGpuInstanceGetComputeInstancePossiblePlacements"},
	{"nvmlGpuInstanceCreateComputeInstanceWithPlacement"},
	{"nvmlGpuInstanceGetComputeInstances"},
	{"nvmlGpuInstanceGetComputeInstanceById"},
	{"nvmlComputeInstanceGetInfo_v2", "nvmlComputeInstanceGetInfo"},
	{"nvmlComputeInstanceDestroy"},
}

// Open loads the library and initialises it.
func (n *NVML) Open() (Session, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := check(n.lib.Init()); err != nil {
		return nil, err
	}
	for _, names := range needed {
		if !slices.ContainsFunc(names, func(name string) bool { return n.lib.Extensions().LookupSymbol(name) == nil }) {
			return nil, errors.Join(lacking(names[0]), check(n.lib.Shutdown()))
		}
	}
	return session{n.lib, n}, nil
}

// check makes an error of a return.
func check(ret nvml.Return) error {
	if ret == nvml.SUCCESS {
		return nil
	}
	return Return(ret)
}

// A session is one between Init and Shutdown, which the library counts.
type session struct {
	lib nvml.Interface
	of  *NVML
}

func (s session) Close() error {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	return check(s.lib.Shutdown())
}

func (s session) DriverVersion() (string, error) {
	v, ret := s.lib.SystemGetDriverVersion()
	return v, check(ret)
}

func (s session) Addresses() ([]gpu.Address, error) {
	n, ret := s.lib.DeviceGetCount()
	if err := check(ret); err != nil {
		return nil, err
	}
	var out []gpu.Address
	for i := range n {
		d, ret := s.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // it has fallen off the bus, or is not ours to see
		}
		info, ret := d.GetPciInfo()
		if ret != nvml.SUCCESS {
			continue
		}
		a, err := gpu.ParseAddress(text(info.BusId[:]))
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func (s session) Device(a gpu.Address) (Device, error) {
	d, ret := s.lib.DeviceGetHandleByPciBusId(fmt.Sprintf("%08x:%02x:%02x.%x", a.Domain, a.Bus, a.Slot, a.Function))
	if err := check(ret); err != nil {
		return nil, err
	}
	return device{d, s}, nil
}

// has reports whether the library has a function.
func (s session) has(function string) bool {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	return s.lib.Extensions().LookupSymbol(function) == nil
}

// text reads a string of C.
func text(in []int8) string {
	out := make([]byte, len(in))
	for i, c := range in {
		out[i] = byte(c) //nolint:gosec // the same eight bits
	}
	out, _, _ = bytes.Cut(out, []byte{0})
	return string(out)
}

// unavailable reports whether a profile is simply none of this card's: which answer
// says so differs between drivers.
func unavailable(ret nvml.Return) bool {
	return ret == nvml.ERROR_NOT_SUPPORTED || ret == nvml.ERROR_INVALID_ARGUMENT
}

type device struct {
	nvml.Device

	in session
}

func (d device) Facts() (f Facts, err error) {
	var ret nvml.Return
	if f.Name, ret = d.GetName(); ret != nvml.SUCCESS {
		return Facts{}, check(ret)
	}
	if f.UUID, ret = d.GetUUID(); ret != nvml.SUCCESS {
		return Facts{}, check(ret)
	}
	if f.Serial, ret = d.GetSerial(); ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
		return Facts{}, check(ret)
	}
	if f.Minor, ret = d.GetMinorNumber(); ret != nvml.SUCCESS {
		return Facts{}, check(ret)
	}
	// A part whose memory is the host's has none of its own to tell.
	memory, ret := d.GetMemoryInfo()
	if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
		return Facts{}, check(ret)
	}
	f.MemoryBytes = memory.Total
	arch, ret := d.GetArchitecture()
	if err := check(ret); err != nil {
		return Facts{}, err
	}
	f.ModeResets = arch < nvml.DEVICE_ARCH_HOPPER
	return f, nil
}

func (d device) Mode() (gpu.MIGMode, error) {
	current, pending, ret := d.GetMigMode()
	if ret == nvml.ERROR_NOT_SUPPORTED {
		return gpu.MIGMode{}, nil
	}
	if err := check(ret); err != nil {
		return gpu.MIGMode{}, err
	}
	return gpu.MIGMode{Capable: true, Current: current == nvml.DEVICE_MIG_ENABLE, Pending: pending == nvml.DEVICE_MIG_ENABLE}, nil
}

func (d device) SetMode(on bool) (activation, err error) {
	mode := nvml.DEVICE_MIG_DISABLE
	if on {
		mode = nvml.DEVICE_MIG_ENABLE
	}
	a, ret := d.SetMigMode(mode)
	if err := check(ret); err != nil {
		return nil, err
	}
	return check(a), nil
}

func (d device) Processes() ([]Process, error) {
	computing, ret := d.GetComputeRunningProcesses()
	if err := check(ret); err != nil {
		return nil, err
	}
	drawing, ret := d.GetGraphicsRunningProcesses()
	if ret != nvml.ERROR_NOT_SUPPORTED {
		if err := check(ret); err != nil {
			return nil, err
		}
		computing = append(computing, drawing...)
	}
	var out []Process
	for _, p := range computing {
		q := Process{PID: int(p.Pid), Instance: -1}
		if p.GpuInstanceId != ^uint32(0) {
			q.Instance = int(p.GpuInstanceId)
		}
		if !slices.Contains(out, q) {
			out = append(out, q)
		}
	}
	slices.SortFunc(out, func(a, b Process) int { return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Instance, b.Instance)) })
	return out, nil
}

// name returns the driver's name of a profile without "MIG ". Drivers that know no
// third form of the description know the second.
func (d device) name(index int) (string, nvml.Return) {
	v3, ret := d.GetGpuInstanceProfileInfoV(index).V3()
	if ret == nvml.SUCCESS {
		return bare(v3.Name[:]), ret
	}
	v2, ret := d.GetGpuInstanceProfileInfoV(index).V2()
	return bare(v2.Name[:]), ret
}

func bare(name []int8) string { return strings.TrimPrefix(text(name), "MIG ") }

func (d device) Profiles() ([]DeviceProfile, error) {
	// A void handle answers as an absent profile does: the mode tells them apart.
	mode, err := d.Mode()
	if err != nil || !mode.Capable {
		return nil, err
	}
	var out []DeviceProfile
	for index := range nvml.GPU_INSTANCE_PROFILE_COUNT {
		info, ret := d.GetGpuInstanceProfileInfo(index)
		if unavailable(ret) {
			continue
		}
		if err := check(ret); err != nil {
			return nil, err
		}
		p, err := d.profile(index, &info, mode.Current)
		if !mode.Current && errors.Is(err, ErrNotSupported) {
			continue // nvml.h lets a driver keep the names to itself while MIG is off
		}
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func (d device) profile(index int, info *nvml.GpuInstanceProfileInfo, on bool) (p DeviceProfile, err error) {
	p = DeviceProfile{Index: index, MemoryMiB: info.MemorySizeMB}
	p.ID, p.Max = int(info.Id), int(info.InstanceCount)
	p.Engines = Engines{
		Compute: int(info.SliceCount), Decoders: int(info.DecoderCount), Encoders: int(info.EncoderCount),
		JPEG: int(info.JpegCount), OFA: int(info.OfaCount),
	}
	name, ret := d.name(index)
	if err := check(ret); err != nil {
		return p, err
	}
	p.Name = name
	places, ret := d.GetGpuInstancePossiblePlacements(info)
	if err := check(ret); err != nil {
		return p, err
	}
	for _, at := range places {
		p.Starts, p.Size = append(p.Starts, int(at.Start)), int(at.Size)
	}
	slices.Sort(p.Starts)
	// With MIG off some drivers answer with an error, others with what an empty card has.
	if !on {
		return p, nil
	}
	p.Available, ret = d.GetGpuInstanceRemainingCapacity(info)
	return p, check(ret)
}

func (d device) Instances() ([]DeviceInstance, error) {
	if mode, err := d.Mode(); err != nil || !mode.Current {
		return nil, err
	}
	uuids, err := d.uuids()
	if err != nil {
		return nil, err
	}
	var out []DeviceInstance
	for index := range nvml.GPU_INSTANCE_PROFILE_COUNT {
		info, ret := d.GetGpuInstanceProfileInfo(index)
		if unavailable(ret) || ret == nvml.SUCCESS && info.InstanceCount == 0 {
			continue
		}
		if err := check(ret); err != nil {
			return nil, err
		}
		of, ret := d.GetGpuInstances(&info)
		if unavailable(ret) {
			continue
		}
		if err := check(ret); err != nil {
			return nil, err
		}
		for _, gi := range of {
			in, err := d.instance(gi, uuids)
			if err != nil {
				return nil, err
			}
			out = append(out, in)
		}
	}
	slices.SortFunc(out, func(a, b DeviceInstance) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// pair names a compute instance of a GPU.
type pair struct{ instance, compute int }

// uuids reads the UUIDs of all compute instances: the library gives them to the
// devices that programs see, not to the instances.
func (d device) uuids() (map[pair]string, error) {
	n, ret := d.GetMaxMigDeviceCount()
	if err := check(ret); err != nil {
		return nil, err
	}
	out := map[pair]string{}
	for i := range n {
		m, ret := d.GetMigDeviceHandleByIndex(i)
		if ret == nvml.ERROR_NOT_FOUND || ret == nvml.ERROR_INVALID_ARGUMENT {
			continue // the numbers have gaps
		}
		if err := check(ret); err != nil {
			return nil, err
		}
		gi, ret1 := m.GetGpuInstanceId()
		ci, ret2 := m.GetComputeInstanceId()
		uuid, ret3 := m.GetUUID()
		if err := cmp.Or(check(ret1), check(ret2), check(ret3)); err != nil {
			return nil, err
		}
		out[pair{gi, ci}] = uuid
	}
	return out, nil
}

func (d device) instance(gi nvml.GpuInstance, uuids map[pair]string) (DeviceInstance, error) {
	info, ret := gi.GetInfo()
	if err := check(ret); err != nil {
		return DeviceInstance{}, err
	}
	in := DeviceInstance{
		ID: int(info.Id), ProfileID: int(info.ProfileId),
		Start: int(info.Placement.Start), Size: int(info.Placement.Size),
	}
	err := eachComputeProfile(gi, func(_ int, p *nvml.ComputeInstanceProfileInfo) error {
		if p.InstanceCount == 0 {
			return nil
		}
		of, ret := gi.GetComputeInstances(p)
		if unavailable(ret) {
			return nil
		}
		if err := check(ret); err != nil {
			return err
		}
		for _, ci := range of {
			info, ret := ci.GetInfo()
			if err := check(ret); err != nil {
				return err
			}
			in.Compute = append(in.Compute, ComputeInstance{
				ID: int(info.Id), ProfileID: int(info.ProfileId), Start: int(info.Placement.Start), Size: int(info.Placement.Size),
				UUID: uuids[pair{in.ID, int(info.Id)}],
			})
		}
		return nil
	})
	slices.SortFunc(in.Compute, func(a, b ComputeInstance) int { return cmp.Compare(a.ID, b.ID) })
	return in, err
}

func eachComputeProfile(gi nvml.GpuInstance, f func(index int, p *nvml.ComputeInstanceProfileInfo) error) error {
	for index := range nvml.COMPUTE_INSTANCE_PROFILE_COUNT {
		p, ret := gi.GetComputeInstanceProfileInfo(index, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		if unavailable(ret) {
			continue
		}
		if err := check(ret); err != nil {
			return err
		}
		if err := f(index, &p); err != nil {
			return err
		}
	}
	return nil
}

func (d device) Create(index, start int) (int, error) {
	info, ret := d.GetGpuInstanceProfileInfo(index)
	if err := check(ret); err != nil {
		return 0, err
	}
	places, ret := d.GetGpuInstancePossiblePlacements(&info)
	if err := check(ret); err != nil {
		return 0, err
	}
	at := slices.IndexFunc(places, func(p nvml.GpuInstancePlacement) bool { return int(p.Start) == start })
	if at < 0 {
		return 0, ErrInvalidArgument
	}
	gi, ret := d.CreateGpuInstanceWithPlacement(&info, &places[at])
	if err := check(ret); err != nil {
		return 0, err
	}
	made, ret := gi.GetInfo()
	return int(made.Id), check(ret)
}

func (d device) Destroy(id int) error {
	gi, ret := d.GetGpuInstanceById(id)
	if err := check(ret); err != nil {
		return err
	}
	return check(gi.Destroy())
}

func (d device) ComputeProfiles(instance int) ([]ComputeProfile, error) {
	gi, ret := d.GetGpuInstanceById(instance)
	if err := check(ret); err != nil {
		return nil, err
	}
	var out []ComputeProfile
	err := eachComputeProfile(gi, func(index int, info *nvml.ComputeInstanceProfileInfo) error {
		p := ComputeProfile{Index: index, ID: int(info.Id), Slices: int(info.SliceCount), Max: int(info.InstanceCount)}
		v2, ret := gi.GetComputeInstanceProfileInfoV(index, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED).V2()
		if err := check(ret); err != nil {
			return err
		}
		p.Name = bare(v2.Name[:])
		places, ret := gi.GetComputeInstancePossiblePlacements(info)
		if !unavailable(ret) {
			if err := check(ret); err != nil {
				return err
			}
		}
		for _, at := range places {
			p.Starts = append(p.Starts, int(at.Start))
		}
		slices.Sort(p.Starts)
		out = append(out, p)
		return nil
	})
	return out, err
}

func (d device) CreateCompute(instance, index, start int) (int, error) {
	gi, ret := d.GetGpuInstanceById(instance)
	if err := check(ret); err != nil {
		return 0, err
	}
	info, ret := gi.GetComputeInstanceProfileInfo(index, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
	if err := check(ret); err != nil {
		return 0, err
	}
	at := nvml.ComputeInstancePlacement{Start: uint32(start), Size: info.SliceCount} //nolint:gosec // a slice
	ci, ret := gi.CreateComputeInstanceWithPlacement(&info, &at)
	if err := check(ret); err != nil {
		return 0, err
	}
	made, ret := ci.GetInfo()
	return int(made.Id), check(ret)
}

func (d device) DestroyCompute(instance, id int) error {
	gi, ret := d.GetGpuInstanceById(instance)
	if err := check(ret); err != nil {
		return err
	}
	ci, ret := gi.GetComputeInstanceById(id)
	if err := check(ret); err != nil {
		return err
	}
	return check(ci.Destroy())
}
