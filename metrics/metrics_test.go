package metrics

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/move"
)

var update = flag.Bool("update", false, "write the golden file anew")

// fake is a host with one GPU of NVIDIA and one of Intel, which has no UUID.
type fake struct {
	err  error         // of all but GPUs
	hold chan struct{} // GPUs waits for it, where there is one
}

const card, other gpu.ID = "0000:41:00.0", "0000:c1:00.0"

func (f fake) GPUs(ctx context.Context) ([]gpu.GPU, error) {
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return []gpu.GPU{
		{
			ID: card, UUID: "GPU-1", PCIAddress: string(card), Vendor: "NVIDIA", Model: "L40S", Driver: gpu.Driver{Name: "nvidia", Version: "580.95.05"},
			MemoryBytes: 48 << 30, Managed: true,
		},
		{
			ID: other, PCIAddress: string(other), Vendor: "Intel", Model: `Flex "170"`, Driver: gpu.Driver{Name: "i915"},
			Conditions: []gpu.Condition{{Type: gpu.Ready, Status: true}, {Type: gpu.Stuck, Status: true}},
		},
		{ID: "mbochs", Vendor: "mbochs", Model: "mbochs", Conditions: []gpu.Condition{{Type: gpu.Drifted}, {Type: gpu.Ready, Status: true}}},
	}, nil
}

func (f fake) Partitions(context.Context) ([]gpu.Partition, error) {
	used, half, none := uint64(768<<20), 0.5, 0.0
	return []gpu.Partition{
		{
			ID: "u1", GPU: card, Kind: gpu.KindVGPU, Profile: "L40S-8Q", State: gpu.PartitionMade, Origin: gpu.OriginManaged,
			Holders: []gpu.Holder{{Kind: "process", ID: "7", Name: "qemu"}, {Kind: "vm", ID: "6f3a", Name: "web \"1\""}},
			Observed: &gpu.Observed{
				License: &gpu.License{State: gpu.LicenseHeld}, Usage: &gpu.Usage{MemoryUsedBytes: &used, SM: &half, Encoder: &none},
			},
		},
		{ID: string(card) + "/mig/0", GPU: card, Kind: gpu.KindMIG, Profile: "1g.5gb", Instance: "7", State: gpu.PartitionMade, Origin: gpu.OriginForeign},
		{ID: string(card) + "/mig/4", GPU: card, Kind: gpu.KindMIG, Profile: "3g.20gb", State: gpu.PartitionMissing, Origin: gpu.OriginManaged, Observed: &gpu.Observed{Unknown: "x"}},
		{ID: "twice", GPU: card, Kind: gpu.KindMdev, Profile: "not\xffUTF-8", Origin: gpu.OriginForeign},
		{ID: "twice", GPU: card, Kind: gpu.KindMdev, Profile: "not\xfeUTF-8", Origin: gpu.OriginForeign},
		{ID: "gone/vf/0", GPU: "gone", Kind: gpu.KindVF, Profile: "vf-8086:56c0", State: gpu.PartitionMissing, Origin: gpu.OriginManaged},
	}, f.err
}

func (f fake) Assignments(context.Context) ([]gpu.Assignment, error) {
	return []gpu.Assignment{{State: gpu.AssignmentAttached}, {State: gpu.AssignmentAttached}, {State: gpu.AssignmentDrifted}}, f.err
}

func (f fake) Capacity(context.Context, string) ([]gpu.ProfileCapacity, error) {
	return []gpu.ProfileCapacity{
		{Profile: "L40S-8Q", Kind: gpu.KindVGPU, GPUs: []gpu.GPUCapacity{{GPU: card, Available: 5}}},
		{Profile: "vf-8086:56c0", Kind: gpu.KindVF, GPUs: []gpu.GPUCapacity{{GPU: other}, {GPU: "mbochs"}}}, // neither has a UUID
	}, f.err
}

func (f fake) Compared() gpu.Comparison {
	if f.err != nil {
		return gpu.Comparison{}
	}
	return gpu.Comparison{At: time.UnixMilli(1764150000500), Drifted: map[string]int{gpu.DriftLayout: 1, gpu.DriftAssignment: 2}}
}

// Migrations are one that waits on its first pass, one whose server is at rest for a
// rehearsal, and one that is done.
func (f fake) Migrations() ([]move.Migration, error) {
	at := time.UnixMilli(1764150000500)
	first := move.Migration{
		Phase: move.PhaseWaiting,
		Record: move.Record{Name: "first", Reservation: &move.Reservation{State: move.Ending, Lease: 3600, Until: at}, Disks: []move.Disk{
			{Name: "sda", Size: 100, Passes: []move.Pass{{Bytes: 40, Written: 30, Sent: 20}, {Bytes: 60, Written: 5, Sent: 4}}}, {Name: "sdb", Size: 10},
		}},
	}
	rehearsed := move.Migration{
		Phase: move.PhaseRehearsing, Progress: &move.Progress{Disk: "sda", Done: 1, Total: 3, Rate: 1},
		Record: move.Record{
			Name: "rehearsed", Heard: at, Reservation: &move.Reservation{State: move.Reserved, Lease: 3600, Until: at}, Forecast: &move.Forecast{FinalSeconds: 9.5, RestSeconds: 80.25, DowntimeSeconds: 140.5, BudgetSeconds: 600},
			Disks:    []move.Disk{{Name: "sda", Size: 100, Passes: []move.Pass{{Bytes: 100, Written: 90, Sent: 80, Complete: true}, {Bytes: 3, Written: 2, Sent: 1, Complete: true, Tracked: true}}}},
			Attempts: []move.Attempt{{Kind: move.Rehearsal, State: move.Failed, Rest: 3}, {Kind: move.Rehearsal, State: move.Running, AtRest: at}},
		},
	}
	done := move.Migration{
		Phase: move.PhaseDone,
		Record: move.Record{
			Name: "done", Heard: at, Fence: move.FenceOff, Forecast: &move.Forecast{FinalSeconds: 1},
			Attempts: []move.Attempt{{Kind: move.Rehearsal, State: move.Passed, Rest: 3}, {Kind: move.Cutover, State: move.Passed, AtRest: at, Rest: 12, Downtime: 61.5}},
		},
	}
	return []move.Migration{first, rehearsed, done}, f.err
}

