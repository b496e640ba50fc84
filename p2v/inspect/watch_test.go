package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/p2v/report"
)

// watched is the Debian server with programs that go on printing samples.
func watched(t *testing.T, smi string) *server {
	s := debianA100(t)
	s.program("nvidia-smi", `d=`+s.bin+`
every() { while :; do cat "$1"; sleep 1; done; }
`+smi)
	s.must(os.WriteFile(filepath.Join(s.bin, "all"), []byte(
		"0, 00000000:41:00.0, "+uuid0+", [N/A], 9000, 40, 5, 61.20, 0, 7, [N/A], 0\n"+
			"1, 00000000:C1:00.0, "+uuid1+", Disabled, 70000, 100, 50, 250.00, 0, 0, [N/A], 0\n"), 0o600))
	s.must(os.WriteFile(filepath.Join(s.bin, "basic"), []byte(
		"0, 00000000:41:00.0, "+uuid0+", [N/A], 9000, 40, 5, 61.20\n1, 00000000:C1:00.0, "+uuid1+", Disabled, 70000, 100, 50, 250.00\n"), 0o600))
	s.must(os.WriteFile(filepath.Join(s.bin, "pmon"), []byte(
		"# Time        gpu         pid   type     sm    mem    enc    dec    jpg    ofa     fb   ccpm    command\n"+
			" HH:MM:SS     Idx           #    C/G      %      %      %      %      %      %     MB     MB    name\n"), 0o600))
	return s
}

const healthy = `
case "$1 $3" in
"--query-gpu=index,pci.bus_id,uuid,mig.mode.current,memory.used,utilization.gpu,utilization.memory,power.draw,utilization.encoder,utilization.decoder,utilization.jpeg,utilization.ofa ") cat $d/all;;
"--query-gpu="*,utilization.ofa" -lms") every $d/all;;
"pmon um")
	sed 's/ HH/#HH/' $d/pmon
	n=0; while :; do n=$((n+1)); printf ' 10:00:0%d      0  900  C  40  5  3  7  -  -  8400  0  tritonserver\n 10:00:0%d  1  812  C  90 40 - - - - 30000 0 VLLM::Worker\n 10:00:0%d  1  813  C  20  40 - - - - 39000 0 VLLM::Worker\n' $n $n $n; sleep 1; done;;
*) echo unknown; exit 2;;
esac`

// watch watches in parts of two seconds, until enough was seen: programs that begin take their time on
// a busy machine.
func watch(s *server, enough func(u report.Usage, parts int) bool) (report.Usage, int, error) {
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	var sum report.Usage
	parts := 0
	err := s.inspector(nil).Watch(ctx, 20*time.Second, time.Second, func(u report.Usage) error {
		sum.Merge(u)
		if parts++; enough(sum, parts) {
			cancel()
		}
		return nil
	})
	return sum, parts, err
}

// anything is enough for who wants a sample.
func anything(u report.Usage, _ int) bool { return u.Samples > 0 }

func TestWatch(t *testing.T) {
	t.Parallel()
	s := watched(t, healthy)
	// Two processes of one program, in one unit.
	s.process(813, "/opt/vllm/bin/python3.11", "/system.slice/vllm.service", []string{"VLLM::Worker"}, nil, []string{"/dev/nvidia1"}, nil)
	u, parts, err := watch(s, func(u report.Usage, parts int) bool {
		return parts > 1 && u.Samples > 2 && len(u.Processes) == 2 && u.Processes[0].SM.Samples > 1 && u.Processes[1].SM.Samples > 1
	})
	// Each part begins with a sample, and has one a second at most after it.
	if err != nil || u.Samples < 3 || u.Samples > int(u.Cost.WindowSeconds)+parts || u.Source != "nvidia-smi" || u.IntervalSeconds != 1 {
		t.Fatalf("%d parts, %v\n%+v", parts, err, u)
	}
	if len(u.GPUs) != 2 || len(u.Processes) != 2 {
		t.Fatalf("%+v", u)
	}
	g := u.GPUs[1]
	if g.PCI != "0000:c1:00.0" || g.UUID != uuid1 || g.Memory.Max != 70000<<20 || g.SM.Max != 1 || g.DRAM.Max != 0.5 || g.Power.Max != 250 || g.JPEG.Seen() || g.Activity {
		t.Errorf("%+v", g)
	}
	if d := u.GPUs[0].Decoder; d.Max != 0.07 || d.Samples != u.Samples {
		t.Errorf("%+v", d)
	}
	p := u.Processes[1]
	if p.Exe != "/opt/vllm/bin/python3.11" || p.Unit != "vllm.service" || p.Memory.Max != 69000<<20 || p.SM.Max != 1 {
		t.Errorf("%+v", p) // 90 and 20 percent of the same GPU are all of it
	}
	if p.DRAM.Max != 0.8 || p.DRAM.Samples != p.SM.Samples || p.Encoder.Seen() || p.Decoder.Seen() { // what is not told is not nothing
		t.Errorf("%+v", p)
	}
	if p := u.Processes[0]; p.Exe != "/opt/tritonserver/bin/tritonserver" || p.DRAM.Max != 0.05 || p.Encoder.Max != 0.03 || p.Decoder.Max != 0.07 || p.Decoder.Samples != p.SM.Samples {
		t.Errorf("%+v", p)
	}
	if c := u.Cost; c.WindowSeconds < 3 || c.CPUSeconds <= 0 || c.LongestSeconds <= 0 || c.LongestSeconds > c.WindowSeconds {
		t.Errorf("%+v", c)
	}
	if !u.End.After(u.Start) || u.Missed > int(u.Cost.WindowSeconds) {
		t.Errorf("%+v", u)
	}
}

