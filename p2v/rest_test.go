package p2v_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v"
	"gpuvirt/p2v/atrest"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

func (y *yard) dialAtRest(ctx context.Context, disks []atrest.Disk, certificates string) (p2v.Server, error) {
	o := atrest.Options{Folders: y.images, NBD: y.rescue}
	if certificates != "" {
		o.NBD.Certificates = filepath.Join(y.storage, certificates)
	}
	s, err := atrest.Dial(ctx, disks, o)
	if err != nil {
		return nil, err
	}
	if y.onDial != nil {
		y.onDial()
	}
	return s, nil
}

// carried has a yard's server known by an inspection that was carried here alone, and off.
func (y *yard) carried() {
	y.t.Helper()
	rec := report.AssessmentRecord{Name: "gpu7", State: report.StateDone, Report: y.machine.report()}
	if err := y.store.Apply(operation.Put(report.RecordAssessment, "gpu7", rec)); err != nil {
		y.t.Fatal(err)
	}
	y.machine.gone()
}

// images are the machine's disks, as they lie here.
func (y *yard) fromImages() (out []move.DiskFrom) {
	for _, d := range y.machine.disks {
		y.images = append(y.images, filepath.Dir(d.Path))
		out = append(out, move.DiskFrom{Disk: d.Name, Image: d.Path})
	}
	return out
}

func (y *yard) beginAtRest(from []move.DiskFrom) move.Migration {
	y.t.Helper()
	w := y.wish()
	w.DisksFrom = from
	w.Copy.Connections = 2
	if err := y.Refusal(y.t.Context(), w); err != nil {
		y.t.Fatal(err)
	}
	op, err := y.Create(y.t.Context(), "tester", w, gpu.Idempotency{})
	if err != nil {
		y.t.Fatal(err)
	}
	copies := "copy 1 disk of a server that is off, until it is cut over"
	if n := len(from); n > 1 {
		copies = strings.Replace(copies, "1 disk", fmt.Sprintf("%d disks", n), 1)
	}
	if !strings.Contains(op.Summary, "migrate gpu7") || op.Steps[0].Summary != "define VM gpu7" || op.Steps[1].Summary != copies {
		y.t.Errorf("%q: %+v", op.Summary, op.Steps)
	}
	return y.until("ready", phase(move.PhaseReady))
}

func (y *yard) dialled() int {
	y.machine.server.mu.Lock()
	defer y.machine.server.mu.Unlock()
	return y.machine.dialed
}

// A server that is off becomes a VM from images of its disks and the inspection that was carried
// here. Nobody is called, and nobody is powered off: a person says that it is.
func TestAtRest(t *testing.T) {
	y := newYard(t, newMachine(t, 8*mib, 4*mib))
	y.carried()
	if _, err := y.Create(t.Context(), "tester", y.wish(), gpu.Idempotency{}); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "how the server is reached") {
		t.Errorf("without a word of where its disks are: %v", err)
	}
	v := y.beginAtRest(y.fromImages())
	y.same()
	if v.Source != (report.Source{}) || len(v.DisksFrom) != 2 || !v.AtRest() {
		t.Errorf("%+v", v.Record)
	}

	// What is written to an image nevertheless is found.
	y.machine.write(1, 3*mib+7, "somebody has mounted it")
	before := v.Disks[1].Total
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v = y.until("copied again", func(v move.Migration) bool { return v.Disks[1].Total > before && v.Phase == move.PhaseReady })
	y.same()
	if p := v.Disks[1].Passes[before]; p.Tracked || p.Bytes != 4*mib || p.Written != mib {
		t.Errorf("%+v", p)
	}

	if a := y.rehearse(move.CutWish{}); a.State != move.Passed || a.Report == nil || a.Before != nil {
		t.Errorf("%+v", a)
	}
	for what, w := range map[string]move.CutWish{"nobody has said that it is off": {}, "stop_services": {SourceOff: true, Stop: []string{"a.service"}}} {
		if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", w); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%+v: %v", w, err)
		}
	}
	if _, err := y.Rehearse(y.t.Context(), "gpu7", "tester", move.CutWish{SourceOff: true}); gpu.CodeOf(err) != gpu.CodeInvalid {
		t.Errorf("got %v", err)
	}
	if _, err := y.CutOver(y.t.Context(), "gpu7", "boss", move.CutWish{SourceOff: true}); err != nil {
		t.Fatal(err)
	}
	v = y.until("done", phase(move.PhaseDone))
	a := v.Attempts[1]
	if a.State != move.Passed || a.Phase != "the source is off, as boss says" || !a.Wish.SourceOff || a.Actor != "boss" || v.Fence != move.FenceOff || y.vms.started != 1 {
		t.Errorf("%+v, fence %q, started %d times", a, v.Fence, y.vms.started)
	}
	if n := y.dialled(); n != 0 {
		t.Errorf("the server was called %d times", n)
	}
	if got := y.overlays(); len(got) != 2 {
		t.Errorf("its disks: %q", got)
	}
}

