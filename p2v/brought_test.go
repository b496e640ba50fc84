package p2v

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/guest"
	"gpuvirt/p2v/report"
)

// What is laid for a VM is told by its names, and a token that cannot be read where one is asked for.
func TestBrought(t *testing.T) {
	all := guest.Options{Agent: []string{"/g/debian-12/agent/a.deb"}, Driver: guest.Driver{Packages: []string{"/g/debian-12/driver/d.deb"}}}
	files := func(system report.OS, w assess.Wish) (guest.Options, error) {
		switch {
		case system.ID == "locked":
			return guest.Options{}, errors.New("locked")
		case w.LicenceToken:
			return all, gpu.Errorf(gpu.CodeConflict, "no token").WithHint("bring it")
		case system.ID == "debian":
			return all, nil
		}
		return guest.Options{}, nil
	}
	there := assess.Presence{Known: true}
	for name, c := range map[string]struct {
		files func(report.OS, assess.Wish) (guest.Options, error)
		id    string
		token bool
		want  assess.Brought
	}{
		"nobody brings":  {nil, "debian", false, assess.Brought{Packages: there}},
		"nothing":        {files, "other", false, assess.Brought{Packages: there}},
		"packages":       {files, "debian", false, assess.Brought{Packages: there, Agent: []string{"a.deb"}, Driver: []string{"d.deb"}}},
		"no token":       {files, "debian", true, assess.Brought{Packages: there, Agent: []string{"a.deb"}, Driver: []string{"d.deb"}, Licence: assess.Presence{Known: true, Lacks: "no token; bring it"}}},
		"cannot be read": {files, "locked", true, assess.Brought{Packages: assess.Presence{Known: true, Lacks: "locked"}}},
		"a token": {func(report.OS, assess.Wish) (guest.Options, error) {
			return guest.Options{Driver: guest.Driver{Token: []byte("x")}}, nil
		}, "debian", true, assess.Brought{Packages: there, Licence: there}},
		"nobody, a token": {nil, "debian", true, assess.Brought{Packages: there, Licence: assess.Presence{Known: true, Lacks: "nobody has brought one"}}},
	} {
		m := &Migrations{cfg: Config{Guest: c.files}}
		if d := cmp.Diff(c.want, m.brought(report.OS{ID: c.id}, assess.Wish{LicenceToken: c.token})); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}