// A driver that does not know all fields is asked for fewer.
func TestWatchOldDriver(t *testing.T) {
	t.Parallel()
	s := watched(t, `case "$1 $3" in
*utilization.ofa*) echo 'Field "utilization.encoder" is not a valid field to query.'; exit 2;;
"--query-gpu="*" -lms") every $d/basic;;
"--query-gpu="*) cat $d/basic;;
*) exit 2;;
esac`)
	u, _, err := watch(s, anything)
	if err != nil || u.Samples == 0 || u.GPUs[0].Encoder.Seen() || u.GPUs[0].SM.Max != 0.4 || len(u.Processes) != 0 {
		t.Errorf("%+v, %v", u, err)
	}
}

// With MIG the monitor of processes tells nothing, and the list of programs is asked.
func TestWatchMIG(t *testing.T) {
	t.Parallel()
	s := watched(t, `
every2() { n=0; while :; do n=$((n+1)); echo "2027/01/04 10:00:0$n.123, 00000000:41:00.0, 900, 8400"; sleep 1; done; }
case "$1 $3" in
"--query-gpu="*" -lms") every $d/mig;;
"--query-gpu="*) cat $d/mig;;
"--query-compute-apps=timestamp,gpu_bus_id,pid,used_memory -lms") every2;;
*) exit 2;;
esac`)
	s.must(os.WriteFile(filepath.Join(s.bin, "mig"), []byte("0, 00000000:41:00.0, "+uuid0+", Enabled, 9000, [N/A], [N/A], 61.20, [N/A], [N/A], [N/A], [N/A]\n"), 0o600))
	u, _, err := watch(s, func(u report.Usage, _ int) bool { return u.Samples > 0 && len(u.Processes) > 0 })
	if err != nil || u.Samples == 0 || u.GPUs[0].SM.Seen() || u.GPUs[0].Memory.Max != 9000<<20 {
		t.Fatalf("%+v, %v", u, err)
	}
	if len(u.Processes) != 1 || u.Processes[0].Memory.Max != 8400<<20 || u.Processes[0].Container != id64 || u.Processes[0].SM.Seen() {
		t.Errorf("%+v", u.Processes)
	}
}

// Where DCGM runs, it tells how much of a GPU works; where it stops, nvidia-smi goes on.
func TestWatchDCGM(t *testing.T) {
	t.Parallel()
	const discovery = `
if [ "$1" = discovery ]; then cat <<END
2 GPUs found.
+--------+----------------------------------------------------------------------+
| GPU ID | Device Information                                                   |
+--------+----------------------------------------------------------------------+
| 0      | Name: NVIDIA A100 80GB PCIe                                          |
|        | PCI Bus ID: 00000000:C1:00.0                                         |
|        | Device UUID: ` + uuid1 + `                       |
+--------+----------------------------------------------------------------------+
END
exit 0; fi
test "$1 $2 $3" = "dmon -e 252,1002,1005,206,207,1009,1010,1011,1012,155" || exit 3
`
	s := watched(t, healthy)
	s.program("dcgmi", discovery+`echo '#Entity   FBUSD  SMACT  DRAMA  ENCUTL DECUTL PCITX PCIRX NVLTX NVLRX POWER'
while :; do echo 'GPU 0     70000     0.310        0.122   0   3    1000   2000 10 20  250.5'; sleep 1; done`)
	var u report.Usage
	var err error
	for range 5 { // where it says nothing in time it is not asked again, but by who watches anew
		if u, _, err = watch(s, anything); u.Source == "dcgm" {
			break
		}
	}
	if err != nil || u.Source != "dcgm" || len(u.GPUs) != 1 {
		t.Fatalf("%+v, %v", u, err)
	}
	if g := u.GPUs[0]; !g.Activity || g.SM.Max != 0.31 || g.DRAM.Max != 0.122 || g.NVLink.Max != 30 || g.PCIeRx.Max != 2000 || g.Memory.Max != 70000<<20 || g.Decoder.Max != 0.03 {
		t.Errorf("%+v", g)
	}
	s.program("dcgmi", discovery+"echo 'Error: the host engine is gone'; exit 1")
	u, _, err = watch(s, anything)
	if err != nil || u.Source != "dcgm+nvidia-smi" || u.Samples == 0 || u.GPUs[0].Activity {
		t.Errorf("%+v, %v", u, err)
	}
}

