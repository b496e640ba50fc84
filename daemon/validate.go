package daemon

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gpuvirt/api"
	"gpuvirt/gpu"
)

// Bounds of what a request may hold. The same stand in openapi.yaml.
const (
	maxText     = 256 // bytes of a VM's or a profile's name and of a label's value
	maxLabels   = 64
	maxWait     = 10 * time.Minute
	defaultWait = 30 * time.Second
)

// patterns are the rules as they stand in openapi.yaml.
const (
	patternAssignment = `^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`
	patternGPU        = `^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$`
	patternPartition  = `^[A-Za-z0-9][A-Za-z0-9._:/@+,=-]{0,254}$`
	patternOperation  = `^[A-Za-z0-9][A-Za-z0-9-]{0,63}$`
	patternToken      = `^[0-9A-Z]{26}$` //nolint:gosec // of its id
	patternLabel      = `^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`
)

var (
	reAssignment = regexp.MustCompile(patternAssignment)
	reGPU        = regexp.MustCompile(patternGPU)
	rePartition  = regexp.MustCompile(patternPartition)
	reOperation  = regexp.MustCompile(patternOperation)
	reToken      = regexp.MustCompile(patternToken)
	reLabel      = regexp.MustCompile(patternLabel)
)

func checkAssignmentName(v string) error {
	if !reAssignment.MatchString(v) {
		return errors.New("a name has 1 to 63 of a-z, 0-9, '.', '_' and '-', and begins and ends with a letter or digit")
	}
	return nil
}

func checkGPU(v string) error {
	if !reGPU.MatchString(v) {
		return errors.New("a gpu is named by its full PCI address, such as 0000:41:00.0, or by a device name")
	}
	return nil
}

func checkPartition(v string) error {
	if !rePartition.MatchString(v) {
		return errors.New("a partition's id is a UUID, or <gpu>/<kind>/<slot> with / escaped as %2F")
	}
	return nil
}

func checkOperation(v string) error {
	if !reOperation.MatchString(v) {
		return errors.New("an operation's id has 1 to 64 letters, digits and '-'")
	}
	return nil
}

func checkToken(v string) error {
	if !reToken.MatchString(v) {
		return errors.New("a token's id has 26 digits and capital letters; it is not the token itself")
	}
	return nil
}

// checkVM accepts what libvirt would: a name may hold nearly anything.
func checkVM(v string) error {
	if err := checkText(v); err != nil {
		return err
	}
	if strings.Contains(v, "/") {
		return errors.New("a VM's name holds no '/'")
	}
	return nil
}

// checkText accepts names that others choose.
func checkText(v string) error {
	switch {
	case v == "":
		return errors.New("it is empty")
	case len(v) > maxText:
		return fmt.Errorf("it is longer than %d bytes", maxText)
	case !utf8.ValidString(v):
		return errors.New("it is not valid UTF-8")
	case strings.ContainsFunc(v, unicode.IsControl):
		return errors.New("it holds a control character")
	}
	return nil
}

func checkPathParam(name, v string) error {
	switch name {
	case "gpu":
		return checkGPU(v)
	case "vm":
		return checkVM(v)
	case "partition":
		return checkPartition(v)
	case "assignment", "assessment", "migration":
		return checkAssignmentName(v)
	case "operation":
		return checkOperation(v)
	case "token":
		return checkToken(v)
	}
	return fmt.Errorf("no rule for %q", name) // a test walks the routes
}

func checkLimit(v string) error {
	if n, err := strconv.Atoi(v); err != nil || n < 1 || n > maxLimit || v[0] == '+' {
		return fmt.Errorf("%s is not a number from 1 to %d", quote(v), maxLimit)
	}
	return nil
}

func checkTimeout(v string) error {
	if d, err := time.ParseDuration(v); err != nil || d < 0 || d > maxWait {
		return fmt.Errorf("%s is not a duration from 0s to %v, such as 30s or 1m30s", quote(v), maxWait)
	}
	return nil
}

// checkIdempotencyKey accepts 1 to 255 visible ASCII characters.
func checkIdempotencyKey(v string) error {
	if len(v) < 1 || len(v) > 255 || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return invalid("header Idempotency-Key must have 1 to 255 visible ASCII characters")
	}
	return nil
}

// field says which field of a body is wrong.
func field(name string, err error) error {
	if err == nil {
		return nil
	}
	return invalid("field %q is malformed: %w", name, err)
}

