package assess

import (
	"fmt"
	"slices"

	"gpuvirt/p2v/report"
)

// A Range is an estimate with what it rests on. From and To are equal where it is no range.
type Range struct {
	From  float64 `json:"from"`
	To    float64 `json:"to"`
	Basis string  `json:"basis"`
}

// Estimates are what a move takes.
type Estimates struct {
	// DiskBytes is the room that it needs on this host: Mirror, Overlay and Flatten added.
	DiskBytes uint64 `json:"disk_bytes"`
	// MirrorBytes is the copy of the source's disks: their whole size, of which only what is
	// zero takes no room.
	MirrorBytes uint64 `json:"mirror_bytes"`
	// OverlayBytes is what conversion and first boots write, FlattenBytes the VM's own disk
	// that is made of both before the mirror goes.
	OverlayBytes uint64 `json:"overlay_bytes"`
	FlattenBytes uint64 `json:"flatten_bytes"`
	DiskBasis    string `json:"disk_basis"`
	// CopySeconds is the first pass, with the source running.
	CopySeconds Range `json:"copy_seconds"`
	// DowntimeSeconds is from stopping the source until the VM answers.
	DowntimeSeconds Range `json:"downtime_seconds"`
	// BudgetSeconds is the downtime that is allowed; 0: nobody has said.
	BudgetSeconds float64 `json:"budget_seconds"`
}

// estimates says what a move takes of room and time.
func (l *look) estimates(w Wish) Estimates {
	p := l.policy
	if w.Unconverted {
		p.ConversionSeconds, p.OverlayMinBytes = 0, 0
	}
	moved := l.moved(w)
	read, used, basis := l.sizes(moved)
	e := Estimates{
		MirrorBytes: read, FlattenBytes: used, BudgetSeconds: max(0, w.DowntimeSeconds),
		OverlayBytes: max(p.OverlayMinBytes, bytesOf(float64(used)*p.OverlayRatio)),
	}
	e.DiskBytes = sum(e.MirrorBytes, e.OverlayBytes, e.FlattenBytes)
	writes, least, converting := "conversion and boots write", ", at least "+size(p.OverlayMinBytes), "conversion "+duration(p.ConversionSeconds)+", "
	if w.Unconverted {
		writes, least, converting = "boots write", "", ""
	}
	e.DiskBasis = fmt.Sprintf("%s (%s): %s. The mirror is equal to the disks, also where files were deleted, so it can take all of them; what is used as much again for the VM's own disk while both are there, and %s for what %s (%s%s).",
		Count(len(moved), "disk", "disks"), names(moved), basis, size(e.OverlayBytes), writes, percent(p.OverlayRatio), least)

	slow, fast, rate := float64(p.BandwidthMinBytes), float64(p.BandwidthMaxBytes), fmt.Sprintf("assumed rates of %s to %s", rateOf(p.BandwidthMinBytes), rateOf(p.BandwidthMaxBytes))
	if w.CopyRate > 0 {
		slow, fast, rate = float64(w.CopyRate), float64(w.CopyRate), "a given rate of "+rateOf(w.CopyRate)
	}
	e.CopySeconds = Range{float64(used) / fast, float64(read) / slow, fmt.Sprintf("%s, or up to %s where deleted files left their data, at %s", size(used), size(read), rate)}
	if used == read {
		e.CopySeconds.Basis = fmt.Sprintf("%s at %s", size(read), rate)
	}

	fixed := p.FixedSeconds + p.ConversionSeconds + p.BootSeconds
	changed, how := float64(used)*p.ChangeRatio, percent(p.ChangeRatio)+" of the used bytes are assumed to have changed"
	last := Range{changed / fast, changed / slow, ""}
	if w.ChangeRate > 0 {
		// A pass copies what changed during the one before, so it is shorter by the ratio of
		// the rates; the last one is the third.
		shrink := func(rate float64) float64 { return float64(w.ChangeRate) / rate }
		last.From, last.To = e.CopySeconds.From*shrink(fast)*shrink(fast), e.CopySeconds.To*shrink(slow)*shrink(slow)
		how = fmt.Sprintf("the source changes %s, and the last pass is the third", rateOf(w.ChangeRate))
		if shrink(slow) >= 1 {
			last.To, how = e.CopySeconds.To, how+"; at the slower rate it changes faster than it is copied, so the passes do not get shorter"
		}
		last.From = min(last.From, last.To)
	}
	// Without a map of what has changed a pass reads and hashes all of it.
	hash := float64(read) / 1e9
	e.DowntimeSeconds = Range{last.From + fixed, last.To + hash + fixed, fmt.Sprintf(
		"the last pass (%s; the upper end also reads all %s to find out what changed, at 1 GB/s), %sboot %s, stopping and checks %s",
		how, size(read), converting, duration(p.BootSeconds), duration(p.FixedSeconds))}
	return e
}

// names are those of disks.
func names(disks []report.Disk) string {
	var out []string
	for _, d := range disks {
		out = append(out, d.Name)
	}
	return quotes(out)
}

// moved are the disks that a plan takes.
func (l *look) moved(w Wish) []report.Disk { return Disks(l.Report, w) }

// Disks are the disks of a server that are moved as a wish says: those that it names, or all
// that are built in.
func Disks(r report.Report, w Wish) []report.Disk {
	return slices.DeleteFunc(slices.Clone(r.Disks), func(d report.Disk) bool {
		if len(w.Disks) > 0 {
			return !slices.Contains(w.Disks, d.Name)
		}
		return d.Removable || d.Transport == "usb"
	})
}

// sizes are the bytes of disks, and those that are in use, and why that is believed. Used
// bytes are known of file systems only: where they are not all there is, all is counted.
func (l *look) sizes(disks []report.Disk) (all, used uint64, basis string) {
	for _, d := range disks {
		all = sum(all, d.SizeBytes)
	}
	var files uint64
	seen := map[string]bool{}
	for _, f := range l.Filesystems {
		if network(f) || readOnlyType(f.Type) || seen[f.Source] {
			continue
		}
		seen[f.Source] = true
		files = sum(files, f.UsedBytes)
	}
	opaque := slices.ContainsFunc(l.Volumes, func(v report.Volume) bool { return v.Kind == "crypt" || v.Kind == "md" })
	switch {
	case len(seen) == 0 || files == 0:
		return all, all, size(all) + " in all, of which it is not known what is used"
	case opaque:
		return all, all, size(all) + " in all, as encrypted or joined volumes are copied whole"
	default:
		used = min(all, files)
		return all, used, fmt.Sprintf("%s in all, of which mounted file systems use %s; what is not mounted is not counted", size(all), size(used))
	}
}