// DCGM is left alone while a program is profiled.
func TestWatchWithProfiler(t *testing.T) {
	t.Parallel()
	s := watched(t, healthy)
	s.program("dcgmi", "touch "+s.bin+"/called; exit 1")
	s.process(950, "/opt/nvidia/nsys", "/x.scope", []string{"nsys"}, nil, []string{"/dev/nvidiactl"}, nil)
	i := s.inspector(nil)
	if _, err := i.Inspect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.Watch(t.Context(), time.Second, time.Second, func(report.Usage) error { return nil }); err != nil || s.called() {
		t.Errorf("%v, called %v", err, s.called())
	}
}

func TestWatchEnds(t *testing.T) {
	t.Parallel()
	t.Run("nothing there", func(t *testing.T) {
		s := newServer(t)
		s.files(anyServer)
		if _, _, err := watch(s, anything); !errors.Is(err, ErrNothingToWatch) {
			t.Error(err)
		}
	})
	t.Run("hangs", func(t *testing.T) {
		t.Parallel()
		s := watched(t, `case "$1 $3" in "--query-gpu="*" ") cat $d/all;; *) trap '' TERM; while :; do sleep 0.05; done;; esac`)
		u, parts, err := watch(s, anything)
		if err == nil || !strings.Contains(err.Error(), "cannot watch the GPUs") || parts != failures || u.Samples != 0 || u.Missed == 0 {
			t.Errorf("%d parts, %v, %+v", parts, err, u)
		}
	})
	t.Run("by the caller", func(t *testing.T) {
		s := watched(t, healthy)
		var u report.Usage
		for after := 1200 * time.Millisecond; u.Samples == 0 && after < time.Minute; after *= 2 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(after, cancel)
			err := s.inspector(nil).Watch(ctx, time.Hour, time.Second, func(p report.Usage) error { u.Merge(p); return nil })
			if err != nil && !errors.Is(err, ErrNothingToWatch) { // it had not even begun
				t.Error(err)
			}
		}
		if u.Samples == 0 {
			t.Errorf("%+v", u)
		}
	})
	t.Run("by the receiver", func(t *testing.T) {
		s := watched(t, healthy)
		gone := errors.New("gone")
		err := s.inspector(nil).Watch(t.Context(), 10*time.Second, time.Second, func(report.Usage) error { return gone })
		if !errors.Is(err, gone) {
			t.Error(err)
		}
	})
}

// Whatever the programs print, nothing breaks.
func TestOddSamples(t *testing.T) {
	s := watched(t, healthy)
	w := &watcher{Inspector: s.inspector(nil), interval: time.Second, fields: basicFields, pci: map[string]string{"0": "0000:41:00.0"}, dcgm: map[string]string{"0": "0000:41:00.0"}}
	p := newPart(w)
	for _, line := range []string{
		"", ",", "0, 00000000:41:00.0, u, x, -5, NaN, Inf, 1e400", "0, 00000000:41:00.0, u, x, [N/A], , , ", "9, 00000000:41:00.0, u, x, 1, 1, 1, 1",
		"GPU 0 N/A N/A N/A N/A N/A N/A N/A N/A N/A N/A", "GPU 9 1 1 1 1 1 1 1 1 1 1", "GPU", "#", "# gpu", "# gpu pid fb", "0", "0 -", "0 99999999999999999999 5", "0 -7 5", "x y z",
		"a, b, c, d", "t, 00000000:41:00.0, 900, -1",
	} {
		p.gpuRow(line)
		p.dcgmRow(line)
		p.pmonRow(line)
		p.appRow(line)
	}
	u := p.end(time.Second, 0.1)
	if u.Samples != 0 || len(u.GPUs) != 1 || u.GPUs[0].SM.Seen() {
		t.Errorf("%+v", u)
	}
	r := report.Report{Version: report.Version, Usage: &u}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}

// As many programs as one part tells of, with all that is told of each, fit into a report.
func TestPartOfManyPrograms(t *testing.T) {
	s := newServer(t)
	w := &watcher{Inspector: s.inspector(nil), pci: map[string]string{"0": "0000:41:00.0"}}
	p := newPart(w)
	p.pmonRow("# Time gpu pid type sm mem enc dec jpg ofa fb ccpm command")
	for pid := range 600 {
		p.who[pid+1] = report.ProcessUsage{Exe: fmt.Sprintf("/opt/program%d", pid)}
	}
	for n := range 101 {
		for pid := range 600 {
			p.pmonRow(fmt.Sprintf(" 10:%02d:%02d 0 %d C %d %d %d %d - - %d 0 x", n/60, n%60, pid+1, n, 100-n, n, 100-n, 100+n*700))
		}
	}
	u := p.end(101*time.Second, 0)
	data, err := json.Marshal(u)
	if err != nil || len(u.Processes) != 512 || len(data) > report.MaxBytes/2 || u.Processes[511].Decoder.Samples != 101 {
		t.Errorf("%d programs, %d bytes, %v", len(u.Processes), len(data), err)
	}
}
