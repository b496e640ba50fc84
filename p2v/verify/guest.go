package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"gpuvirt/gpu"
)

// An Agent passes one command to a guest's qemu-guest-agent, as JSON, and returns its
// answer as JSON. An error that the guest answers may come as an error or as JSON. Command
// returns when ctx ends. That an answer belongs to its command is the Agent's to see to, by
// guest-sync, as libvirt does.
type Agent interface {
	Command(ctx context.Context, request string) (string, error)
}

// Guest asks the agent of a guest. It may be used by several goroutines.
type Guest struct{ agent Agent }

// NewGuest makes a Guest that asks an agent.
func NewGuest(a Agent) *Guest { return &Guest{a} }

const (
	answerTime = 20 * time.Second // for one command
	maxAnswer  = 32 << 20         // bytes; an agent keeps 16 MiB of what a program writes
	maxNamed   = 1024             // items of an answer's list
)

var errOther = errors.New("it answers something else")

// shown is an error whose words a guest may have had a part in.
type shown struct{ error }

func (s shown) Error() string { return oneLine(s.error.Error(), 300) }
func (s shown) Unwrap() error { return s.error }

// command has the agent carry one command out, and reads its answer into a value.
func (g *Guest) command(ctx context.Context, name string, arguments, into any) error {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{name, arguments})
	if err != nil {
		return gpu.Errorf(gpu.CodeInternal, "cannot ask the guest agent for %s: %w", name, err)
	}
	within, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	text, err := g.agent.Command(within, string(request))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		err = read(text, into)
	}
	if err != nil {
		return gpu.Errorf(gpu.CodeUnavailable, "cannot have %s of the guest agent: %w", name, shown{err})
	}
	return nil
}

// read reads an answer.
func read(text string, into any) error {
	if len(text) > maxAnswer {
		return fmt.Errorf("its answer has %d bytes", len(text))
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return errors.New("its answer is no JSON")
	}
	switch {
	case answer.Error != nil && answer.Error.Class == "CommandNotFound":
		return errors.New("it does not know it, or is not allowed to")
	case answer.Error != nil:
		return errors.New(answer.Error.Desc)
	case answer.Return == nil, json.Unmarshal(answer.Return, into) != nil:
		return errOther
	}
	return nil
}

func other(name string) error {
	return gpu.Errorf(gpu.CodeUnavailable, "cannot have %s of the guest agent: %w", name, errOther)
}

// Ping asks whether the agent answers.
func (g *Guest) Ping(ctx context.Context) error {
	var answer map[string]json.RawMessage
	if err := g.command(ctx, "guest-ping", nil, &answer); err != nil {
		return err
	}
	if answer == nil || len(answer) > 0 { // that of an earlier command, for one
		return other("guest-ping")
	}
	return nil
}

// Info is what the agent says of itself.
type Info struct {
	Version string
	enabled map[string]bool
}

// Allows tells whether the agent does what commands ask. One that did not say is taken to
// do it: it will refuse.
func (i Info) Allows(commands ...string) bool {
	return i.enabled == nil || !slices.ContainsFunc(commands, func(c string) bool { return !i.enabled[c] })
}

// Info asks the agent what it is and does.
func (g *Guest) Info(ctx context.Context) (Info, error) {
	var answer struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	if err := g.command(ctx, "guest-info", nil, &answer); err != nil {
		return Info{}, err
	}
	i := Info{Version: oneLine(answer.Version, 60)}
	if len(answer.Commands) > 0 {
		i.enabled = map[string]bool{}
	}
	for _, c := range answer.Commands[:min(len(answer.Commands), maxNamed)] {
		i.enabled[c.Name] = c.Enabled
	}
	return i, nil
}

// OS is the system that runs in the guest.
type OS struct{ ID, Name, Kernel string }

// OSInfo asks which system runs in the guest.
func (g *Guest) OSInfo(ctx context.Context) (OS, error) {
	var answer struct {
		ID     string `json:"id"`
		Pretty string `json:"pretty-name"`
		Kernel string `json:"kernel-release"`
	}
	if err := g.command(ctx, "guest-get-osinfo", nil, &answer); err != nil {
		return OS{}, err
	}
	return OS{ID: oneLine(answer.ID, 60), Name: oneLine(answer.Pretty, 120), Kernel: oneLine(answer.Kernel, 120)}, nil
}

