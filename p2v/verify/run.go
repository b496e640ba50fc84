package verify

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	firstLook = 250 * time.Millisecond
	lastLook  = 5 * time.Second
	lastPing  = 2 * time.Second
	// grace is for what comes late, when the system says that it is up.
	grace = 30 * time.Second
	// closing is for what is looked at last.
	closing = time.Minute
)

// patience is how long a thing is looked at again that is not as it should be.
type patience int

const (
	settled patience = iota // it stays as it is
	short                   // until a while after the system is up
	long                    // until the deadline
)

// seen is what one look at a thing tells.
type seen struct {
	state State
	text  string
	wait  patience
}

// A thing is looked at until it is as it should be, or nobody waits for it any more.
type thing struct {
	Result

	matters bool // that it is not known makes the verdict unknown
	look    func(context.Context) seen
	first   time.Time
	seen    seen
	done    bool
}

// A verification is one run of it.
type verification struct {
	guest    *Guest
	machine  machine
	expect   Expect
	before   *Baseline
	progress func(Result)

	things  []*thing
	blocked string    // why no program can be run in the guest; empty: it can
	up      time.Time // when the system was up; zero: it is not yet
}

// Run verifies a VM that was started. It ends when ctx does; what was not known then is
// unknown. The console returns the last lines that the VM wrote to its serial console; it
// may be nil, as may what was seen before. Progress, where it is not nil, hears of each
// result once, from Run's goroutine.
func Run(ctx context.Context, g *Guest, console func() []string, e Expect, before *Baseline, progress func(Result)) Report {
	if progress == nil {
		progress = func(Result) {}
	}
	v := &verification{guest: g, expect: e, before: before, progress: progress}
	r := Report{Began: time.Now().UTC()}
	deadline, cancel := context.WithDeadline(ctx, r.Began.Add(e.Deadline))
	defer cancel()

	boot, agent := v.add("boot", "The VM boots", nil), v.add("agent", "The guest agent answers", nil)
	boot.matters, agent.matters = true, true
	v.plan()
	if err := v.answers(ctx, deadline); err != nil {
		r.Console = v.silent(boot, agent, console, err)
	} else {
		v.awake(deadline, boot, agent, time.Since(r.Began))
		v.watch(ctx, deadline)
		v.own(ctx)
		v.last(ctx)
	}
	matters := map[string]bool{}
	for _, t := range v.things {
		v.settle(t)
		r.Results = append(r.Results, t.Result)
		matters[t.ID] = t.matters
	}
	r.Verdict = verdict(r.Results, matters)
	r.Ended = time.Now().UTC()
	return r
}

// add adds a thing to look at.
func (v *verification) add(id, title string, look func(context.Context) seen) *thing {
	t := &thing{Result: Result{ID: id, Title: title, Before: v.before.said(id)}, look: look, first: time.Now()}
	v.things = append(v.things, t)
	return t
}

// settle says what came of a thing, once.
func (v *verification) settle(t *thing) {
	if t.done {
		return
	}
	if t.seen.state == "" {
		t.seen = seen{state: StateUnknown, text: "nobody came to look at it"}
	}
	t.done, t.State, t.Text = true, t.seen.state, t.seen.text
	t.Seconds = time.Since(t.first).Seconds()
	v.progress(t.Result)
}

// answers waits until the agent answers.
func (v *verification) answers(whole, deadline context.Context) error {
	within, cancel := context.WithTimeout(deadline, v.expect.Up)
	defer cancel()
	var said error
	for wait := firstLook; ; wait = min(2*wait, lastPing) {
		err := v.guest.Ping(within)
		if err == nil {
			return nil
		}
		if said == nil || within.Err() == nil { // else it is our own
			said = err
		}
		if pause(within, wait) != nil {
			if whole.Err() != nil {
				return errors.New(brokenOff(whole).text)
			}
			return fmt.Errorf("it has not answered within %s: %w", v.expect.Up, said)
		}
	}
}

// awake tells who answered, and finds out what can be asked.
func (v *verification) awake(ctx context.Context, boot, agent *thing, after time.Duration) {
	boot.seen = seen{state: StateOK, text: fmt.Sprintf("the agent answered after %.0f s", after.Seconds())}
	v.settle(boot)
	system, _ := v.guest.OSInfo(ctx) // told where it is known
	info, err := v.guest.Info(ctx)
	agent.seen = seen{state: StateOK, text: "version " + info.Version}
	switch {
	case err != nil:
		agent.seen.text = "it answers, and does not say what it is: " + oneLine(err.Error(), 200)
	case system.Name != "":
		agent.seen.text += ", on " + system.Name + ", kernel " + system.Kernel
	}
	v.settle(agent)
	if !info.Allows("guest-exec", "guest-exec-status") {
		v.blocked = blocked(system.ID, v.expect.Network)
		return
	}
	v.machine = newMachine(ctx, v.guest)
}

// blocked says what a person does about an agent that runs no programs: in the VM, where it is the one
// that stays, and else on the server, of which the next one is a copy.
func blocked(system string, stays bool) string {
	text, end := "the guest's agent is not allowed to run programs: on the server, of which this VM was a copy that is thrown away, ", ", and rehearse again when that is copied"
	if stays {
		text, end = "the guest's agent is not allowed to run programs: in the VM, ", ", and restart qemu-guest-agent"
	}
	switch system {
	case "rhel", "centos", "rocky", "almalinux", "ol", "fedora":
		return text + "in /etc/sysconfig/qemu-ga, take guest-exec and guest-exec-status out of BLACKLIST_RPC or BLOCK_RPCS, or add them to --allow-rpcs in FILTER_RPC_ARGS, " +
			"whichever is there" + end
	}
	return text + "take guest-exec and guest-exec-status out of block-rpcs in /etc/qemu/qemu-ga.conf, or of the options that qemu-guest-agent is started with" + end
}

// watch looks at all things until each is settled, or the deadline is over.
func (v *verification) watch(whole, deadline context.Context) {
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		waiting := false
		for _, t := range v.things {
			if t.done || t.look == nil {
				continue
			}
			s := t.look(deadline)
			if deadline.Err() != nil {
				break // what a look says that was broken off is not what there is
			}
			t.seen = s
			if s.wait == settled || s.wait == short && !v.up.IsZero() && time.Since(v.up) >= grace {
				v.settle(t)
			} else {
				waiting = true
			}
		}
		if deadline.Err() == nil && !waiting {
			return
		}
		if pause(deadline, wait) != nil {
			v.late(whole)
			return
		}
	}
}

// late settles what was waited for when time was over.
func (v *verification) late(whole context.Context) {
	for _, t := range v.things {
		switch {
		case t.done || t.look == nil:
			continue
		case whole.Err() != nil:
			t.seen = brokenOff(whole)
		case t.seen.state == "":
			t.seen = seen{state: StateUnknown, text: "there was no time left to look at it"}
		case t.seen.state == StateFailed || t.seen.state == StateUnknown:
			t.seen.text += fmt.Sprintf(", after %s", v.expect.Deadline)
		}
		v.settle(t)
	}
}

// failed tells whether something has failed already.
func (v *verification) failed() bool {
	for _, t := range v.things {
		if t.done && t.State == StateFailed {
			return true
		}
	}
	return false
}
