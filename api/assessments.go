package api

import (
	"time"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
)

// Source is a physical server that is reached by ssh, and how. It holds no secret.
type Source struct {
	Address string `json:"address"`        // a name of DNS, or an IP address
	Port    int    `json:"port,omitempty"` // default 22
	User    string `json:"user,omitempty"` // default root
	HostKey string `json:"host_key"`       // the fingerprint of the server's key: "SHA256:…"
	// Credential names the private key, a file in the host's folder of credentials.
	Credential string `json:"credential"`
	// Sudo has the inspector run by sudo, which must not ask for a password.
	Sudo bool `json:"sudo,omitempty"`
}

// AssessmentRequest asks that a server be looked at, or that an inspection be judged that
// was made there and carried here.
type AssessmentRequest struct {
	Name   string  `json:"name"`
	Source *Source `json:"source,omitempty"`
	// WindowSeconds is for how long the server's GPUs are watched; default: not at all.
	WindowSeconds int `json:"window_seconds,omitempty"`
	// IntervalSeconds is how often they are looked at meanwhile; default 5.
	IntervalSeconds int            `json:"interval_seconds,omitempty"`
	Inspection      *report.Report `json:"inspection,omitempty"`
}

// Assessment is the look at one server, and what follows from it.
type Assessment struct {
	Name            string  `json:"name"`
	State           string  `json:"state"`            // inspecting, watching, done
	Source          *Source `json:"source,omitempty"` // nil: the inspection was carried here
	WindowSeconds   int     `json:"window_seconds"`
	IntervalSeconds int     `json:"interval_seconds"`
	// WatchedSeconds is for how long the GPUs were watched, in Samples looks.
	WatchedSeconds float64    `json:"watched_seconds"`
	Samples        int        `json:"samples"`
	Operation      string     `json:"operation,omitempty"` // that looks, or has looked
	CreatedBy      string     `json:"created_by"`
	Created        time.Time  `json:"created"`
	Heard          *time.Time `json:"heard,omitempty"`    // when the server was heard of last; nil: never
	Hostname       string     `json:"hostname,omitempty"` // as the server says
	// Findings are worked out from what was seen, by the version of gpuvirt that answers;
	// nil: nothing was seen yet.
	Findings *assess.Assessment `json:"findings,omitempty"`
}
