package metrics

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gpuvirt/gpu"
)

// A desc is one metric. Those of a GPU have its labels before their own.
type desc struct {
	*prometheus.Desc

	kind prometheus.ValueType
}

func gauge(name, help string, labels ...string) desc {
	return desc{prometheus.NewDesc("gpuvirt_"+name, help, labels, nil), prometheus.GaugeValue}
}

// onGPU are the labels by which a GPU is told. Its UUID is NVIDIA's; others have none.
func onGPU(labels ...string) []string { return append([]string{"gpu", "gpu_uuid"}, labels...) }

var (
	gpuInfo    = gauge("gpu_info", "A GPU.", onGPU("pci_bus_id", "vendor", "model", "driver", "driver_version")...)
	gpuMemory  = gauge("gpu_memory_bytes", "Memory of a GPU, where it is known.", onGPU()...)
	gpuManaged = gauge("gpu_managed", "Whether a GPU is under management: 1, or 0.", onGPU()...)
	gpuReady   = gauge("gpu_ready", "Whether nothing is wrong with a GPU that is known: 1, or 0.", onGPU()...)

	instanceInfo    = gauge("mig_instance_info", "A GPU instance of MIG.", onGPU("partition", "gi_id", "profile")...)
	partitionInfo   = gauge("partition_info", "A partition, and the VM that has it.", onGPU("partition", "kind", "profile", "state", "origin", "vm_uuid", "vm_name")...)
	partitionMemory = gauge("partition_memory_used_bytes", "Memory that the guest uses of its vGPU, where the driver tells.", onGPU("partition")...)
	partitionUse    = gauge("partition_utilization_ratio", "Share of the GPU's time in which the engine worked for the vGPU, where the driver tells.", onGPU("partition", "engine")...)
	license         = gauge("vgpu_license_state", "How far a guest is with its vGPU's licence, where the driver tells: 1 for the state that it is in.", onGPU("partition", "state")...)

	capacity    = gauge("capacity", "How many more partitions of a profile fit on a GPU.", onGPU("profile", "kind")...)
	assignments = gauge("assignments", "Assignments, by state.", "state")
	drift       = gauge("drift", "How many things were not as asked for when it was looked last, by kind.", "kind")
	reconciled  = gauge("reconcile_last_success_timestamp_seconds", "When all that was asked for was last compared with what is.")
	certificate = gauge("tls_certificate_expiry_timestamp_seconds", "When the certificate that is shown over the network expires.")
	success     = gauge("scrape_collector_success", "Whether that part of the metrics could be told this time: 1, or 0.", "collector")
)

// A snapshot is what the host says at one moment.
type snapshot struct {
	ctx  context.Context // Collect takes none
	conf Config
	ch   chan<- prometheus.Metric
	uuid map[gpu.ID]string
	sent map[string]bool // with their labels
}

// Describe describes nothing: what there is depends on the host.
func (s *snapshot) Describe(chan<- *prometheus.Desc) {}

// Collect asks the host.
func (s *snapshot) Collect(ch chan<- prometheus.Metric) {
	s.ch, s.uuid, s.sent = ch, map[gpu.ID]string{}, map[string]bool{}
	var blind error
	for _, part := range []struct {
		name    string
		collect func() error
	}{
		// GPUs first: others tell them by their UUIDs, and are not told without.
		{"gpus", func() error { blind = s.gpus(); return blind }},
		{"partitions", func() error { return unless(blind, s.partitions) }},
		{"capacity", func() error { return unless(blind, s.capacity) }},
		{"assignments", s.assignments},
		{"migrations", s.migrations},
	} {
		ok := 1.0
		if err := part.collect(); err != nil {
			ok = 0
		}
		s.send(success, ok, part.name)
	}
	if c := s.conf.Host.Compared(); !c.At.IsZero() {
		s.send(reconciled, seconds(c.At))
		for _, kind := range []string{gpu.DriftLayout, gpu.DriftVFs, gpu.DriftVGPU, gpu.DriftAssignment} {
			s.send(drift, float64(c.Drifted[kind]), kind)
		}
	}
	if s.conf.CertificateExpires != nil {
		if at := s.conf.CertificateExpires(); !at.IsZero() {
			s.send(certificate, seconds(at))
		}
	}
}

func unless(err error, collect func() error) error {
	if err != nil {
		return err
	}
	return collect()
}

