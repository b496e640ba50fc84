package dirty

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

var (
	u64  = &btf.Int{Name: "u64", Size: 8}
	u32  = &btf.Int{Name: "u32", Size: 4}
	char = &btf.Int{Name: "char", Size: 1}
)

func at(n uint32) btf.Bits { return btf.Bits(8 * n) }

func structure(name string, size uint32, members ...btf.Member) *btf.Struct {
	return &btf.Struct{Name: name, Size: size, Members: members}
}

// describe makes the types of a kernel: one where the queue leads to the disk, or an old one.
func describe(old bool, change func(map[string]*btf.Struct)) []btf.Type {
	bio := structure("bio", 64)
	iter := structure("bvec_iter", 16, btf.Member{Name: "bi_sector", Type: u64}, btf.Member{Name: "bi_size", Type: u32, Offset: at(8)})
	bio.Members = []btf.Member{{Name: "bi_next", Type: &btf.Pointer{Target: bio}}, {Name: "bi_iter", Type: iter, Offset: at(32)}}
	disk := structure("gendisk", 64, btf.Member{Name: "major", Type: u32}, btf.Member{Name: "first_minor", Type: u32, Offset: at(4)},
		btf.Member{Name: "disk_name", Type: &btf.Array{Index: u32, Type: char, Nelems: 32}, Offset: at(12)})
	queue := structure("request_queue", 128)
	rq := structure("request", 200,
		btf.Member{Name: "q", Type: &btf.Pointer{Target: queue}},
		btf.Member{Name: "cmd_flags", Type: &btf.Typedef{Name: "blk_opf_t", Type: u32}, Offset: at(24)},
		// Some are in structures without a name.
		btf.Member{Offset: at(40), Type: &btf.Union{Size: 8, Members: []btf.Member{{Type: structure("", 8,
			btf.Member{Name: "x", Type: u32}, btf.Member{Name: "__data_len", Type: u32, Offset: at(4)})}}}},
		btf.Member{Name: "__sector", Type: u64, Offset: at(48)},
		btf.Member{Name: "bio", Type: &btf.Pointer{Target: bio}, Offset: at(56)},
	)
	enum := &btf.Enum{Name: "req_op", Size: 4, Values: []btf.EnumValue{
		{Name: "REQ_OP_READ", Value: 0},
		{Name: "REQ_OP_WRITE", Value: 1},
		{Name: "REQ_OP_DISCARD", Value: 3},
		{Name: "REQ_OP_DRV_IN", Value: 34},
		{Name: "REQ_OP_DRV_OUT", Value: 35},
	}}
	if old {
		enum.Name = "req_opf"
		enum.Values = append(enum.Values, btf.EnumValue{Name: "REQ_OP_SCSI_IN", Value: 32}, btf.EnumValue{Name: "REQ_OP_SCSI_OUT", Value: 33})
		rq.Members = append(rq.Members, btf.Member{Name: "rq_disk", Type: &btf.Pointer{Target: disk}, Offset: at(160)})
	} else {
		queue.Members = []btf.Member{{Name: "disk", Type: &btf.Pointer{Target: disk}, Offset: at(104)}}
	}
	if change != nil {
		change(map[string]*btf.Struct{"bio": bio, "gendisk": disk, "request_queue": queue, "request": rq})
	}
	trace := &btf.Typedef{Name: "btf_trace_" + tracepoint, Type: &btf.Pointer{Target: &btf.FuncProto{Return: &btf.Void{}, Params: []btf.FuncParam{
		{Type: &btf.Pointer{Target: &btf.Void{}}}, {Type: &btf.Pointer{Target: rq}}, {Type: u32}, {Type: u32},
	}}}}
	return []btf.Type{rq, queue, disk, bio, enum, trace}
}

func read(t *testing.T, types []btf.Type) (fields, error) {
	t.Helper()
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return readFields(spec)
}

func TestFields(t *testing.T) {
	want := fields{
		rqFlags: 24, rqSector: 48, rqLen: 44, rqBio: 56, rqQueue: 0, queueDisk: 104, diskMajor: 0, diskMinor: 4, diskName: 12,
		bioNext: 0, bioSector: 32, bioLen: 40, opDiscard: 3, opFirstPassthrough: 34,
	}
	got, err := read(t, describe(false, nil))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(fields{})); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	want.diskInRequest, want.rqDisk, want.queueDisk, want.opFirstPassthrough = true, 160, 0, 32
	got, err = read(t, describe(true, nil))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(fields{})); err != nil || diff != "" {
		t.Errorf("old: %v\n%s", err, diff)
	}
}

// A kernel that is not as we know it is refused, not guessed at.
func TestFieldsOfAnotherKernel(t *testing.T) {
	drop := func(structure, member string) func(map[string]*btf.Struct) {
		return func(all map[string]*btf.Struct) {
			s := all[structure]
			s.Members = slices.DeleteFunc(s.Members, func(m btf.Member) bool { return m.Name == member })
		}
	}
	for _, c := range []struct {
		name  string
		types []btf.Type
		want  string
	}{
		{"no sector", describe(false, drop("request", "__sector")), `"__sector": no such member`},
		{"no way to the disk", describe(false, drop("request_queue", "disk")), `"rq_disk": no such member`},
		{"no iterator", describe(false, drop("bio", "bi_iter")), `"bi_iter": no such member`},
		{"wider flags", describe(false, func(all map[string]*btf.Struct) { all["request"].Members[1].Type = u64 }), "has 8 bytes, not 4"},
		{"no tracepoint", describe(false, nil)[:5], "tracepoint block_rq_complete"},
		{"no operations", slices.Delete(describe(false, nil), 4, 5), "enum req_op"},
		{"nothing", describe(false, nil)[1:2], "struct request"},
	} {
		if _, err := read(t, c.types); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	odd := describe(false, nil)
	odd[4].(*btf.Enum).Values[1].Value = 2
	if _, err := read(t, odd); err == nil || !strings.Contains(err.Error(), "REQ_OP_WRITE is 2") {
		t.Errorf("an even write: %v", err)
	}
	first := describe(false, nil)
	first[5].(*btf.Typedef).Type.(*btf.Pointer).Target.(*btf.FuncProto).Params[1].Type = u64
	if _, err := read(t, first); err == nil || !strings.Contains(err.Error(), "is no request") {
		t.Errorf("another argument: %v", err)
	}
}

// Each jump has a place to go to, in every form of the program, and it can be written down.
func TestProgramIsWhole(t *testing.T) {
	l, err := layOut([]int64{1 << 40}, minChunkBytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range []bool{false, true} {
		f, err := read(t, describe(old, nil))
		if err != nil {
			t.Fatal(err)
		}
		for _, names := range []int{-1, 9} {
			code := program(f, l, mapFDs{disks: 7, marks: 8, names: names})
			places, err := code.SymbolOffsets()
			if err != nil {
				t.Fatal(err)
			}
			for label := range code.ReferenceOffsets() {
				if _, there := places[label]; !there {
					t.Errorf("old %v, names %d: nothing is called %q", old, names, label)
				}
			}
			asksNames := slices.ContainsFunc(code, func(i asm.Instruction) bool { return i == asm.FnProbeReadKernel.Call() })
			if asksNames != (names >= 0) {
				t.Errorf("names %d: it reads names: %v", names, asksNames)
			}
		}
	}
	if n := binary.Size(slotValue{}); n != slotFlags+8 {
		t.Errorf("a slot has %d bytes, and the program reads %d", n, slotFlags+8)
	}
}
