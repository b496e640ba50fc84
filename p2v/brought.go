package p2v

import (
	"errors"
	"path/filepath"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/guest"
	"gpuvirt/p2v/report"
)

// brought is what operators have laid for the VM of a server, as its conversion would find it.
func (m *Migrations) brought(system report.OS, w assess.Wish) assess.Brought {
	look := m.cfg.Guest
	if look == nil {
		look = func(report.OS, assess.Wish) (guest.Options, error) { return guest.Options{}, nil }
	}
	token := w.LicenceToken
	w.LicenceToken = false
	o, err := look(system, w)
	out := assess.Brought{Packages: assess.Found(err)}
	for _, path := range o.Agent {
		out.Agent = append(out.Agent, filepath.Base(path))
	}
	for _, path := range o.Driver.Packages {
		out.Driver = append(out.Driver, filepath.Base(path))
	}
	if err == nil && token {
		w.LicenceToken = true
		if o, err = look(system, w); err == nil && len(o.Driver.Token) == 0 {
			err = errors.New("nobody has brought one")
		}
		out.Licence = assess.Found(err)
	}
	return out
}