func required(name, v string, check func(string) error) error {
	if v == "" {
		return invalid("field %q is missing", name)
	}
	return field(name, check(v))
}

func optional(name, v string, check func(string) error) error {
	if v == "" {
		return nil
	}
	return field(name, check(v))
}

func oneOf[T ~string](values []T) func(string) error {
	return func(v string) error {
		if !slices.Contains(values, T(v)) {
			return fmt.Errorf("%s is none of %s", quote(v), strings.Join(texts(values), ", "))
		}
		return nil
	}
}

// onlyWith refuses a field that means nothing without another.
func onlyWith(name string, is bool, other string, there bool) error {
	if is && !there {
		return invalid("field %q is for those with %q", name, other)
	}
	return nil
}

func texts[T ~string](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

// wishOf checks a client's wish and fills in what it left open.
func wishOf(a api.AssignmentRequest) (gpu.Wish, error) {
	w, err := wishAt("", a)
	return w, joined(err)
}

// wishAt is wishOf for a wish that is a part of a body: its fields are named with what
// leads there.
func wishAt(at string, a api.AssignmentRequest) (gpu.Wish, error) {
	params, perr := gpu.ParseVGPUParams(a.VGPUParams)
	err := errors.Join(
		field(at+"vgpu_params", perr),
		required(at+"vm", a.VM, checkVM),
		required(at+"profile", a.Profile, checkText),
		optional(at+"gpu", a.GPU, checkGPU),
		optional(at+"placement", a.Placement, oneOf(placements())),
		optional(at+"hotplug", a.Hotplug, oneOf(hotplugs())),
		onlyWith(at+"ramfb", a.RamFB, at+"display", a.Display),
	)
	return gpu.Wish{
		VM: a.VM, Profile: a.Profile, GPU: gpu.ID(a.GPU), Display: a.Display, RamFB: a.RamFB, Params: params,
		Placement: gpu.Placement(a.Placement),
		Hotplug:   orDefault(a.Hotplug, gpu.HotplugAuto),
	}, err
}

// wishesOf checks a batch.
func wishesOf(r api.ApplyRequest) ([]gpu.NamedWish, error) {
	if len(r.Assignments) == 0 || len(r.Assignments) > maxWishes {
		return nil, invalid("field %q must have 1 to %d entries", "assignments", maxWishes)
	}
	var out []gpu.NamedWish
	var errs []error
	seen := map[string]bool{}
	for i, a := range r.Assignments {
		at := fmt.Sprintf("assignments[%d].", i)
		errs = append(errs, required(at+"name", a.Name, checkAssignmentName))
		w, err := wishAt(at, api.AssignmentRequest{
			VM: a.VM, Profile: a.Profile, GPU: a.GPU, Placement: a.Placement, Hotplug: a.Hotplug, Display: a.Display, RamFB: a.RamFB, VGPUParams: a.VGPUParams,
		})
		errs = append(errs, err)
		if seen[a.Name] {
			errs = append(errs, invalid("field %q is %s, as in an entry before", at+"name", quote(a.Name)))
		}
		seen[a.Name] = true
		out = append(out, gpu.NamedWish{Name: a.Name, Wish: w})
	}
	return out, joined(errors.Join(errs...))
}

// No card can be cut into more, or has more memory or compute slices.
const (
	maxInstances = 16
	maxSlices    = 64
	maxWishes    = 256
	maxVFs       = 65535 // SR-IOV counts in 16 bits
	maxCompute   = 16
	maxDevices   = 256 // of one VM
)

// layoutWishOf checks a layout as far as that takes no card.
func layoutWishOf(l api.Layout) (gpu.Layout, error) {
	out := gpu.Layout{Enabled: l.Enabled}
	if l.Instances == nil {
		return out, invalid("field %q is missing", "instances")
	}
	if len(l.Instances) > maxInstances {
		return out, invalid("field %q has more than %d entries", "instances", maxInstances)
	}
	if !l.Enabled && len(l.Instances) > 0 {
		return out, invalid("field %q must be empty where %q is false", "instances", "enabled")
	}
	var errs []error
	for i, in := range l.Instances {
		at := fmt.Sprintf("instances[%d]", i)
		w := gpu.LayoutInstance{Profile: in.Profile, Place: gpu.AnyPlace, Compute: in.Compute}
		errs = append(errs, required(at+".profile", in.Profile, checkText))
		if in.Placement != nil {
			if w.Place = *in.Placement; w.Place < 0 || w.Place >= maxSlices {
				errs = append(errs, invalid("field %q is not from 0 to %d", at+".placement", maxSlices-1))
			}
		}
		if len(in.Compute) > maxCompute {
			errs = append(errs, invalid("field %q has more than %d entries", at+".compute", maxCompute))
			continue
		}
		for j, c := range in.Compute {
			errs = append(errs, required(fmt.Sprintf("%s.compute[%d]", at, j), c, checkText))
		}
		out.Instances = append(out.Instances, w)
	}
	return out, joined(errors.Join(errs...))
}

var aUUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// devicesOf checks the devices of a definition, and writes them as we do.
func devicesOf(r api.StartCheckRequest) ([]gpu.Handle, error) {
	if r.Devices == nil {
		return nil, invalid("field %q is missing", "devices")
	}
	if len(r.Devices) > maxDevices {
		return nil, invalid("field %q has more than %d entries", "devices", maxDevices)
	}
	out := make([]gpu.Handle, len(r.Devices))
	var errs []error
	for i, d := range r.Devices {
		at := fmt.Sprintf("devices[%d]", i)
		d.MdevUUID = strings.ToLower(d.MdevUUID)
		switch {
		case (d.MdevUUID == "") == (d.PCIAddress == ""):
			errs = append(errs, invalid("field %q must have either mdev_uuid or pci_address", at))
		case d.PCIAddress != "":
			a, err := gpu.ParseAddress(d.PCIAddress)
			errs = append(errs, field(at+".pci_address", err))
			d.PCIAddress = a.String()
		case !aUUID.MatchString(d.MdevUUID):
			errs = append(errs, invalid("field %q is no UUID", at+".mdev_uuid"))
		}
		out[i] = gpu.Handle(d)
	}
	return out, joined(errors.Join(errs...))
}

// numVFsOf checks a number of virtual functions as far as that takes no card.
func numVFsOf(r api.VFsRequest) (int, error) {
	switch {
	case r.NumVFs == nil:
		return 0, invalid("field %q is missing", "num_vfs")
	case *r.NumVFs < 0 || *r.NumVFs > maxVFs:
		return 0, invalid("field %q is not from 0 to %d", "num_vfs", maxVFs)
	}
	return *r.NumVFs, nil
}

func partitionWishOf(p api.PartitionRequest) (gpu.PartitionWish, error) {
	params, perr := gpu.ParseVGPUParams(p.VGPUParams)
	err := errors.Join(
		required("profile", p.Profile, checkText),
		optional("gpu", p.GPU, checkGPU),
		optional("placement", p.Placement, oneOf(placements())),
		field("vgpu_params", perr),
	)
	return gpu.PartitionWish{
		GPU: gpu.ID(p.GPU), Profile: p.Profile, Placement: gpu.Placement(p.Placement), Params: params,
	}, joined(err)
}

func patchOf(p api.GPUPatch) (gpu.GPUPatch, error) {
	patch := gpu.GPUPatch{Managed: p.Managed, Quarantined: p.Quarantined, Labels: p.Labels}
	if p.Policy != nil {
		if err := required("policy", *p.Policy, oneOf(policies())); err != nil {
			return patch, err
		}
		policy := gpu.Policy(*p.Policy)
		patch.Policy = &policy
	}
	if p.Placement != nil {
		if err := required("placement", *p.Placement, oneOf(gpuPlacements())); err != nil {
			return patch, err
		}
		placement := gpu.Placement(*p.Placement)
		if *p.Placement == placementOfHost {
			placement = ""
		}
		patch.Placement = &placement
	}
	if p.Labels == nil {
		return patch, nil
	}
	if len(*p.Labels) > maxLabels {
		return patch, invalid("field %q has more than %d labels", "labels", maxLabels)
	}
	for k, v := range *p.Labels {
		if !reLabel.MatchString(k) {
			return patch, invalid("field %q is malformed: name %s must have 1 to 63 letters, digits, '.', '_', '/' and '-', and begin and end with a letter or digit", "labels", quote(k))
		}
		if v == "" {
			continue
		}
		if err := checkText(v); err != nil {
			return patch, invalid("field %q is malformed: the value of %q: %w", "labels", k, err)
		}
	}
	return patch, nil
}

// joined tells several errors of a body in one.
func joined(err error) error {
	if err == nil {
		return nil
	}
	return invalid("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
}

func orDefault[T ~string](v string, def T) T {
	if v == "" {
		return def
	}
	return T(v)
}