func text(t *testing.T, m *Metrics) string {
	t.Helper()
	var b bytes.Buffer
	if err := m.Write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`goversion="[^"]*"`).ReplaceAllString(b.String(), `goversion="…"`)
}

func config(f fake) Config {
	return Config{
		Host: f, Migrations: f, Version: "v1.2.3", WriteTimeouts: func() uint64 { return 3 },
		CertificateExpires: func() time.Time { return time.Unix(1770000000, 0) },
	}
}

// The whole text is as it was agreed, and Prometheus' own linter has nothing to say.
func TestGolden(t *testing.T) {
	m := New(config(fake{}))
	began := time.Unix(1764150000, 0)
	for _, op := range []operation.Operation{
		{Kind: "assignment.put", Status: operation.Running},
		{Kind: "assignment.put", Status: operation.Done, Created: began, Updated: began.Add(1500 * time.Millisecond)},
		{Kind: "assignment.put", Status: operation.Done, Created: began, Updated: began.Add(time.Hour)},
		{Kind: "assignment.put", Status: operation.Undone, Created: began, Updated: began.Add(time.Second)},
		{Kind: "gpu.layout", Status: operation.Failed},
		{Kind: "gpu.layout", Status: operation.Failed, Forgot: true},
	} {
		m.OperationChanged(op)
	}
	got := text(t, m)
	path := filepath.Join("testdata", "metrics.txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("it has changed (go test ./metrics -update):\n%s", diff)
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %+v", err, problems)
	}
	if again := text(t, m); again != got {
		t.Errorf("asked twice:\n%s", cmp.Diff(got, again))
	}
}

// A server is at rest from when it was told to come to rest until it goes on, or is off.
func TestAtRest(t *testing.T) {
	at := time.Unix(1764150000, 0)
	for name, c := range map[string]struct {
		a    move.Attempt
		want string
	}{
		"asked":        {move.Attempt{State: move.Asked}, "0"},
		"not yet":      {move.Attempt{State: move.Running}, "0"},
		"at rest":      {move.Attempt{State: move.Running, AtRest: at}, "1"},
		"it goes on":   {move.Attempt{State: move.Running, AtRest: at, Rest: 2}, "0"},
		"it has ended": {move.Attempt{State: move.Failed, AtRest: at}, "0"},
	} {
		c.a.Kind = move.Rehearsal
		conf := config(fake{})
		conf.Migrations = moves{{Record: move.Record{Name: "a", Attempts: []move.Attempt{c.a}}}}
		if got := text(t, New(conf)); !strings.Contains(got, `gpuvirt_migration_at_rest{migration="a"} `+c.want+"\n") {
			t.Errorf("%s: it is not %s in\n%s", name, c.want, got)
		}
	}
}

type moves []move.Migration

func (m moves) Migrations() ([]move.Migration, error) { return m, nil }

// What cannot be told is left out, and that it is is told; what is known is there all the
// same, and nothing is 0 that is not known.
func TestBlind(t *testing.T) {
	c := config(fake{err: errors.New("libvirt does not answer")})
	c.WriteTimeouts, c.CertificateExpires = nil, func() time.Time { return time.Time{} }
	got := text(t, New(c))
	for _, want := range []string{
		`gpuvirt_gpu_info{`, `gpuvirt_scrape_collector_success{collector="gpus"} 1`, `gpuvirt_scrape_collector_success{collector="partitions"} 0`,
		`gpuvirt_scrape_collector_success{collector="capacity"} 0`, `gpuvirt_scrape_collector_success{collector="assignments"} 0`,
		`gpuvirt_scrape_collector_success{collector="migrations"} 0`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %s in\n%s", want, got)
		}
	}
	for _, name := range []string{"partition_info", "capacity{", "assignments{", "migration_", "drift", "reconcile", "sysfs", "tls_certificate"} {
		if strings.Contains(got, "gpuvirt_"+name) {
			t.Errorf("there is %s in\n%s", name, got)
		}
	}
}

// Of the process itself more is told, where that is asked for.
func TestProcess(t *testing.T) {
	c := config(fake{})
	c.Process = true
	if got := text(t, New(c)); !strings.Contains(got, "process_open_fds ") || !strings.Contains(got, "go_goroutines ") {
		t.Errorf("%s", got)
	}
}

// A host that does not answer is not waited for longer than Prometheus waits, and is not
// asked twice at a time.
func TestSlowHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(config(fake{hold: make(chan struct{})}))
		begin := time.Now()
		first := make(chan string, 1)
		go func() {
			var b bytes.Buffer
			if err := m.Write(t.Context(), &b); err != nil {
				t.Error(err)
			}
			first <- b.String()
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.Write(ctx, new(bytes.Buffer)); gpu.CodeOf(err) != gpu.CodeUnavailable {
			t.Errorf("the second: %v", err)
		}
		got := <-first
		if took := time.Since(begin); took != patience || !strings.Contains(got, `gpuvirt_scrape_collector_success{collector="gpus"} 0`) {
			t.Errorf("after %s:\n%s", took, got)
		}
	})
}