// send sends a metric once: a second one of the same labels would fail all. What drivers
// and libvirt say need not be UTF-8.
func (s *snapshot) send(d desc, value float64, labels ...string) {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\uFFFD")
	}
	key := d.String() + "\x00" + strings.Join(labels, "\x00")
	if s.sent[key] {
		return
	}
	s.sent[key] = true
	s.ch <- prometheus.MustNewConstMetric(d.Desc, d.kind, value, labels...)
}

// on is send of a metric of a GPU.
func (s *snapshot) on(id gpu.ID, d desc, value float64, labels ...string) {
	s.send(d, value, append([]string{string(id), s.uuid[id]}, labels...)...)
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s *snapshot) gpus() error {
	gpus, err := s.conf.Host.GPUs(s.ctx)
	if err != nil {
		return err
	}
	for _, g := range gpus {
		s.uuid[g.ID] = g.UUID
		s.on(g.ID, gpuInfo, 1, g.PCIAddress, g.Vendor, g.Model, g.Driver.Name, g.Driver.Version)
		s.on(g.ID, gpuManaged, oneIf(g.Managed))
		s.on(g.ID, gpuReady, oneIf(ready(g)))
		if g.MemoryBytes > 0 {
			s.on(g.ID, gpuMemory, float64(g.MemoryBytes))
		}
	}
	return nil
}

// ready reports whether no condition says that something is wrong.
func ready(g gpu.GPU) bool {
	return !slices.ContainsFunc(g.Conditions, func(c gpu.Condition) bool {
		return c.Status != (c.Type == gpu.Ready)
	})
}

func (s *snapshot) partitions() error {
	partitions, err := s.conf.Host.Partitions(s.ctx)
	if err != nil {
		return err
	}
	for _, p := range partitions {
		vm := vmOf(p)
		s.on(p.GPU, partitionInfo, 1, p.ID, string(p.Kind), p.Profile, string(p.State), string(p.Origin), vm.ID, vm.Name)
		if p.Kind == gpu.KindMIG && p.State != gpu.PartitionMissing {
			s.on(p.GPU, instanceInfo, 1, p.ID, p.Instance, p.Profile)
		}
		if p.Observed != nil {
			s.observed(p, *p.Observed)
		}
	}
	return nil
}

// vmOf is the VM that has a partition; of several that say so the first.
func vmOf(p gpu.Partition) gpu.Holder {
	var vms []gpu.Holder
	for _, h := range p.Holders {
		if h.Kind == "vm" {
			vms = append(vms, h)
		}
	}
	if len(vms) == 0 {
		return gpu.Holder{}
	}
	return slices.MinFunc(vms, func(a, b gpu.Holder) int { return cmp.Compare(a.ID, b.ID) })
}

func (s *snapshot) observed(p gpu.Partition, o gpu.Observed) {
	if o.License != nil {
		for _, state := range licenseStates() {
			s.on(p.GPU, license, oneIf(o.License.State == state), p.ID, string(state))
		}
	}
	if o.Usage == nil {
		return
	}
	if used := o.Usage.MemoryUsedBytes; used != nil {
		s.on(p.GPU, partitionMemory, float64(*used), p.ID)
	}
	for _, u := range []struct {
		engine string
		share  *float64
	}{{"sm", o.Usage.SM}, {"memory", o.Usage.Memory}, {"encoder", o.Usage.Encoder}, {"decoder", o.Usage.Decoder}} {
		if u.share != nil {
			s.on(p.GPU, partitionUse, *u.share, p.ID, u.engine)
		}
	}
}

func licenseStates() []gpu.LicenseState {
	return []gpu.LicenseState{gpu.LicenseUninitialized, gpu.LicenseUnrestricted, gpu.LicenseRestricted, gpu.LicenseNone, gpu.LicenseHeld}
}

func (s *snapshot) capacity() error {
	profiles, err := s.conf.Host.Capacity(s.ctx, "")
	if err != nil {
		return err
	}
	for _, p := range profiles {
		for _, g := range p.GPUs {
			s.on(g.GPU, capacity, float64(g.Available), p.Profile, string(p.Kind))
		}
	}
	return nil
}

func (s *snapshot) assignments() error {
	all, err := s.conf.Host.Assignments(s.ctx)
	if err != nil {
		return err
	}
	counts := map[gpu.AssignmentState]int{}
	for _, a := range all {
		counts[a.State]++
	}
	for _, state := range []gpu.AssignmentState{
		gpu.AssignmentAttaching, gpu.AssignmentAttached, gpu.AssignmentDetaching, gpu.AssignmentUnknown, gpu.AssignmentDrifted,
	} {
		s.send(assignments, float64(counts[state]), string(state))
	}
	return nil
}
