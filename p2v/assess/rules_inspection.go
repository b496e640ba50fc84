package assess

import (
	"fmt"

	"gpuvirt/p2v/report"
)

// inspectionRules are about what the inspection can know.
func inspectionRules() []rule {
	return []rule{
		{
			Rule{
				ID: "not-privileged", Severity: Warning, Subject: "inspection", Title: "The inspector was not root",
				Why:    "It saw less of processes, files and volumes than there is.",
				Remedy: "Inspect again as root; the inspection only reads.",
			},
			func(l *look) []hit { return when(!l.Privileged, "the report says so") },
		},
		{
			Rule{
				ID: "unseen", Severity: Warning, Subject: "inspection", Title: "Some things could not be seen",
				Why:    "What was not seen is not known, and is not the same as none: there may be concerns that this assessment misses.",
				Remedy: "Remove the reason and inspect again, or look by hand.",
			},
			func(l *look) []hit {
				return each(l.Unseen, func(u report.Unseen) string { return quote(u.What) + ": " + quote(u.Reason) })
			},
		},
		{
			Rule{
				ID: "not-watched", Severity: Warning, Subject: "inspection", Title: "Nobody watched the GPUs at work",
				Why:    "One moment tells little of the most that a workload takes.",
				Remedy: "Inspect with a window that has a busy day in it.",
			},
			func(l *look) []hit {
				return when(len(l.GPUs) > 0 && (l.Usage == nil || l.Usage.Samples <= 0), "the report has no samples")
			},
		},
		{
			Rule{
				ID: "window-short", Severity: Warning, Subject: "inspection", Title: "The GPUs were watched for a short time only",
				Why:    "A peak outside the window is in no figure.",
				Remedy: "Watch on: parts of a window are put together.",
			},
			func(l *look) []hit {
				if l.Usage == nil || l.Usage.Samples <= 0 || l.windowSeconds() >= l.policy.WindowSeconds {
					return nil
				}
				return when(true, fmt.Sprintf("watched for %s, wanted are %s", duration(l.windowSeconds()), duration(l.policy.WindowSeconds)))
			},
		},
		{
			Rule{
				ID: "samples-missed", Severity: Warning, Subject: "inspection", Title: "Many samples are missing from the window",
				Why:    "A sample is missed when the server is busy, which is when a peak is likely.",
				Remedy: "Watch again with a longer interval.",
			},
			func(l *look) []hit {
				u := l.Usage
				if u == nil || u.Missed <= 0 || float64(u.Missed) < 0.1*(float64(u.Missed)+float64(max(u.Samples, 0))) {
					return nil
				}
				return when(true, fmt.Sprintf("%d samples came, %d did not", u.Samples, u.Missed))
			},
		},
		{
			Rule{
				ID: "utilisation-only", Severity: Warning, Subject: "inspection", Title: "It is only known whether any kernel ran",
				Why: "The share of time in which a kernel ran is an upper bound of the multiprocessors that are needed: one small kernel " +
					"without a pause counts as all of them.",
				Remedy: "Watch with DCGM, or on Hopper and later with NVML's GPM metrics, which tell how many multiprocessors worked.",
			},
			func(l *look) []hit {
				return each(l.GPUs, func(g report.GPU) string {
					u := l.usage[g.PCI]
					if !u.SM.Seen() || u.Activity {
						return ""
					}
					return name(g) + ": utilisation, and not activity"
				})
			},
		},
	}
}
