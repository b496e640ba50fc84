package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuvirt/api"
)

// size writes bytes for people: in the largest unit that leaves few digits.
func size(bytes uint64) string {
	if bytes == 0 {
		return ""
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i, f := 0, float64(bytes)
	for f >= 1024 && i < len(units)-1 {
		i, f = i+1, f/1024
	}
	return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0") + " " + units[i]
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orDash(s string) string { return cmp.Or(s, "-") }

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// health sums conditions up in a word or two.
func health(conditions []api.Condition) string {
	var bad []string
	for _, c := range conditions {
		switch {
		case c.Type == "Ready" && !c.Status:
			bad = append(bad, "not ready")
		case c.Type != "Ready" && c.Status:
			bad = append(bad, strings.ToLower(c.Type))
		}
	}
	if len(bad) == 0 {
		return "ok"
	}
	return strings.Join(bad, ", ")
}

// conditionRows lists conditions, one to a line.
func conditionRows(conditions []api.Condition) [][]string {
	var rows [][]string
	for _, c := range conditions {
		rows = append(rows, []string{c.Type, yesNo(c.Status), orDash(c.Reason), orDash(whenever(c.Since)), c.Message})
	}
	return rows
}

// handle is how libvirt names a device.
func handle(h api.Handle) string { return cmp.Or(h.MdevUUID, h.PCIAddress) }

func holder(h api.Holder) string {
	s := h.Kind + " " + cmp.Or(h.Name, h.ID)
	if h.Kind == "process" && h.Name != "" {
		s += " (" + h.ID + ")"
	}
	return s
}

// liveConfig says in which of a VM's definitions a device is.
func liveConfig(live, config bool) string {
	switch {
	case live && config:
		return "live+config"
	case live:
		return "live"
	case config:
		return "config"
	}
	return ""
}

// percent says how far a step is, where it knows.
func percent(done, total int64) string {
	if total <= 0 || done <= 0 {
		return ""
	}
	return fmt.Sprintf("%d%%", min(done, total)*100/total)
}

// whenever is when for a moment that may not be known.
func whenever(t *time.Time) string {
	if t == nil {
		return ""
	}
	return when(*t)
}