// replace lays another image of the same size in the place of a disk's, as rsync and mv do.
func (y *yard) replace(disk int, text string) {
	y.t.Helper()
	path := y.machine.disks[disk].Path
	content, err := os.ReadFile(path)
	if err == nil {
		copy(content[3*mib+7:], text)
		err = errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path))
	}
	if err != nil {
		y.t.Error(err)
	}
}

// An image that another is laid in the place of is opened anew: by the next pass, and a cut-over makes no VM
// of the mirror of the one that was there before.
func TestAtRestReplaced(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.carried()
	y.beginAtRest(y.fromImages())
	y.replace(0, "somebody has made the image anew")
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	copied := func() {
		t.Helper()
		y.await("it is copied again", func() bool {
			want, wantErr := os.ReadFile(y.machine.disks[0].Path)
			got, err := os.ReadFile(filepath.Join(y.storage, "gpu7", "nvme0n1.raw"))
			return errors.Join(wantErr, err) == nil && bytes.Equal(want, got)
		})
		y.until("ready", phase(move.PhaseReady)) // and not as it was before that
	}
	copied()

	cut := func() {
		t.Helper()
		if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{SourceOff: true, Unrehearsed: "a test", Verify: true}); err != nil {
			t.Fatal(err)
		}
	}
	y.replace(0, "once more, and nobody has asked for a pass")
	cut()
	if a := y.over(1); a.State != move.Failed || !strings.Contains(a.Problem, "is another file or disk now than the one that was opened") || !strings.Contains(a.Problem, "ask again") {
		t.Errorf("%+v", a)
	}
	copied()

	// Last of all, while the VM's disks are made.
	y.makers.set(func(what string, _ convert.Job) {
		if what == "convert" {
			y.replace(0, "while the disks are made")
		}
	})
	cut()
	if a := y.over(2); a.State != move.Failed || !strings.Contains(a.Problem, "is another file or disk now") || y.vms.started != 0 || len(y.overlays()) != 0 {
		t.Errorf("%+v, started %d times, %q", a, y.vms.started, y.overlays())
	}
	y.makers.set(nil)
	copied()
	cut()
	y.until("done", phase(move.PhaseDone))
	y.same()
}

// An image that is gone, or has another size, is waited for.
func TestAtRestGone(t *testing.T) {
	for name, c := range map[string]struct {
		want   string
		change func(path string) error
	}{
		"gone":   {"is not there any more; put it back, and retry", func(path string) error { return os.Rename(path, path+".away") }},
		"longer": {"has 5242880 bytes now, and had 4194304 when it was opened; it has to be as long as the server's disk, to the byte: mend it, and retry", func(path string) error { return os.Truncate(path, 5*mib) }},
		"another": {"has 1048576 bytes, and the disk had 4194304 when the server was inspected; it is another disk", func(path string) error {
			return errors.Join(os.WriteFile(path+".new", make([]byte, mib), 0o600), os.Rename(path, path+".away"), os.Rename(path+".new", path))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			y.carried()
			y.beginAtRest(y.fromImages())
			path := y.machine.disks[0].Path
			if err := c.change(path); err != nil {
				t.Fatal(err)
			}
			if _, err := y.Sync("gpu7"); err != nil {
				t.Fatal(err)
			}
			v := y.until("waiting", phase(move.PhaseWaiting))
			if !strings.Contains(v.Reason, c.want) || !strings.Contains(v.Reason, path) {
				t.Errorf("%q", v.Reason)
			}
			// It is put right, and gone on with.
			if err := os.Rename(path+".away", path); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if err := os.Truncate(path, 4*mib); err != nil {
				t.Fatal(err)
			}
			if _, err := y.Retry("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.until("ready", phase(move.PhaseReady))
			y.same()
		})
	}
}

// A daemon that ends while the disks of a VM are made from images begins anew, and what is taken
// back leaves nothing; the VM that has started and is taken back leaves the images.
func TestAtRestBack(t *testing.T) {
	for _, at := range []string{"convert", "start"} {
		t.Run(at, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			y.carried()
			y.beginAtRest(y.fromImages())
			there := make(chan struct{})
			if at == "convert" {
				y.makers.set(func(what string, _ convert.Job) {
					if what == at {
						close(there)
					}
				})
				y.makers.fail(at, errWaits)
			} else {
				y.vms.fail(at, errors.New("it has no processor"))
			}
			if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{SourceOff: true, Unrehearsed: "a test"}); err != nil {
				t.Fatal(err)
			}
			if at == "convert" {
				<-there
				y.stop()
				y.makers.set(nil)
				y.makers.fail(at, nil)
				y.start()
				if a := y.over(1); a.State != move.Failed {
					t.Errorf("%+v", a)
				}
				y.until("ready", phase(move.PhaseReady))
				y.same()
			} else {
				y.until("waiting", phase(move.PhaseWaiting))
			}
			if _, err := y.Rollback("gpu7"); err != nil {
				t.Fatal(err)
			}
			v := y.until("rolled back", phase(move.PhaseRolledBack))
			if want := map[string]string{"convert": "", "start": "the source is off: start it again"}[at]; v.Reason != want {
				t.Errorf("%q", v.Reason)
			}
			y.gone4good()
			if n := y.dialled(); n != 0 {
				t.Errorf("the server was called %d times", n)
			}
			if _, err := os.Stat(y.machine.disks[0].Path); err != nil {
				t.Error(err)
			}
		})
	}
}

