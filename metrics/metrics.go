// Package metrics tells Prometheus what the daemon knows. It asks the host when it is asked
// itself, and keeps nothing but what it has counted. What cannot be known at a moment is
// left out then, and a metric tells that it is.
package metrics

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// patience is how long an answer waits for the host: Prometheus waits 10 s by default.
const patience = 8 * time.Second

// Host is what is asked.
type Host interface {
	GPUs(ctx context.Context) ([]gpu.GPU, error)
	Partitions(ctx context.Context) ([]gpu.Partition, error)
	Assignments(ctx context.Context) ([]gpu.Assignment, error)
	Capacity(ctx context.Context, profile string) ([]gpu.ProfileCapacity, error)
	Compared() gpu.Comparison
}

// Config is what New needs. Host and Migrations must be given.
type Config struct {
	Host       Host
	Migrations Migrations
	Version    string
	// WriteTimeouts is how many writes to sysfs have been given up on; nil: not known.
	WriteTimeouts func() uint64
	// CertificateExpires is when the certificate that is shown over the network ends, and
	// zero where none is; nil: none ever is.
	CertificateExpires func() time.Time
	// Process adds what the Go runtime and the kernel say of this process.
	Process bool
}

// Metrics answers what Prometheus asks.
type Metrics struct {
	conf       Config
	registry   *prometheus.Registry // of what lasts
	operations *prometheus.CounterVec
	durations  *prometheus.HistogramVec
	turn       chan struct{} // holds a token while the host is asked
}

// New returns metrics of a daemon that begins.
func New(c Config) *Metrics {
	m := &Metrics{
		conf: c, registry: prometheus.NewRegistry(), turn: make(chan struct{}, 1),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gpuvirt_operations_total", Help: "Operations that have ended since the daemon was started, by how.",
		}, []string{"kind", "result"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gpuvirt_operation_duration_seconds", Help: "How long operations took that were done.",
			Buckets: []float64{0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800},
		}, []string{"kind"}),
	}
	m.registry.MustRegister(m.operations, m.durations)
	if c.Process {
		m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "gpuvirt_build_info", Help: "The daemon's version.",
		ConstLabels: prometheus.Labels{"version": c.Version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(build)
	if c.WriteTimeouts != nil {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "gpuvirt_sysfs_write_timeouts_total", Help: "Writes to a driver that were given up on, as it did not answer.",
		}, func() float64 { return float64(c.WriteTimeouts()) }))
	}
	return m
}

// OperationChanged counts operations that end. It is told of every change of one.
func (m *Metrics) OperationChanged(op operation.Operation) {
	if !op.Final() || op.Forgot {
		return
	}
	m.operations.WithLabelValues(op.Kind, string(op.Status)).Inc()
	if op.Status == operation.Done {
		m.durations.WithLabelValues(op.Kind).Observe(op.Updated.Sub(op.Created).Seconds())
	}
}

// Write writes all of them in Prometheus' text format, version 0.0.4. One at a time: who
// asks twice at once waits, and does not ask the drivers twice.
func (m *Metrics) Write(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return gpu.Errorf(gpu.CodeUnavailable, "cannot tell the metrics: others are being told, and the host is slow to answer")
	}
	now := prometheus.NewRegistry()
	if err := now.Register(&snapshot{ctx: ctx, conf: m.conf}); err != nil {
		return fmt.Errorf("cannot tell the metrics: %w", err)
	}
	families, err := prometheus.Gatherers{m.registry, now}.Gather()
	if err != nil {
		return fmt.Errorf("cannot tell the metrics: %w", err)
	}
	out := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := out.Encode(f); err != nil {
			return err
		}
	}
	return nil
}
