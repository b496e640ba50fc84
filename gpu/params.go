package gpu

import (
	"regexp"
	"slices"
	"strings"
)

// MaxVGPUParams is how long the parameters of a vGPU may be, in bytes. Drivers take less
// than a page, and say so themselves where theirs is less than this.
const MaxVGPUParams = 1024

// ReasonParamsUnknown is the reason of a partition's condition that says that its Params are
// not known.
const ReasonParamsUnknown = "ParamsUnknown"

var (
	paramKey   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)
	paramValue = regexp.MustCompile(`^[!-+\--<>-~]+$`) // visible, but "," and "="
)

// ParseVGPUParams reads parameters of a vGPU as NVIDIA's documentation writes them,
// "frame_rate_limiter=0,enable_uvm=1", and returns them sorted, so that two texts that ask
// for the same are the same. What the keys mean is the driver's business. Empty is none.
func ParseVGPUParams(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if len(text) > MaxVGPUParams {
		return "", Errorf(CodeInvalid, "vgpu_params are longer than %d bytes", MaxVGPUParams)
	}
	var out, keys []string
	for word := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(word), "=")
		if !ok || !paramKey.MatchString(key) || !paramValue.MatchString(value) {
			return "", Errorf(CodeInvalid, "%q is no parameter of a vGPU: it takes the form key=value, and a comma before the next", word)
		}
		if slices.Contains(keys, key) {
			return "", Errorf(CodeInvalid, "parameter %q stands there twice", key)
		}
		keys, out = append(keys, key), append(out, key+"="+value)
	}
	slices.Sort(out)
	return strings.Join(out, ","), nil
}

// SameVGPUParams reports whether two texts hold the same parameters, in whatever order.
func SameVGPUParams(a, b string) bool {
	x, err1 := ParseVGPUParams(a)
	y, err2 := ParseVGPUParams(b)
	return a == b || err1 == nil && err2 == nil && x == y
}
