package dirty

import (
	"encoding/binary"

	"github.com/cilium/ebpf/asm"
)

// A failer is a test, of rapid or not.
type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// A machine runs the program as the kernel would, on memory that a test has made: so that what
// it does can be tried on any machine, and for kernels that none of ours has.
type machine struct {
	t       failer
	code    asm.Instructions
	labels  map[string]int
	regions [][]byte // an address is the number of a region, from 1 on, and an offset of 32 bits
	maps    map[int64]func(key uint64) uint64
	reg     [11]uint64
}

func newMachine(t failer, code asm.Instructions) *machine {
	m := &machine{t: t, code: code, labels: map[string]int{}, maps: map[int64]func(uint64) uint64{}}
	for i, instruction := range code {
		if name := instruction.Symbol(); name != "" {
			m.labels[name] = i
		}
	}
	return m
}

// add gives a piece of memory an address.
func (m *machine) add(b []byte) uint64 {
	m.regions = append(m.regions, b)
	return uint64(len(m.regions)) << 32
}

func (m *machine) at(address uint64, size int) []byte {
	region, offset := address>>32, address&0xffffffff
	if region == 0 || region > uint64(len(m.regions)) || offset+uint64(size) > uint64(len(m.regions[region-1])) {
		m.t.Fatalf("%d bytes at %#x are nobody's", size, address)
	}
	return m.regions[region-1][offset:][:size]
}

func (m *machine) load(address uint64, size int) uint64 {
	var b [8]byte
	copy(b[:], m.at(address, size))
	return binary.LittleEndian.Uint64(b[:])
}

func (m *machine) store(address uint64, size int, value uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], value)
	copy(m.at(address, size), b[:size])
}

// run calls the program with one argument and returns how many instructions it took.
func (m *machine) run(argument uint64) int {
	context := make([]byte, 8)
	binary.LittleEndian.PutUint64(context, argument)
	frame, stack := m.add(context), m.add(make([]byte, 512))
	m.reg = [11]uint64{asm.R1: frame, asm.RFP: stack + 512}
	defer func() { m.regions = m.regions[:len(m.regions)-2] }()
	steps := 0
	for pc := 0; ; steps++ {
		i := m.code[pc]
		pc++
		switch class := i.OpCode.Class(); {
		case i.OpCode.JumpOp() == asm.Exit:
			return steps
		case i.OpCode.JumpOp() == asm.Call:
			m.call(i)
		case class.IsJump():
			if m.jumps(i, class == asm.Jump32Class) {
				to, there := m.labels[i.Reference()]
				if !there {
					m.t.Fatalf("nothing is called %q", i.Reference())
				}
				pc = to
			}
		case class.IsALU():
			m.compute(i)
		default:
			m.move(i)
		}
	}
}

func (m *machine) source(i asm.Instruction) uint64 {
	if i.OpCode.Source() == asm.RegSource {
		return m.reg[i.Src]
	}
	return uint64(i.Constant)
}

func (m *machine) jumps(i asm.Instruction, narrow bool) bool {
	a, b := m.reg[i.Dst], m.source(i)
	if narrow {
		a, b = a&0xffffffff, b&0xffffffff
	}
	decide := map[asm.JumpOp]bool{
		asm.Ja: true, asm.JEq: a == b, asm.JNE: a != b, asm.JGT: a > b, asm.JGE: a >= b, asm.JLT: a < b, asm.JLE: a <= b,
	}
	yes, known := decide[i.OpCode.JumpOp()]
	if !known {
		m.t.Fatalf("jump %v", i)
	}
	return yes
}

func (m *machine) compute(i asm.Instruction) {
	a, b := m.reg[i.Dst], m.source(i)
	results := map[asm.ALUOp]uint64{
		asm.Mov: b, asm.Add: a + b, asm.Sub: a - b, asm.Mul: a * b, asm.And: a & b, asm.Or: a | b,
		asm.LSh: a << (b & 63), asm.RSh: a >> (b & 63), asm.Neg: -a, asm.Div: a / max(b, 1),
	}
	result, known := results[i.OpCode.ALUOp()]
	if !known {
		m.t.Fatalf("operation %v", i)
	}
	m.reg[i.Dst] = result
}

func (m *machine) move(i asm.Instruction) {
	size := i.OpCode.Size().Sizeof()
	switch class := i.OpCode.Class(); {
	case class == asm.LdClass: // of a map
		m.reg[i.Dst] = uint64(i.Constant)
	case class == asm.LdXClass:
		m.reg[i.Dst] = m.load(m.reg[i.Src]+uint64(int64(i.Offset)), size)
	case class == asm.StXClass:
		m.store(m.reg[i.Dst]+uint64(int64(i.Offset)), size, m.reg[i.Src])
	case class == asm.StClass:
		m.store(m.reg[i.Dst]+uint64(int64(i.Offset)), size, uint64(i.Constant))
	default:
		m.t.Fatalf("instruction %v", i)
	}
}

// call does what the kernel's functions do, and spoils what they may.
func (m *machine) call(i asm.Instruction) {
	var result uint64
	switch function := asm.BuiltinFunc(i.Constant); {
	case function == asm.FnMapLookupElem:
		lookup := m.maps[int64(m.reg[asm.R1])]
		if lookup == nil {
			m.t.Fatalf("no map %d", m.reg[asm.R1])
		}
		result = lookup(m.reg[asm.R2])
	case function == asm.FnProbeReadKernel:
		n := int(m.reg[asm.R2])
		copy(m.at(m.reg[asm.R1], n), m.at(m.reg[asm.R3], n))
	default:
		m.t.Fatalf("call %v", i)
	}
	for r := asm.R1; r <= asm.R5; r++ {
		m.reg[r] = 0xdead << 48
	}
	m.reg[asm.R0] = result
}