// Hostname asks for the guest's name.
func (g *Guest) Hostname(ctx context.Context) (string, error) {
	var answer struct {
		Name *string `json:"host-name"`
	}
	if err := g.command(ctx, "guest-get-host-name", nil, &answer); err != nil {
		return "", err
	}
	if answer.Name == nil {
		return "", other("guest-get-host-name")
	}
	return oneLine(*answer.Name, 255), nil
}

// Time asks for the guest's time.
func (g *Guest) Time(ctx context.Context) (time.Time, error) {
	var nanoseconds *int64
	if err := g.command(ctx, "guest-get-time", nil, &nanoseconds); err != nil {
		return time.Time{}, err
	}
	if nanoseconds == nil {
		return time.Time{}, other("guest-get-time")
	}
	return time.Unix(0, *nanoseconds), nil
}

// Interface is a network device of the guest.
type Interface struct {
	Name, MAC string
	Addresses []netip.Addr
}

// Interfaces asks for the guest's network devices.
func (g *Guest) Interfaces(ctx context.Context) ([]Interface, error) {
	var answer []struct {
		Name      string `json:"name"`
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			Address string `json:"ip-address"`
		} `json:"ip-addresses"`
	}
	if err := g.command(ctx, "guest-network-get-interfaces", nil, &answer); err != nil {
		return nil, err
	}
	var all []Interface
	for _, a := range answer[:min(len(answer), maxNamed)] {
		i := Interface{Name: oneLine(a.Name, 60), MAC: oneLine(a.MAC, 60)}
		for _, address := range a.Addresses[:min(len(a.Addresses), maxNamed)] {
			if ip, err := netip.ParseAddr(address.Address); err == nil {
				i.Addresses = append(i.Addresses, ip.Unmap().WithZone(""))
			}
		}
		all = append(all, i)
	}
	return all, nil
}

// Filesystems asks for what is mounted from block devices in the guest. Its paths are as
// the guest says, not fit to be shown.
func (g *Guest) Filesystems(ctx context.Context) ([]Mount, error) {
	var answer []struct {
		Path string `json:"mountpoint"`
		Type string `json:"type"`
	}
	if err := g.command(ctx, "guest-get-fsinfo", nil, &answer); err != nil {
		return nil, err
	}
	var all []Mount
	for _, a := range answer[:min(len(answer), maxNamed)] {
		all = append(all, Mount{Path: a.Path, Type: oneLine(a.Type, 60)})
	}
	return all, nil
}

// ReadFile reads the beginning of a file in the guest, at most so many bytes.
func (g *Guest) ReadFile(ctx context.Context, path string, most int) ([]byte, error) {
	var handle *int64
	if err := g.command(ctx, "guest-file-open", map[string]any{"path": path, "mode": "r"}, &handle); err != nil {
		return nil, err
	}
	if handle == nil {
		return nil, other("guest-file-open")
	}
	defer g.closeFile(ctx, *handle)
	var out bytes.Buffer
	for out.Len() < most {
		var answer struct {
			Data string `json:"buf-b64"`
			EOF  bool   `json:"eof"`
		}
		ask := map[string]any{"handle": *handle, "count": min(64<<10, most-out.Len())}
		if err := g.command(ctx, "guest-file-read", ask, &answer); err != nil {
			return nil, err
		}
		data, _, err := decode(answer.Data, most-out.Len())
		if err != nil {
			return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot read %q in the guest: %w", path, err)
		}
		out.Write(data)
		if answer.EOF || len(data) == 0 {
			break
		}
	}
	return out.Bytes(), nil
}

// closeFile also closes where ctx has ended: the agent would keep it open for good.
func (g *Guest) closeFile(ctx context.Context, handle int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	var answer json.RawMessage
	_ = g.command(ctx, "guest-file-close", map[string]any{"handle": handle}, &answer) // it was only read
}
