package freeze

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuvirt/internal/run"
)

// startLimit is how long services that were stopped may take to start again.
const startLimit = 2 * time.Minute

// Systemctl runs systemctl and returns what it wrote on its standard output.
type Systemctl func(ctx context.Context, args ...string) (string, error)

// systemctl is that of the server.
func systemctl(ctx context.Context, args ...string) (string, error) {
	return run.Program{Apart: true}.Run(ctx, "systemctl", args...)
}

// running returns those of the units that are active, or about to be. One that the server
// does not have is an error.
func (s Systemctl) running(ctx context.Context, units []string) ([]string, error) {
	var out []string
	for _, unit := range units {
		text, err := s(ctx, "show", "--property=LoadState", "--property=ActiveState", "--", unit)
		if err != nil {
			return nil, fmt.Errorf("cannot tell whether %q runs: %w", unit, err)
		}
		lines := strings.Fields(text)
		switch {
		case slices.Contains(lines, "LoadState=not-found"):
			return nil, fmt.Errorf("cannot stop %q: this server has no such unit", unit)
		case slices.Contains(lines, "ActiveState=active"), slices.Contains(lines, "ActiveState=activating"), slices.Contains(lines, "ActiveState=reloading"):
			out = append(out, unit)
		}
	}
	return out, nil
}

// start starts units again, all that can be. It has its own limit.
func (s Systemctl) start(units []string) error {
	if len(units) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if _, err := s(ctx, append([]string{"start", "--"}, units...)...); err != nil {
		return fmt.Errorf("cannot start %s again: %w", strings.Join(units, ", "), err)
	}
	return nil
}

func (s Systemctl) stop(ctx context.Context, units []string) error {
	if _, err := s(ctx, append([]string{"stop", "--"}, units...)...); err != nil {
		return fmt.Errorf("cannot stop %s: %w", strings.Join(units, ", "), err)
	}
	return nil
}
