package dirty

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// tracepoint is where the program is called: a request, or a part of one, was carried out,
// and nobody who waits for it has been told yet.
const tracepoint = "block_rq_complete"

// Fields are the places of what the program reads, in bytes, and the numbers of operations,
// as this kernel describes itself. They differ between kernels and between builds of one.
type fields struct {
	rqFlags, rqSector, rqLen, rqBio int16 // struct request
	// The disk of a request is found through its queue, and before Linux 5.15 in the request.
	rqQueue, queueDisk            int16
	rqDisk                        int16
	diskInRequest                 bool
	diskMajor, diskMinor          int16 // struct gendisk
	diskName                      int32
	bioNext, bioSector, bioLen    int16 // struct bio
	opDiscard, opFirstPassthrough int32
}

// readFields finds them. Every error means that this kernel is not one that we know.
func readFields(kernel *btf.Spec) (fields, error) {
	r := fieldReader{kernel: kernel}
	f := fields{
		rqFlags:   r.field("request", 4, "cmd_flags"),
		rqSector:  r.field("request", 8, "__sector"),
		rqLen:     r.field("request", 4, "__data_len"),
		rqBio:     r.field("request", 8, "bio"),
		diskMajor: r.field("gendisk", 4, "major"),
		diskMinor: r.field("gendisk", 4, "first_minor"),
		diskName:  int32(r.field("gendisk", diskNameBytes, "disk_name")),
		bioNext:   r.field("bio", 8, "bi_next"),
		bioSector: r.field("bio", 8, "bi_iter", "bi_sector"),
		bioLen:    r.field("bio", 4, "bi_iter", "bi_size"),
	}
	if r.has("request_queue", "disk") {
		f.rqQueue = r.field("request", 8, "q")
		f.queueDisk = r.field("request_queue", 8, "disk")
	} else {
		f.diskInRequest = true
		f.rqDisk = r.field("request", 8, "rq_disk")
	}
	r.operations(&f)
	r.argument()
	if r.err != nil {
		return fields{}, fmt.Errorf("cannot read this kernel's types: %w", r.err)
	}
	return f, nil
}

// diskNameBytes is the size of gendisk.disk_name.
const diskNameBytes = 32

// A fieldReader looks types up and keeps the first error.
type fieldReader struct {
	kernel *btf.Spec
	err    error
}

func (r *fieldReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *fieldReader) structure(name string) *btf.Struct {
	var s *btf.Struct
	if err := r.kernel.TypeByName(name, &s); err != nil {
		r.fail(fmt.Errorf("struct %s: %w", name, err))
		return &btf.Struct{}
	}
	return s
}

func (r *fieldReader) has(structure, member string) bool {
	_, _, err := find(r.structure(structure).Members, member)
	return err == nil
}

// field is where a member is that must have so many bytes. More than one name leads
// through structures within the first.
func (r *fieldReader) field(structure string, size int, path ...string) int16 {
	var typ btf.Type = r.structure(structure)
	var at uint32
	for _, name := range path {
		s, ok := btf.UnderlyingType(typ).(*btf.Struct)
		if !ok {
			r.fail(fmt.Errorf("struct %s: %q is in no structure", structure, name))
			return 0
		}
		offset, member, err := find(s.Members, name)
		if err != nil {
			r.fail(fmt.Errorf("struct %s: %w", structure, err))
			return 0
		}
		at, typ = at+offset, member
	}
	if n, err := btf.Sizeof(typ); err != nil || n != size {
		r.fail(fmt.Errorf("struct %s: %q has %d bytes, not %d", structure, path, n, size))
	}
	if at > 1<<15-1 {
		r.fail(fmt.Errorf("struct %s: %q is at %d, too far away", structure, path, at))
	}
	return int16(at) //nolint:gosec // just bounded
}

var errNoMember = errors.New("no such member")

// find looks into unnamed unions and structures, too.
func find(members []btf.Member, name string) (uint32, btf.Type, error) {
	for _, m := range members {
		if m.Name == name && m.BitfieldSize == 0 {
			return m.Offset.Bytes(), m.Type, nil
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if at, typ, err := find(inner, name); err == nil {
			return m.Offset.Bytes() + at, typ, nil
		}
	}
	return 0, nil, fmt.Errorf("%q: %w", name, errNoMember)
}

// operations reads the numbers of two. That odd ones write is so in all kernels.
func (r *fieldReader) operations(f *fields) {
	var ops *btf.Enum
	err := r.kernel.TypeByName("req_op", &ops)
	if errors.Is(err, btf.ErrNotFound) {
		err = r.kernel.TypeByName("req_opf", &ops) // before Linux 6.0
	}
	if err != nil {
		r.fail(fmt.Errorf("enum req_op: %w", err))
		return
	}
	values := map[string]int32{}
	for _, v := range ops.Values {
		values[v.Name] = int32(v.Value) //nolint:gosec // of eight bits
	}
	var known bool
	if f.opDiscard, known = values["REQ_OP_DISCARD"]; !known {
		r.fail(errors.New("enum req_op: no REQ_OP_DISCARD"))
	}
	if f.opFirstPassthrough, known = values["REQ_OP_DRV_IN"]; !known {
		r.fail(errors.New("enum req_op: no REQ_OP_DRV_IN"))
	}
	if scsi, old := values["REQ_OP_SCSI_IN"]; old {
		f.opFirstPassthrough = min(f.opFirstPassthrough, scsi)
	}
	for name, v := range values {
		switch name {
		case "REQ_OP_WRITE", "REQ_OP_DISCARD", "REQ_OP_SECURE_ERASE", "REQ_OP_WRITE_ZEROES", "REQ_OP_WRITE_SAME":
			if v&1 == 0 || v >= f.opFirstPassthrough {
				r.fail(fmt.Errorf("enum req_op: %s is %d", name, v))
			}
		}
	}
}

// argument checks that what the tracepoint gives first is a request.
func (r *fieldReader) argument() {
	var def *btf.Typedef
	if err := r.kernel.TypeByName("btf_trace_"+tracepoint, &def); err != nil {
		r.fail(fmt.Errorf("tracepoint %s: %w", tracepoint, err))
		return
	}
	pointer, _ := def.Type.(*btf.Pointer)
	if pointer != nil {
		// The first parameter is the tracing program's own.
		if proto, ok := pointer.Target.(*btf.FuncProto); ok && len(proto.Params) >= 2 {
			if p, ok := proto.Params[1].Type.(*btf.Pointer); ok {
				if s, ok := p.Target.(*btf.Struct); ok && s.Name == "request" {
					return
				}
			}
		}
	}
	r.fail(fmt.Errorf("tracepoint %s: its first argument is no request", tracepoint))
}
