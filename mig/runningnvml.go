package mig

import (
	"encoding/binary"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuvirt/gpu"
)

// runningFunctions are those without which a running vGPU is nobody's. What the others
// tell is left out where the library does not have them.
var runningFunctions = []string{"nvmlDeviceGetActiveVgpus", "nvmlVgpuInstanceGetVmID", "nvmlVgpuInstanceGetType"}

func (d device) VGPUs() ([]ActiveVGPU, error) {
	for _, name := range runningFunctions {
		if !d.in.has(name) {
			return nil, lacking(name)
		}
	}
	all, ret := d.GetActiveVgpus()
	if unavailable(ret) {
		return nil, nil // the driver of a host without VMs
	}
	if err := check(ret); err != nil {
		return nil, err
	}
	var out []ActiveVGPU
	for _, in := range all {
		v, ret := d.vgpu(in)
		if ret == nvml.ERROR_NOT_FOUND {
			continue // its VM has ended meanwhile
		}
		if err := check(ret); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// number is by what the library knows a vGPU in its samples. The binding hides it: its
// type is an integer, and has no method that tells it.
func number(in nvml.VgpuInstance) uint32 {
	if v := reflect.ValueOf(in); v.Kind() == reflect.Uint32 {
		return uint32(v.Uint()) //nolint:gosec // it has 32 bits
	}
	return 0
}

// vgpu asks for what a vGPU is and for what is seen of it. Of the latter the driver owes
// nothing.
func (d device) vgpu(in nvml.VgpuInstance) (v ActiveVGPU, ret nvml.Return) {
	v.ID = number(in)
	vm, kind, ret := in.GetVmID()
	if ret != nvml.SUCCESS {
		return v, ret
	}
	if kind == nvml.VGPU_VM_ID_UUID {
		v.VM = strings.ToLower(vm)
	}
	typ, ret := in.GetType()
	if ret != nvml.SUCCESS {
		return v, ret
	}
	v.Type = typ.GetID()
	if d.in.has("nvmlVgpuInstanceGetMdevUUID") {
		if uuid, ret := in.GetMdevUUID(); ret == nvml.SUCCESS {
			v.MdevUUID = strings.ToLower(uuid)
		}
	}
	if d.in.has("nvmlVgpuInstanceGetGpuInstanceId") {
		if id, ret := in.GetGpuInstanceId(); ret == nvml.SUCCESS && uint32(id) != math.MaxUint32 { //nolint:gosec // the binding has widened it
			v.Instance = strconv.Itoa(id)
		}
	}
	if d.in.has("nvmlVgpuInstanceGetFbUsage") {
		if n, ret := in.GetFbUsage(); ret == nvml.SUCCESS {
			v.Observed.Usage = &gpu.Usage{MemoryUsedBytes: &n}
		}
	}
	v.Observed.GuestDriver, v.Observed.License = d.guest(in)
	return v, nvml.SUCCESS
}

// noGuestDriver is the version of a guest's driver that has not loaded.
const noGuestDriver = "Not Available"

// guest asks for what a guest's driver tells. While it has not loaded there is no licence.
func (d device) guest(in nvml.VgpuInstance) (version string, _ *gpu.License) {
	if d.in.has("nvmlVgpuInstanceGetVmDriverVersion") {
		text, ret := in.GetVmDriverVersion()
		if ret == nvml.SUCCESS && (text == noGuestDriver || text == "") {
			return "", nil
		}
		if ret == nvml.SUCCESS {
			version = text
		}
	}
	if !d.in.has("nvmlVgpuInstanceGetLicenseInfo_v2") && !d.in.has("nvmlVgpuInstanceGetLicenseInfo") {
		return version, nil
	}
	info, ret := in.GetLicenseInfo()
	state, known := licenseStates[info.CurrentState]
	if ret != nvml.SUCCESS || !known {
		return version, nil
	}
	l := &gpu.License{State: state}
	if e := info.LicenseExpiry; e.Status == nvml.GRID_LICENSE_EXPIRY_VALID {
		l.Expires = time.Date(int(e.Year), time.Month(e.Month), int(e.Day), int(e.Hour), int(e.Min), int(e.Sec), 0, time.UTC)
	}
	return version, l
}

var licenseStates = map[uint32]gpu.LicenseState{
	nvml.GRID_LICENSE_STATE_UNINITIALIZED:           gpu.LicenseUninitialized,
	nvml.GRID_LICENSE_STATE_UNLICENSED_UNRESTRICTED: gpu.LicenseUnrestricted,
	nvml.GRID_LICENSE_STATE_UNLICENSED_RESTRICTED:   gpu.LicenseRestricted,
	nvml.GRID_LICENSE_STATE_UNLICENSED:              gpu.LicenseNone,
	nvml.GRID_LICENSE_STATE_LICENSED:                gpu.LicenseHeld,
}

func (d device) VGPUSamples() ([]VGPUSample, error) {
	if !d.in.has("nvmlDeviceGetVgpuUtilization") {
		return nil, nil
	}
	typ, all, ret := d.GetVgpuUtilization(0)
	if unavailable(ret) || ret == nvml.ERROR_NOT_FOUND { // with MIG on, or none yet
		return nil, nil
	}
	if err := check(ret); err != nil {
		return nil, err
	}
	out := make([]VGPUSample, len(all))
	for i, s := range all {
		out[i] = VGPUSample{
			VGPU: s.VgpuInstance, Time: time.UnixMicro(int64(s.TimeStamp)), //nolint:gosec // microseconds of a clock
			SM: percent(typ, s.SmUtil), Memory: percent(typ, s.MemUtil), Encoder: percent(typ, s.EncUtil), Decoder: percent(typ, s.DecUtil),
		}
	}
	return out, nil
}

// percent reads the member of a union that the library says, as far as it can be a
// percentage; -1: it cannot.
func percent(typ nvml.ValueType, value [8]byte) int {
	bits := binary.NativeEndian.Uint64(value[:])
	v := -1.0
	switch typ {
	case nvml.VALUE_TYPE_DOUBLE:
		v = math.Float64frombits(bits)
	case nvml.VALUE_TYPE_UNSIGNED_INT, nvml.VALUE_TYPE_SIGNED_INT:
		v = float64(int32(binary.NativeEndian.Uint32(value[:]))) //nolint:gosec // what is larger is no percentage
	case nvml.VALUE_TYPE_UNSIGNED_LONG, nvml.VALUE_TYPE_UNSIGNED_LONG_LONG, nvml.VALUE_TYPE_SIGNED_LONG_LONG:
		v = float64(int64(bits)) //nolint:gosec // the same
	case nvml.VALUE_TYPE_UNSIGNED_SHORT:
		v = float64(binary.NativeEndian.Uint16(value[:]))
	case nvml.VALUE_TYPE_COUNT:
	}
	if !(v >= 0 && v <= 100) { // or no number at all
		return -1
	}
	return int(math.Round(v))
}
