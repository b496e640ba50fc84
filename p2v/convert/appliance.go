package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gpuvirt/internal/run"
)

// ApplianceState is how libguestfs's appliance comes up, the small VM in which guests'
// disks are looked at.
type ApplianceState string

// The states of the appliance.
const (
	ApplianceKVM     ApplianceState = "kvm"    // with the processor's help
	ApplianceTCG     ApplianceState = "tcg"    // emulated: slow
	ApplianceBroken  ApplianceState = "broken" // not at all
	ApplianceUnknown ApplianceState = ""       // the program that tries it is missing
)

// Appliance is what was found out of libguestfs's appliance.
type Appliance struct {
	State  ApplianceState `json:"state"`
	Took   time.Duration  `json:"took_ns"`          // to come up and go down
	Detail string         `json:"detail,omitempty"` // why it is not better
}

// emulated tells whether the programs are to be kept from KVM.
func (a Appliance) emulated() bool { return a.State != ApplianceKVM }

// A verdict is what is remembered of the appliance, and for what it holds.
type verdict struct {
	For       string    `json:"for"`
	Appliance Appliance `json:"appliance"`
}

// appliance tries the appliance, unless that was done in this boot of the host with the
// same programs. There is a /dev/kvm on hosts where no kernel comes up with it, and
// programs that find it hang: so it is tried first without, and then with it, within a
// limit that the first try sets.
func (c *Converter) appliance(ctx context.Context, t Tools) (Appliance, error) {
	boot := c.cfg.Boot
	if boot == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return Appliance{}, fmt.Errorf("cannot tell this boot from another: %w", err)
		}
		boot = strings.TrimSpace(string(id))
	}
	holds := fmt.Sprintf("%s %s %s %d %t", boot, t.InPlace.Version, t.QemuImg.Version, c.cfg.Confine.UID, c.cfg.Confine.Unit != nil)
	file := filepath.Join(c.cfg.Scratch, "appliance.json")
	var known verdict
	//nolint:gosec // its name is made of the configuration's
	if text, err := os.ReadFile(file); err == nil && json.Unmarshal(text, &known) == nil && known.For == holds {
		return known.Appliance, nil
	}
	a, err := c.tryAppliance(ctx)
	if err != nil || a.State == ApplianceUnknown || a.State == ApplianceBroken {
		return a, err
	}
	text, err := json.Marshal(verdict{holds, a})
	if err == nil {
		err = replace(file, text)
	}
	if err != nil {
		return Appliance{}, fmt.Errorf("cannot remember how the appliance comes up: %w", err)
	}
	return a, nil
}

func (c *Converter) tryAppliance(ctx context.Context) (Appliance, error) {
	path := c.find(nameTestTool)
	if path == "" {
		return Appliance{Detail: nameTestTool + " is missing: the appliance is emulated, to be safe"}, nil
	}
	// The first time libguestfs makes the appliance, which takes a while.
	var took time.Duration
	var err error
	for range launches {
		took, err = c.bootAppliance(ctx, path, true, c.cfg.Limits.Launch)
		if ctx.Err() != nil {
			return Appliance{}, context.Cause(ctx)
		}
		if err == nil || errors.Is(err, errNotUp) {
			break
		}
	}
	if err != nil {
		return Appliance{State: ApplianceBroken, Detail: err.Error()}, nil
	}
	a := Appliance{State: ApplianceTCG, Took: took}
	if _, err := os.Stat(c.cfg.KVM); err != nil {
		a.Detail = err.Error()
		return a, nil
	}
	// Asked as who the programs run as: libguestfs goes on without it, and does not say so.
	if _, err := (run.Program{Confine: &c.cfg.Confine}).Run(ctx, "test", "-r", c.cfg.KVM, "-a", "-w", c.cfg.KVM); err != nil {
		if ctx.Err() != nil {
			return Appliance{}, context.Cause(ctx)
		}
		a.Detail = fmt.Sprintf("user %d may not use %s", c.cfg.Confine.UID, c.cfg.KVM)
		return a, nil
	}
	took, err = c.bootAppliance(ctx, path, false, min(c.cfg.Limits.Launch, 2*took+10*time.Second))
	if ctx.Err() != nil {
		return Appliance{}, context.Cause(ctx)
	}
	if err != nil {
		a.Detail = fmt.Sprintf("%s is of no use: %v", c.cfg.KVM, err)
		return a, nil
	}
	return Appliance{State: ApplianceKVM, Took: took}, nil
}

var errNotUp = errors.New("the appliance did not come up in time")

func (c *Converter) bootAppliance(ctx context.Context, path string, tcg bool, limit time.Duration) (time.Duration, error) {
	s, err := c.scratch()
	if err != nil {
		return 0, err
	}
	defer s.end()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errNotUp)
	defer cancel()
	began := time.Now()
	p := run.Program{Env: s.environment(tcg), Dir: s.dir, Confine: s.confine()}
	out, err := p.Run(ctx, path, "--timeout", fmt.Sprint(int(limit/time.Second)+5))
	if err == nil && !strings.Contains(out, "TEST FINISHED OK") {
		err = errors.New("libguestfs-test-tool does not say that all is well")
	}
	return time.Since(began), err
}

// replace writes a file such that it is there as a whole or not at all.
func replace(path string, content []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // its name is made of the configuration's
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	return os.Rename(path+".new", path)
}