// Of a server that was assessed by ssh it is seen whether somebody's word is true.
func TestAtRestRuns(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.beginAtRest(y.fromImages())
	cut := func() {
		t.Helper()
		if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{SourceOff: true, Unrehearsed: "a test"}); err != nil {
			t.Fatal(err)
		}
	}
	cut()
	if a := y.over(1); a.State != move.Failed || !strings.Contains(a.Problem, "it answers at gpu7.example") {
		t.Errorf("%+v", a)
	}
	y.awake()
	// It is started while the disks are made.
	y.machine.gone()
	y.makers.set(func(what string, _ convert.Job) {
		if what == "convert" {
			y.machine.there()
		}
	})
	y.until("ready", phase(move.PhaseReady))
	cut()
	if a := y.over(2); a.State != move.Failed || !strings.Contains(a.Problem, "it answers at gpu7.example") || y.vms.started != 0 || len(y.overlays()) != 0 {
		t.Errorf("%+v, started %d times, %q", a, y.vms.started, y.overlays())
	}
	y.makers.set(nil)
	y.machine.gone()
	y.until("ready", phase(move.PhaseReady))
	cut()
	y.until("done", phase(move.PhaseDone))
	y.same()
}

// Somebody who does not want it any more is heard until the VM starts.
func TestAtRestWithdrawn(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.carried()
	y.beginAtRest(y.fromImages())
	y.makers.set(func(what string, _ convert.Job) {
		if what == "convert" {
			if _, err := y.Withdraw("gpu7", "boss"); err != nil {
				t.Error(err)
			}
		}
	})
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{SourceOff: true, WhenReady: true, Unrehearsed: "a test"}); err != nil {
		t.Fatal(err)
	}
	if a := y.over(1); a.State != move.Withdrawn {
		t.Errorf("%+v", a)
	}
	if v := y.until("ready", phase(move.PhaseReady)); v.Fence != move.FenceNone || y.vms.started != 0 || len(y.overlays()) != 0 {
		t.Errorf("fence %q, started %d times, %q", v.Fence, y.vms.started, y.overlays())
	}
}

// One that is reached is not taken for one that is off.
func TestSourceOffOfOneThatRuns(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{SourceOff: true, Unrehearsed: "a test"}); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "its server runs") {
		t.Errorf("got %v", err)
	}
}

