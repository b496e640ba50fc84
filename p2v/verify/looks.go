package verify

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// hostname holds the guest's name against the source's. Either may be given with its
// domain or without.
func (v *verification) hostname(ctx context.Context) seen {
	name, err := v.guest.Hostname(ctx)
	if err != nil {
		return unseen(err)
	}
	short1, _, long1 := strings.Cut(name, ".")
	short2, _, long2 := strings.Cut(v.expect.Hostname, ".")
	switch {
	case strings.EqualFold(name, v.expect.Hostname), (!long1 || !long2) && strings.EqualFold(short1, short2):
		return seen{state: StateOK, text: name}
	case !v.expect.Network: // many get theirs from there
		return seen{state: StateWarning, text: fmt.Sprintf("it is %q, not %q", name, oneLine(v.expect.Hostname, 255)), wait: short}
	}
	return seen{state: StateFailed, text: fmt.Sprintf("it is %q, not %q", name, oneLine(v.expect.Hostname, 255)), wait: short}
}

// maxSkew is how far the guest's clock may be off: tickets and licences suffer of more.
const maxSkew = 5 * time.Second

func (v *verification) clock(ctx context.Context) seen {
	before := time.Now()
	there, err := v.guest.Time(ctx)
	if err != nil {
		return unseen(err)
	}
	here := before.Add(time.Since(before) / 2)
	skew := there.Sub(here).Round(100 * time.Millisecond)
	switch {
	case skew > maxSkew:
		return seen{state: StateWarning, text: fmt.Sprintf("it is %s ahead of this host", skew), wait: short}
	case skew < -maxSkew:
		return seen{state: StateWarning, text: fmt.Sprintf("it is %s behind this host", -skew), wait: short}
	}
	return seen{state: StateOK, text: fmt.Sprintf("within %s of this host", maxSkew)}
}

// mounts looks for the source's filesystems. What the agent itself lists are those on block
// devices; the kernel's list has all others.
func (v *verification) mounts(ctx context.Context) seen {
	all, err := v.guest.Filesystems(ctx)
	lacking := notMounted(v.expect.Mounts, all)
	if err != nil || len(lacking) > 0 {
		table, tableErr := v.guest.ReadFile(ctx, "/proc/self/mounts", MaxOutput)
		switch {
		case tableErr == nil:
			lacking = notMounted(v.expect.Mounts, append(all, parseMounts(string(table))...))
		case err != nil:
			return unseen(err)
		default:
			return seen{state: StateUnknown, wait: short, text: "not among those on block devices: " + listed(lacking) +
				"; the others could not be listed: " + oneLine(tableErr.Error(), 200)}
		}
	}
	if len(lacking) > 0 {
		return seen{state: StateFailed, text: "not mounted: " + listed(lacking), wait: short}
	}
	return seen{state: StateOK, text: fmt.Sprintf("all %d are mounted", len(v.expect.Mounts))}
}

func notMounted(want, have []Mount) (lacking []string) {
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h Mount) bool { return h.Path == w.Path && (w.Type == "" || h.Type == w.Type) }) {
			lacking = append(lacking, strings.TrimSpace(w.Path+" "+w.Type))
		}
	}
	return lacking
}

// parseMounts reads the kernel's table of mounts.
func parseMounts(text string) (all []Mount) {
	octal := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.SplitSeq(text, "\n") {
		if f := strings.Fields(line); len(f) >= 3 {
			all = append(all, Mount{Path: octal.Replace(f[1]), Type: f[2]})
		}
	}
	return all
}

// network looks for the source's addresses.
func (v *verification) network(ctx context.Context) seen {
	if !v.expect.Network {
		return seen{state: StateSkipped, text: "a rehearsal has no network"}
	}
	all, err := v.guest.Interfaces(ctx)
	if err != nil {
		return unseen(err)
	}
	var lacking []string
	wanted := 0
	for _, a := range v.expect.Addresses {
		ips, err := a.wanted()
		if err != nil {
			return seen{state: StateUnknown, text: err.Error()}
		}
		wanted += len(ips)
		for _, ip := range ips {
			if !slices.ContainsFunc(all, func(i Interface) bool { return i.has(a.MAC, ip) }) {
				lacking = append(lacking, strings.TrimSpace(ip.String()+" "+a.MAC))
			}
		}
	}
	if len(lacking) > 0 {
		return seen{state: StateFailed, text: "not there: " + listed(lacking) + "; there are " + addresses(all), wait: short}
	}
	if wanted == 0 {
		return seen{state: StateSkipped, text: "the source had none that count"}
	}
	return seen{state: StateOK, text: fmt.Sprintf("all %d are there", wanted)}
}

func (i Interface) has(mac string, ip netip.Addr) bool {
	return (mac == "" || strings.EqualFold(i.MAC, mac)) && slices.Contains(i.Addresses, ip)
}

// addresses lists what there is instead.
func addresses(all []Interface) string {
	var shown []string
	for _, i := range all {
		for _, ip := range i.Addresses {
			if !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
				shown = append(shown, ip.String()+" on "+i.Name)
			}
		}
	}
	if len(shown) == 0 {
		return "none"
	}
	return listed(shown)
}
