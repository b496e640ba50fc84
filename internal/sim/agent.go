package sim

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"gpuvirt/gpu"
)

// An Agent is how the guest agent of a VM behaves. It answers guest-ping, guest-get-osinfo
// and, with this host's, guest-get-time, reads files and runs commands; "true" is there without being named.
type Agent struct {
	Silent   bool              `json:"silent,omitempty"`   // the guest has none, or it does not run
	Files    map[string]string `json:"files,omitempty"`    // what is in them, by path
	Commands map[string]Exit   `json:"commands,omitempty"` // by path and arguments, with a space between
	// Answers are what it returns for other commands of an agent, or instead of its own.
	Answers map[string]json.RawMessage `json:"answers,omitempty"`
}

// An Exit is how a command in a guest ends. It does so at once.
type Exit struct {
	Code int    `json:"code,omitempty"`
	Out  string `json:"out,omitempty"`
	Err  string `json:"err,omitempty"`
}

// SetAgent sets how the agent of a VM behaves, by the VM's name; it need not be there yet.
func (l *Libvirt) SetAgent(name string, a Agent) error {
	return l.h.update(func(s *state) ([]string, error) {
		if s.Agents == nil {
			s.Agents = map[string]Agent{}
		}
		s.Agents[name] = a
		return nil, nil
	})
}

// guest is what the agent of a running VM has open.
type guest struct {
	Last  int           `json:"last,omitempty"` // handle, or process
	Files map[int]file  `json:"files,omitempty"`
	Exits map[int]ended `json:"exits,omitempty"`
}

// A file is open in a guest.
type file struct {
	Path string `json:"path"`
	At   int    `json:"at,omitempty"`
}

// ended is a process whose end nobody has asked for yet.
type ended struct {
	Exit
	Captured bool `json:"captured,omitempty"`
}

// Agent has the guest agent of a VM carry out a command, and returns its answer, both as
// QEMU's agent has them.
func (l *Libvirt) Agent(ctx context.Context, vmUUID, request string) (answer string, err error) {
	err = l.update(ctx, fmt.Sprintf("ask the agent of vm %q", vmUUID), func(s *state) error {
		v, err := s.byUUID(vmUUID)
		if err != nil {
			return err
		}
		a := s.Agents[v.Name]
		if v.State != gpu.VMRunning {
			return gpu.Errorf(gpu.CodeConflict, "domain is not running")
		}
		if d, err := parseDomain(v.Doc); err != nil || !d.agent() {
			return gpu.Errorf(gpu.CodeInvalid, "QEMU guest agent is not configured")
		}
		if a.Silent {
			return gpu.Errorf(gpu.CodeUnavailable, "Guest agent is not responding: QEMU guest agent is not connected")
		}
		var c agentCommand
		if err := json.Unmarshal([]byte(request), &c); err != nil {
			return gpu.Errorf(gpu.CodeInvalid, "the command is not JSON: %w", err)
		}
		value, err := v.Guest.do(a, c)
		if err != nil {
			return gpu.Errorf(gpu.CodeInvalid, "unable to execute QEMU agent command '%s': %w", c.Execute, err)
		}
		text, err := json.Marshal(map[string]any{"return": value})
		answer = string(text)
		return err
	})
	return answer, err
}

// agentCommand is what is asked of an agent.
type agentCommand struct {
	Execute   string `json:"execute"`
	Arguments struct {
		Path    string   `json:"path"`
		Arg     []string `json:"arg"`
		Capture bool     `json:"capture-output"`
		PID     int      `json:"pid"`
		Mode    string   `json:"mode"`
		Handle  int      `json:"handle"`
		Count   *int     `json:"count"`
	} `json:"arguments"`
}

// do carries a command out.
func (g *guest) do(a Agent, c agentCommand) (any, error) {
	if answer := a.Answers[c.Execute]; answer != nil {
		return answer, nil
	}
	switch c.Execute {
	case "guest-ping":
		return struct{}{}, nil
	case "guest-get-osinfo":
		return map[string]string{
			"id": "debian", "name": "Debian GNU/Linux", "pretty-name": "Debian GNU/Linux 12 (bookworm)", "version-id": "12",
			"kernel-release": "6.1.0-44-amd64", "machine": "x86_64",
		}, nil
	case "guest-get-time":
		return time.Now().UnixNano(), nil
	case "guest-exec":
		return g.exec(a, c)
	case "guest-exec-status":
		return g.status(c.Arguments.PID)
	case "guest-file-open":
		return g.open(a, c)
	case "guest-file-read":
		return g.read(a, c)
	case "guest-file-close":
		if _, ok := g.Files[c.Arguments.Handle]; !ok {
			return nil, fmt.Errorf("handle '%d' has not been found", c.Arguments.Handle)
		}
		delete(g.Files, c.Arguments.Handle)
		return struct{}{}, nil
	default:
		return nil, fmt.Errorf("command %s has not been found", c.Execute)
	}
}

func (g *guest) exec(a Agent, c agentCommand) (any, error) {
	args := c.Arguments
	exit, known := a.Commands[strings.Join(append([]string{args.Path}, args.Arg...), " ")]
	if !known && path.Base(args.Path) != "true" {
		return nil, fmt.Errorf("Guest agent command failed, error was 'Failed to execute child process “%s” (No such file or directory)'", args.Path)
	}
	g.Last++
	if g.Exits == nil {
		g.Exits = map[int]ended{}
	}
	g.Exits[g.Last] = ended{exit, args.Capture}
	return map[string]int{"pid": g.Last}, nil
}

// status tells how a process has ended, once.
func (g *guest) status(pid int) (any, error) {
	exit, ok := g.Exits[pid]
	if !ok {
		return nil, errors.New("invalid parameter 'pid'")
	}
	delete(g.Exits, pid)
	out := map[string]any{"exited": true, "exitcode": exit.Code}
	for name, text := range map[string]string{"out-data": exit.Out, "err-data": exit.Err} {
		if exit.Captured && text != "" {
			out[name] = []byte(text) // base64
		}
	}
	return out, nil
}

func (g *guest) open(a Agent, c agentCommand) (any, error) {
	if mode := c.Arguments.Mode; mode != "" && mode != "r" && mode != "rb" {
		return nil, fmt.Errorf("failed to open file '%s' (mode: '%s'): Permission denied", c.Arguments.Path, mode)
	}
	if _, ok := a.Files[c.Arguments.Path]; !ok {
		return nil, fmt.Errorf("failed to open file '%s' (mode: 'r'): No such file or directory", c.Arguments.Path)
	}
	g.Last++
	if g.Files == nil {
		g.Files = map[int]file{}
	}
	g.Files[g.Last] = file{Path: c.Arguments.Path}
	return g.Last, nil
}

func (g *guest) read(a Agent, c agentCommand) (any, error) {
	f, ok := g.Files[c.Arguments.Handle]
	if !ok {
		return nil, fmt.Errorf("handle '%d' has not been found", c.Arguments.Handle)
	}
	count := 4096
	if c.Arguments.Count != nil {
		count = *c.Arguments.Count
	}
	if count < 0 {
		return nil, fmt.Errorf("value '%d' is invalid for argument count", count)
	}
	rest := a.Files[f.Path][f.At:]
	part := rest[:min(count, len(rest))]
	f.At += len(part)
	g.Files[c.Arguments.Handle] = f
	return map[string]any{
		"count": len(part), "eof": count > len(rest), "buf-b64": base64.StdEncoding.EncodeToString([]byte(part)),
	}, nil
}
