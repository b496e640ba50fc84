package guest

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
)

// Options are what an operator brings and asks for.
type Options struct {
	// Agent are packages of this host that install QEMU's guest agent in the guest, with what
	// it needs there; empty: none.
	Agent []string
	// Driver is NVIDIA's guest driver.
	Driver Driver
}

// Driver is what an operator brings of NVIDIA's guest driver; all of it may be empty.
type Driver struct {
	Packages []string // of this host
	Token    []byte   // of the licence, as NVIDIA's portal gives it; a secret
}

// By says who carries a change out, where no edit does.
type By string

// Who.
const (
	ByConversion By = "conversion" // virt-v2v
	ByGuest      By = "guest"      // a program of the VM, by itself
	ByPerson     By = "person"
	ByNobody     By = "nobody" // nothing has to be done
)

// Left is a change that no edit makes, or the part of one. Its Items are those that are
// left, as they are shown in the plan.
type Left struct {
	Change assess.GuestChange `json:"change"`
	By     By                 `json:"by"`
	Why    string             `json:"why"`
}

// Edits are what is done to the guest's disks before it first starts, in the order of the
// plan's changes: the ID of each is that of its change with a number, "nic-names-2". What
// has to be built into the initramfs is there when they are made before convert.Convert.
// The content of a licence token is in one of them.
//
// Left are the changes of the plan, or their parts, that no edit makes, each with why and
// who does it instead. Each change of the plan has an edit or is left, or both. The error
// is of what was asked for, with gpu.CodeInvalid; what a report says makes none.
func Edits(r report.Report, p assess.Plan, o Options) (edits []convert.Edit, left []Left, err error) {
	m := &maker{
		Report: assess.Canonical(r), plan: p, options: o,
		edits: []convert.Edit{}, left: []Left{}, done: map[string]bool{},
	}
	m.place()
	for _, c := range p.Changes {
		m.change, m.made = c, 0
		before := len(m.left)
		m.carryOut()
		if m.made == 0 && len(m.left) == before {
			m.leave(ByNobody, "there is nothing on this server that it would change")
		}
	}
	if m.err != nil {
		return nil, nil, m.err
	}
	return m.edits, m.left, nil
}

// makers carry out a change. What has none is a person's.
var makers = map[string]func(*maker){
	"virtio-drivers":     (*maker).virtioDrivers,
	"serial-console":     (*maker).serialConsole,
	"boot-fallback":      (*maker).bootFallback,
	"device-names":       (*maker).deviceNames,
	"selinux-relabel":    func(m *maker) { m.leave(ByConversion, "virt-v2v has the files labelled") },
	"nic-names":          (*maker).nicNames,
	"nouveau":            (*maker).nouveau,
	"driver-modules":     (*maker).driverModules,
	"driver-remove":      (*maker).driverRemove,
	"driver-vgpu":        (*maker).driverVGPU,
	"driver-keep":        func(m *maker) { m.leave(ByNobody, "it is there, and stays") },
	"licence":            (*maker).licence,
	"persistence-daemon": (*maker).settings,
	"mig-scripts":        (*maker).settings,
	"gpu-settings":       (*maker).settings,
	"fabric-manager":     (*maker).settings,
	"data-centre-agents": (*maker).settings,
	"xorg-busid":         (*maker).xorg,
	"cdi-files":          (*maker).cdi,
	"pins":               (*maker).pins,
	"pins-by-hand":       (*maker).pinned,
	"hardware-services":  (*maker).settings,
	"identity": func(m *maker) {
		m.leave(ByNobody, "the VM takes the server's place, with its machine ID and its ssh host keys")
	},
}

// persons says why a change is a person's.
var persons = map[string]string{
	"tpm-binding":    "it takes a passphrase, and the VM's TPM",
	"built-networks": "which network of this host carries them is for a person to say",
	"driver-remove":  "it is not known how the driver was installed",
	"driver-vgpu":    "the plan names no guest driver that is ready",
	"driver-headers": "nothing is written on the server while it runs",
	"driver-install": "gpuvirt brings no driver of NVIDIA's",
	"driver-flavour": "gpuvirt brings no driver of NVIDIA's",
	"driver-both":    "it is a decision",
	"licence":        "the plan says that no licence token is ready",
	"engines":        "only their owner knows how they are built",
	"hugepages":      "only the workload's owner knows how many it needs",
	"module-key":     "the firmware asks for it at the console",
}

