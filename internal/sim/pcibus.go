package sim

import (
	"context"
	"path"
	"strconv"
	"strings"
	"syscall"
)

// The files of the PCI bus that can be written to, each as the kernel takes it. What is
// done to a device waits while its driver waits for somebody who holds it: the kernel
// has one lock for each device.

// SetLoaded loads or unloads the module of a PCI driver.
func (h *Host) SetLoaded(driver string, loaded bool) error {
	return h.update(func(s *state) ([]string, error) {
		var kept []string
		for _, d := range s.Unloaded {
			if d != driver {
				kept = append(kept, d)
			}
		}
		if !loaded {
			kept = append(kept, driver)
		}
		s.Unloaded = kept
		return []string{""}, nil
	})
}

// change changes what became of a function, when nobody else does. When f has run, done
// says that the kernel has nothing more to wait for.
func (h *Host) changePCI(address string, f func(*state, function) ([]string, error), done func(*pciState) bool) error {
	ctx := context.Background()
	free := func(s *state) bool { st := s.PCI[address]; return st == nil || !st.Leaving && !st.Fewer }
	for ran := false; !ran; {
		if err := h.await(ctx, free); err != nil {
			return err
		}
		err := h.update(func(s *state) ([]string, error) {
			fn, ok := s.function(address)
			if !ok {
				return nil, syscall.ENODEV
			}
			if ran = free(s); !ran {
				return nil, nil
			}
			return f(s, fn)
		})
		if err != nil {
			return err
		}
	}
	if done == nil {
		return nil
	}
	return h.await(ctx, func(s *state) bool { st := s.PCI[address]; return st == nil || done(st) })
}

func nameIn(value string) string { return strings.TrimSuffix(value, "\n") }

// unbindPCI is unbind_store. It returns when the driver has let go.
func (h *Host) unbindPCI(driver, value string) error {
	address := nameIn(value)
	has := func(s *state) bool {
		f, ok := s.function(address)
		return ok && s.bound(f) == driver
	}
	// NVIDIA's driver waits for its library, too, of which the state knows nothing.
	err := h.await(context.Background(), func(s *state) bool {
		c := s.card(address)
		return !has(s) || c == nil || !s.present(c) || h.sessions == 0
	})
	if err != nil {
		return err
	}
	return h.changePCI(address, func(s *state, f function) ([]string, error) {
		if !has(s) {
			return nil, syscall.ENODEV
		}
		s.pci(address).Leaving = true // settle takes it off, now or when it is let go of
		return []string{address}, nil
	}, func(st *pciState) bool { return !st.Leaving })
}

// bindPCI is bind_store.
func (h *Host) bindPCI(driver, value string) error {
	return h.changePCI(nameIn(value), func(s *state, f function) ([]string, error) {
		switch {
		case s.matching(f) != driver:
			return nil, syscall.ENODEV
		case s.bound(f) != "":
			return nil, syscall.EBUSY
		}
		s.bind(f, driver)
		return []string{f.address}, nil
	}, nil)
}

// probePCI is drivers_probe_store. That no driver was found is no error of it.
func (h *Host) probePCI(value string) error {
	return h.changePCI(nameIn(value), func(s *state, f function) ([]string, error) {
		if s.bound(f) == "" {
			s.bind(f, s.matching(f))
		}
		return []string{f.address}, nil
	}, nil)
}

// overridePCI is driver_override_store: a line that is empty takes it back.
func (h *Host) overridePCI(address, value string) error {
	if len(value) >= 4095 {
		return syscall.EINVAL
	}
	return h.changePCI(address, func(s *state, f function) ([]string, error) {
		s.pci(address).Override = nameIn(value)
		return nil, nil
	}, nil)
}

func resetPCI(value string) error {
	if n, err := strconv.ParseUint(nameIn(value), 0, 64); err != nil || n != 1 {
		return syscall.EINVAL
	}
	return nil
}

// numVFs is sriov_numvfs_store. Where it removes virtual functions, it returns when
// nobody holds one.
func (h *Host) numVFs(address, value string) error {
	n64, err := strconv.ParseUint(nameIn(value), 0, 16)
	if err != nil {
		return syscall.EINVAL
	}
	n := int(n64) //nolint:gosec // of 16 bits
	return h.changePCI(address, func(s *state, f function) ([]string, error) {
		st := s.pci(address)
		driver := s.bound(f)
		switch {
		case n > f.card.SRIOV.TotalVFs:
			return nil, syscall.ERANGE
		case n == st.VFs:
			return nil, nil
		case driver != f.driver: // none, or one that has no virtual functions
			return nil, syscall.ENOENT
		case f.card.SRIOV.ToolOnly:
			return nil, syscall.EPERM
		case n == 0:
			st.Fewer = true
			return nil, nil
		case st.VFs > 0:
			return nil, syscall.EBUSY
		}
		return s.addVFs(f, n), nil
	}, func(st *pciState) bool { return !st.Fewer })
}

func (h *Host) autoprobe(address, value string) error {
	on, err := strconv.ParseBool(nameIn(value))
	if err != nil {
		return syscall.EINVAL
	}
	return h.update(func(s *state) ([]string, error) {
		s.pci(address).NoProbe = !on
		return nil, nil
	})
}

// write-only files have no text.
func writeOnly(act func(string) error) node { return node{unread: true, act: act} }

// addBus adds the bus itself: what is there once, and its drivers.
func (h *Host) addBus(t *tree, s *state) {
	t.add("bus/pci/drivers_probe", writeOnly(h.probePCI))
	for _, driver := range s.drivers() {
		dir := path.Join("bus/pci/drivers", driver)
		t.add(dir+"/bind", writeOnly(func(v string) error { return h.bindPCI(driver, v) }))
		t.add(dir+"/unbind", writeOnly(func(v string) error { return h.unbindPCI(driver, v) }))
		module := "module/" + strings.ReplaceAll(driver, "-", "_")
		t.mkdir(module)
		t.symlink(dir+"/module", module)
		for i := range s.Cards {
			if c := &s.Cards[i]; c.PCI != nil && c.Driver == driver && c.DriverVersion != "" {
				t.put(module+"/version", c.DriverVersion+"\n")
				break
			}
		}
	}
}
