package daemon

import (
	"gpuvirt/api"
	"gpuvirt/gpu"
)

func observedOf(o *gpu.Observed) *api.Observed {
	if o == nil {
		return nil
	}
	out := &api.Observed{GuestDriver: o.GuestDriver, Unknown: o.Unknown}
	if l := o.License; l != nil {
		out.License = &api.License{State: string(l.State), Expires: moment(l.Expires)}
	}
	if u := o.Usage; u != nil {
		out.Usage = &api.Usage{
			MemoryUsedBytes: u.MemoryUsedBytes, SMRatio: u.SM, MemoryRatio: u.Memory, EncoderRatio: u.Encoder, DecoderRatio: u.Decoder,
			Sampled: moment(u.Sampled),
		}
	}
	return out
}