// A maker makes the edits of one plan.
type maker struct {
	report.Report

	plan    assess.Plan
	options Options

	change assess.GuestChange // that is carried out
	made   int                // edits of it
	edits  []convert.Edit
	left   []Left
	done   map[string]bool // what edits do, by key
	err    error

	moved map[string]bool // disks, partitions and volumes that the VM has
}

func (m *maker) carryOut() {
	do := makers[m.change.ID]
	switch {
	case do == nil, !m.change.Automatic && m.change.ID != "pins-by-hand":
		m.leave(ByPerson, cmp.Or(persons[m.change.ID], "it is not known how to do it"))
	default:
		do(m)
	}
}

// leave notes that no edit makes the change, or these items of it.
func (m *maker) leave(by By, why string, items ...string) {
	if len(items) == 0 {
		m.left = append(m.left, Left{m.change, by, why})
		return
	}
	items = slices.Clone(items)
	for i := range items {
		items[i] = show(items[i])
	}
	i := slices.IndexFunc(m.left, func(l Left) bool { return l.Change.ID == m.change.ID && l.By == by && l.Why == why })
	if i >= 0 {
		m.left[i].Change.Items = append(m.left[i].Change.Items, items...)
		return
	}
	c := m.change
	c.Items = items
	m.left = append(m.left, Left{c, by, why})
}

// add makes an edit of the change, for some of its items, or leaves them.
func (m *maker) add(e convert.Edit, items ...string) {
	e.ID = fmt.Sprintf("%s-%d", m.change.ID, m.made+1)
	e.Why, e.Undo = cmp.Or(e.Why, m.change.Why), cmp.Or(e.Undo, m.change.Undo)
	key := editKey(e)
	switch {
	case e.Check() != nil:
		m.leave(ByPerson, "what it names is nothing that an edit takes: see that by hand", items...)
	case m.done[key]:
		m.leave(ByNobody, "an edit for another change does it", items...)
	case e.Path != "" && !m.there(e.Path):
		m.leave(ByPerson, "it lies on a file system that is not moved, or that is not mounted while the guest is edited", items...)
	case len(m.edits) == convert.MaxEdits:
		m.leave(ByPerson, fmt.Sprintf("there are more edits than are made at once, which is %d", convert.MaxEdits), items...)
	default:
		m.done[key] = true
		m.edits = append(m.edits, e)
		m.made++
	}
}

// editKey is the same for edits that cannot both be made.
func editKey(e convert.Edit) string {
	return strings.Join([]string{string(e.Kind), e.Path, e.Old, e.Unit, e.Module, string(e.Command)}, "\x00")
}

// brought adds an edit with what an operator brought, where a fault is the operator's.
func (m *maker) brought(e convert.Edit) {
	checked := e
	checked.ID = m.change.ID
	if err := checked.Check(); err != nil && m.err == nil {
		m.err = err
		return
	}
	m.add(e)
}

// show writes a text of the server as plans do.
func show(s string) string {
	const most = 120
	s = report.CleanString(s)
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func quote(s string) string { return strconv.Quote(show(s)) }

// strange says that an operator's packages are not of the guest's kind; empty: all are, or
// it is not known which that is.
func (m *maker) strange(files []string) string {
	kind := ".rpm"
	switch id := m.OS.ID; {
	case slices.Contains([]string{"debian", "ubuntu", "linuxmint", "pop", "raspbian"}, id):
		kind = ".deb"
	case !slices.Contains([]string{"rhel", "centos", "rocky", "almalinux", "fedora", "ol", "amzn", "sles", "sled", "opensuse-leap", "opensuse-tumbleweed"}, id):
		return ""
	}
	i := slices.IndexFunc(files, func(f string) bool { return !strings.HasSuffix(f, kind) })
	if i < 0 {
		return ""
	}
	return "the guest takes packages of kind " + kind + ", which those that were brought are not"
}
