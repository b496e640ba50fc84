package assess

import (
	"cmp"
	"slices"

	"gpuvirt/p2v/report"
)

// Severity says how much a concern weighs.
type Severity string

// The severities.
const (
	Blocker Severity = "blocker" // nothing is cut over while it is open and not waived
	Warning Severity = "warning" // somebody should have read it
	Info    Severity = "info"
)

func (s Severity) weight() int { return slices.Index([]Severity{Info, Warning, Blocker}, s) }

// A Concern is something that stands in the way of a move, or that somebody should know.
// There is one at most of each id; its evidence names what it is about.
type Concern struct {
	ID       string   `json:"id"` // stable, of Catalogue
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"`  // gpu, workload, driver, disk, network, system, inspection, plan
	Title    string   `json:"title"`    // what is
	Why      string   `json:"why"`      // what comes of it
	Evidence []string `json:"evidence"` // five lines at most, and how many there are more
	Remedy   string   `json:"remedy"`
}

// A Rule is what can be a concern, as the guide lists it.
type Rule struct {
	ID       string
	Severity Severity // the highest that it can have
	Subject  string
	Title    string
	Why      string
	Remedy   string
}

// A hit is a line of evidence that a rule's concern is there, and how much it weighs where
// that is less than the rule says.
type hit struct {
	evidence string
	severity Severity // empty: the rule's
}

// A rule finds one concern in a report.
type rule struct {
	Rule
	find func(*look) []hit
}

func (r Rule) concern(hits []hit) Concern {
	c := Concern{ID: r.ID, Severity: Info, Subject: r.Subject, Title: r.Title, Why: r.Why, Remedy: r.Remedy}
	lines := make([]string, 0, len(hits))
	for _, h := range hits {
		if s := cmp.Or(h.severity, r.Severity); s.weight() > c.Severity.weight() {
			c.Severity = s
		}
		lines = append(lines, h.evidence)
	}
	c.Evidence = bounded(lines)
	return c
}

// rules are all rules over a report.
func rules() []rule {
	return slices.Concat(inspectionRules(), gpuRules(), featureRules(), workloadRules(), driverRules(),
		systemRules(), bootRules(), diskRules(), networkRules())
}

// Catalogue lists what can be a concern of an assessment, and after it what can be one of a
// plan.
func Catalogue() []Rule {
	var out []Rule
	for _, r := range rules() {
		out = append(out, r.Rule)
	}
	return append(out, planRules()...)
}

// concerns are those of the report, the heaviest first.
func (l *look) concerns() []Concern {
	out := []Concern{}
	for _, r := range rules() {
		if hits := r.find(l); len(hits) > 0 {
			out = append(out, r.concern(hits))
		}
	}
	return byWeight(out)
}

func byWeight(list []Concern) []Concern {
	slices.SortStableFunc(list, func(a, b Concern) int { return cmp.Compare(b.Severity.weight(), a.Severity.weight()) })
	return list
}

// each makes a hit of every item for which there is evidence.
func each[T any](list []T, evidence func(T) string) []hit {
	var out []hit
	for _, v := range list {
		if e := evidence(v); e != "" {
			out = append(out, hit{evidence: e})
		}
	}
	return out
}

// quoted makes hits of sentences that the inspector wrote.
func quoted(sentences []string) []hit { return each(sentences, quote) }

// when makes a hit where a condition holds.
func when(condition bool, evidence string) []hit {
	if !condition {
		return nil
	}
	return []hit{{evidence: evidence}}
}

// softened lowers the weight of hits.
func softened(hits []hit, s Severity) []hit {
	for i := range hits {
		hits[i].severity = s
	}
	return hits
}

// look is a report with what several rules ask of it.
type look struct {
	report.Report
	policy Policy
	usage  map[string]report.GPUUsage // by PCI address
	// users are the processes that work with GPUs, without those that only watch.
	users []report.Process
	// more is how many GPUs there are beyond maxGPUs, which are not looked at.
	more int
}

// maxGPUs is how many GPUs of a source are looked at. No server has as many; each is compared
// with all profiles of the host, and a report can list thousands.
const maxGPUs = 64

func newLook(r report.Report, p Policy) *look {
	l := &look{Report: Canonical(r), policy: p.WithDefaults(), usage: map[string]report.GPUUsage{}}
	if l.more = max(0, len(l.GPUs)-maxGPUs); l.more > 0 {
		l.GPUs = l.GPUs[:maxGPUs]
	}
	l.users = slices.DeleteFunc(slices.Clone(l.Processes), func(p report.Process) bool { return p.Framework == "monitor" })
	if l.Usage != nil {
		for _, u := range l.Usage.GPUs {
			was := l.usage[u.PCI] // one GPU twice is no inspector's; the larger counts
			if u.Memory.Max >= was.Memory.Max {
				l.usage[u.PCI] = u
			}
		}
	}
	return l
}

// windowSeconds is how long the GPUs were watched.
func (l *look) windowSeconds() float64 {
	if l.Usage == nil {
		return 0
	}
	return max(0, l.Usage.End.Sub(l.Usage.Start).Seconds())
}

// name names a GPU of the source.
func name(g report.GPU) string {
	if g.Model == "" {
		return "gpu " + quote(g.PCI)
	}
	return "gpu " + quote(g.PCI) + " (" + quote(g.Model) + ")"
}

// program names a process by its program.
func program(p report.Process) string {
	out := "program " + quote(p.Exe)
	switch {
	case p.Container != "":
		return out + " in container " + quote(p.Container)
	case p.Unit != "":
		return out + " of " + quote(p.Unit)
	default:
		return out
	}
}