// What cannot be read is told to who asks, and nothing begins.
func TestAtRestRefused(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib, 4*mib))
	y.carried()
	from := y.fromImages()
	folder := filepath.Dir(from[0].Image)
	out, short := filepath.Join(folder, "out"), filepath.Join(folder, "short")
	if err := errors.Join(os.Symlink("/etc/hostname", out), os.WriteFile(short, make([]byte, mib), 0o600)); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*move.DiskFrom)) []move.DiskFrom {
		all := []move.DiskFrom{from[0], from[1]}
		change(&all[0])
		return all
	}
	image := func(path string) []move.DiskFrom {
		return with(func(d *move.DiskFrom) { d.Image = path })
	}
	export := func(uri string) []move.DiskFrom {
		return with(func(d *move.DiskFrom) { d.Image, d.NBD = "", uri })
	}
	for name, c := range map[string]struct {
		from         []move.DiskFrom
		certificates string
		code         gpu.Code
		want         string
	}{
		"not all":           {from[:1], "", gpu.CodeInvalid, `where disk "nvme1n1" is read`},
		"none of it":        {append(from[:2:2], move.DiskFrom{Disk: "sdx", Image: from[0].Image}), "", gpu.CodeInvalid, `no disk "sdx"`},
		"twice":             {append(from[:2:2], from[0]), "", gpu.CodeInvalid, "once more"},
		"both":              {with(func(d *move.DiskFrom) { d.NBD = "nbd://localhost/" }), "", gpu.CodeInvalid, "either image or nbd"},
		"neither":           {image(""), "", gpu.CodeInvalid, "either image or nbd"},
		"relative":          {image("x.raw"), "", gpu.CodeInvalid, "no absolute path"},
		"up":                {image(folder + "/../../etc/hostname"), "", gpu.CodeInvalid, "has . or .. in it"},
		"elsewhere":         {image("/etc/hostname"), "", gpu.CodeConflict, "may be read from"},
		"link":              {image(out), "", gpu.CodeInvalid, "escapes"},
		"folder":            {image(folder), "", gpu.CodeConflict, "may be read from"},
		"gone":              {image(folder + "/gone"), "", gpu.CodeConflict, "it is not there"},
		"short":             {image(short), "", gpu.CodeConflict, "had 4194304 when the server was inspected"},
		"not shown":         {image(folder + "/a\x1b[2Jb"), "", gpu.CodeInvalid, "cannot be shown"},
		"long":              {image("/" + strings.Repeat("x", 5000)), "", gpu.CodeInvalid, "more than 4096 bytes"},
		"password":          {export("nbds://root:secret@gpu7/"), "gpu7", gpu.CodeInvalid, "it has a user"},
		"odd host":          {export("nbds://gpu7 -x/"), "gpu7", gpu.CodeInvalid, "cannot use NBD URI"},
		"other scheme":      {export("http://gpu7/"), "", gpu.CodeInvalid, "its scheme"},
		"no TLS":            {export("nbd://192.0.2.7/"), "", gpu.CodeInvalid, "without TLS"},
		"socket":            {export("nbd+unix:///?socket=/run/libvirt/libvirt-sock"), "", gpu.CodeConflict, "may be read from"},
		"no certificates":   {export("nbds://gpu7/"), "", gpu.CodeInvalid, "certificates is missing"},
		"certificates up":   {export("nbds://gpu7/"), "../etc", gpu.CodeInvalid, "no name of a folder"},
		"certificates path": {export("nbds://gpu7/"), "a/b", gpu.CodeInvalid, "no name of a folder"},
		"certificates gone": {export("nbds://192.0.2.7/"), "gone", gpu.CodeInvalid, "cannot use the certificates"},
		"for nothing":       {from, "gpu7", gpu.CodeInvalid, "none does"},
		"many":              {make([]move.DiskFrom, 1000), "", gpu.CodeInvalid, "at most"},
	} {
		w := y.wish()
		w.DisksFrom, w.Certificates = c.from, c.certificates
		_, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{})
		if gpu.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s %v", name, gpu.CodeOf(err), err)
		}
		if planned := y.Refusal(t.Context(), w); planned == nil || planned.Error() != err.Error() {
			t.Errorf("%s: a dry run says %v", name, planned)
		}
	}
	if all, err := y.Migrations.Migrations(); err != nil || len(all) != 0 || len(y.vms.left()) != 0 {
		t.Errorf("%+v %v %q", all, err, y.vms.left())
	}
}

// A rescue system exports the disks; it is away for a while, and comes back.
func TestAtRestExport(t *testing.T) {
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Skip("nbdkit is not installed")
	}
	y := newYard(t, newMachine(t, 8*mib))
	y.carried()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if err := l.Close(); err != nil { // port holds it
		t.Fatal(err)
	}
	start := func() (stop func()) {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec nbdkit -f -r file "$1"`, "sh", y.machine.disks[0].Path)
		cmd.ExtraFiles, cmd.WaitDelay = []*os.File{port}, 10*time.Second
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	}
	stop := start()
	y.rescue.Connect = 5 * time.Second
	v := y.beginAtRest([]move.DiskFrom{{Disk: "nvme0n1", NBD: "nbd://" + l.Addr().String() + "/"}})
	y.same()
	stop()
	y.machine.write(0, 5*mib, "the server was started in between")
	stop = start()
	defer func() { stop() }()
	before := v.Disks[0].Total
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("copied again", func(v move.Migration) bool {
		n := len(v.Disks[0].Passes)
		return v.Disks[0].Total > before && v.Disks[0].Passes[n-1].Complete && v.Phase == move.PhaseReady
	})
	y.same()
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{SourceOff: true, Unrehearsed: "a test", Verify: true}); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
	y.same()
}

// A record of a version before is one of a server that is reached.
func TestRecordBefore(t *testing.T) {
	var r move.Record
	if err := json.Unmarshal([]byte(`{"name":"gpu7","assessment":"gpu7","source":{"address":"a","port":22,"user":"root"},"disks":[]}`), &r); err != nil || r.AtRest() || r.Source.Address != "a" {
		t.Errorf("%+v, %v", r, err)
	}
	if text, err := json.Marshal(r); err != nil || strings.Contains(string(text), "disks_from") || strings.Contains(string(text), "certificates") {
		t.Errorf("%s, %v", text, err)
	}
}
