package main

import (
	"strconv"
	"strings"

	"gpuvirt/api"
)

// observedFields are what is seen of a partition in a VM that runs.
func observedFields(o *api.Observed) []field {
	if o == nil {
		return nil
	}
	u := usageOf(o)
	var shares []string
	for _, s := range []struct {
		name  string
		ratio *float64
	}{{"sm", u.SMRatio}, {"memory", u.MemoryRatio}, {"encoder", u.EncoderRatio}, {"decoder", u.DecoderRatio}} {
		if s.ratio != nil {
			shares = append(shares, s.name+" "+share(s.ratio))
		}
	}
	utilization := strings.Join(shares, ", ")
	if u.Sampled != nil {
		utilization += " at " + when(*u.Sampled)
	}
	license := licenseState(o)
	if license != "" && o.License.Expires != nil {
		license += ", until " + when(*o.License.Expires)
	}
	return []field{
		{name: "Guest driver", value: o.GuestDriver},
		{name: "License", value: license},
		{name: "Memory used", value: memoryUsed(o)},
		{name: "Utilization", value: utilization},
		{name: "Not told", value: o.Unknown},
	}
}

// usageOf is what is known of the usage; nothing, of nothing.
func usageOf(o *api.Observed) api.Usage {
	if o == nil || o.Usage == nil {
		return api.Usage{}
	}
	return *o.Usage
}

func licenseState(o *api.Observed) string {
	if o == nil || o.License == nil {
		return ""
	}
	return o.License.State
}

func memoryUsed(o *api.Observed) string {
	used := usageOf(o).MemoryUsedBytes
	switch {
	case used == nil:
		return ""
	case *used == 0:
		return "0 B"
	default:
		return size(*used)
	}
}

// share writes a ratio in percent.
func share(ratio *float64) string {
	if ratio == nil {
		return ""
	}
	return strconv.FormatFloat(*ratio*100, 'f', 0, 64) + "%"
}
