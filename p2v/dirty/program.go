package dirty

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf/asm"
)

// programLicense is what the kernel asks a program for that reads its structures. It is
// true of what this file puts together: besides this repository's licence it may be used
// under MIT or GPL-2.0.
const programLicense = "Dual MIT/GPL"

// maxRanges is how many ranges of one discard are looked at. No driver of Linux takes more.
const maxRanges = 256

// The program's stack, downwards from the frame pointer.
const (
	stackDisk  = -8  // major and minor number, 32 bits each: a key of the table
	stackPage  = -16 // a key of the marks
	stackCount = -24 // ranges that were looked at
	stackName  = -64 // the disk's name: a key of the names
)

// A slotValue is a slot as the program reads it.
type slotValue struct {
	Chunks uint64
	Base   [maxLevels]uint32
	Flags  uint32
	_      uint32
}

const (
	slotChunks = 0
	slotBase   = 8
	slotFlags  = slotBase + 4*maxLevels
)

func (s slot) value() slotValue {
	v := slotValue{Chunks: uint64(s.chunks), Flags: s.flags} //nolint:gosec // positive
	copy(v.Base[:], s.base)
	return v
}

// A diskKey is the number of a disk as the program looks it up.
type diskKey struct{ Major, Minor uint32 }

// A mapFDs are the descriptors of the program's maps. Names is -1 where no disk has
// several paths.
type mapFDs struct{ disks, marks, names int }

// program marks what a finished request has written.
//
// R6 is the request, and of a discard the bio of the next range, or 0. R9 is the slot.
// R7 is the operation and R8 the disk; while a range is marked, the first and the last mark.
func program(f fields, l layout, maps mapFDs) asm.Instructions {
	p := &assembler{}
	p.add(
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
		// Odd operations write.
		asm.LoadMem(asm.R7, asm.R6, f.rqFlags, asm.Word),
		asm.And.Imm(asm.R7, 0xff),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.And.Imm(asm.R1, 1),
		asm.JEq.Imm(asm.R1, 0, "exit"),
	)
	p.findDisk(f, maps)
	p.label("found")
	p.add(
		asm.JGE.Imm(asm.R7, f.opFirstPassthrough, "passthrough"),
		asm.LoadMem(asm.R1, asm.R6, f.rqSector, asm.DWord),
		asm.LoadMem(asm.R2, asm.R6, f.rqLen, asm.Word),
		asm.JEq.Imm(asm.R2, 0, "exit"),
		asm.JEq.Imm(asm.R7, f.opDiscard, "discard"),
	)
	p.label("whole")
	p.markRange(l, maps, true)
	p.add(asm.Ja.Label("exit"))
	// A discard is the one request whose parts need not be neighbours: each is looked at.
	p.label("discard")
	p.add(
		asm.StoreImm(asm.RFP, stackCount, 0, asm.Word),
		asm.LoadMem(asm.R6, asm.R6, f.rqBio, asm.DWord),
		asm.JEq.Imm(asm.R6, 0, "whole"),
	)
	p.label("bio")
	p.add(
		asm.LoadMem(asm.R1, asm.R6, f.bioSector, asm.DWord),
		asm.LoadMem(asm.R2, asm.R6, f.bioLen, asm.Word),
		asm.LoadMem(asm.R6, asm.R6, f.bioNext, asm.DWord),
	)
	p.markRange(l, maps, false)
	p.add(
		asm.JEq.Imm(asm.R6, 0, "exit"),
		asm.LoadMem(asm.R1, asm.RFP, stackCount, asm.Word),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.RFP, stackCount, asm.R1, asm.Word),
		asm.JLT.Imm(asm.R1, maxRanges, "bio"),
		asm.Mov.Imm(asm.R7, int32(reasonRanges)),
		asm.Ja.Label("flag"),
	)
	p.label("passthrough")
	p.add(
		asm.LoadMem(asm.R1, asm.R6, f.rqLen, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "exit"),
		asm.Mov.Imm(asm.R7, int32(reasonPassthrough)),
		asm.Ja.Label("flag"),
	)
	p.label("beyond")
	p.add(asm.Mov.Imm(asm.R7, int32(reasonBeyond)))
	p.label("flag")
	p.add(
		asm.LoadMem(asm.R1, asm.R9, slotFlags, asm.Word),
		asm.Add.Reg(asm.R7, asm.R1),
	)
	p.label("store flag")
	p.add(asm.StoreImm(asm.RFP, stackPage, 0, asm.Word))
	p.lookup(maps.marks, stackPage)
	p.add(
		asm.JEq.Imm(asm.R0, 0, "exit"), // there is a first page
		asm.Mov.Reg(asm.R1, asm.R7),
	)
	p.storeByte()
	p.label("exit")
	p.add(asm.Mov.Imm(asm.R0, 0), asm.Return())
	return p.code
}

// An assembler puts instructions one after the other.
type assembler struct {
	code    asm.Instructions
	pending string // the label of the next instruction
}

func (p *assembler) label(name string) { p.pending = name }

func (p *assembler) add(code ...asm.Instruction) {
	if p.pending != "" {
		code[0] = code[0].WithSymbol(p.pending)
		p.pending = ""
	}
	p.code = append(p.code, code...)
}

// lookup leaves in R0 where the value of a key on the stack is, or 0.
func (p *assembler) lookup(fd int, key int32) {
	p.add(
		asm.LoadMapPtr(asm.R1, fd),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
	)
}

// findDisk leaves the slot of the request's disk in R9. It leaves the program where the
// disk is none of ours.
func (p *assembler) findDisk(f fields, maps mapFDs) {
	if f.diskInRequest {
		p.add(asm.LoadMem(asm.R8, asm.R6, f.rqDisk, asm.DWord))
		p.add(asm.JNE.Imm(asm.R8, 0, "disk"))
		// Whoever sends commands through a character device names no disk here.
		p.add(
			asm.JLT.Imm(asm.R7, f.opFirstPassthrough, "exit"),
			asm.LoadMem(asm.R1, asm.R6, f.rqLen, asm.Word),
			asm.JEq.Imm(asm.R1, 0, "exit"),
			asm.Mov.Imm(asm.R7, int32(reasonNoDisk)),
			asm.Ja.Label("store flag"),
		)
	} else {
		p.add(
			asm.LoadMem(asm.R8, asm.R6, f.rqQueue, asm.DWord),
			asm.LoadMem(asm.R8, asm.R8, f.queueDisk, asm.DWord),
			asm.JEq.Imm(asm.R8, 0, "exit"),
		)
	}
	p.label("disk")
	p.add(
		asm.LoadMem(asm.R1, asm.R8, f.diskMajor, asm.Word),
		asm.StoreMem(asm.RFP, stackDisk, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R8, f.diskMinor, asm.Word),
		asm.StoreMem(asm.RFP, stackDisk+4, asm.R1, asm.Word),
	)
	p.lookup(maps.disks, stackDisk)
	p.add(asm.Mov.Reg(asm.R9, asm.R0))
	if maps.names < 0 {
		p.add(asm.JEq.Imm(asm.R9, 0, "exit"))
		return
	}
	p.add(asm.JNE.Imm(asm.R9, 0, "found"))
	p.findPath(f, maps)
}

// findPath knows by its name the hidden disk that one path to an NVMe namespace is: its
// number is told nowhere. Of a name that is not known nobody can say whose it is.
func (p *assembler) findPath(f fields, maps mapFDs) {
	p.add(
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, stackName),
		asm.Mov.Imm(asm.R2, diskNameBytes),
		asm.Mov.Reg(asm.R3, asm.R8),
		asm.Add.Imm(asm.R3, f.diskName),
		asm.FnProbeReadKernel.Call(),
	)
	p.lookup(maps.names, stackName)
	p.add(
		asm.Mov.Reg(asm.R9, asm.R0),
		asm.JNE.Imm(asm.R9, 0, "path"),
		asm.LoadMem(asm.R1, asm.RFP, stackName, asm.Word),
		asm.JNE.Imm32(asm.R1, int32(binary.NativeEndian.Uint32([]byte("nvme"))), "exit"), //nolint:gosec // ASCII
		asm.Mov.Imm(asm.R7, int32(reasonPath)),
		asm.Ja.Label("store flag"),
	)
	p.label("path")
	p.add(
		asm.LoadMem(asm.R1, asm.R9, slotChunks, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "exit"), // another disk's, which is known
	)
}

// markRange marks what begins at sector R1 and has R2 bytes. Nothing in it branches, but
// to the end of the program: the kernel follows each branch to the end, and here the ways
// would multiply with the ranges of a discard. Only the last range ends as soon as all of it
// is marked.
func (p *assembler) markRange(l layout, maps mapFDs, last bool) {
	const sectorShift = 9
	toChunk := int32(l.chunkShift) - sectorShift //nolint:gosec // at most 32
	p.add(
		asm.JEq.Imm(asm.R2, 0, "beyond"),
		asm.Add.Imm(asm.R2, 1<<sectorShift-1),
		asm.RSh.Imm(asm.R2, sectorShift),
		asm.Add.Reg(asm.R2, asm.R1),
		asm.Sub.Imm(asm.R2, 1), // the last sector
		asm.RSh.Imm(asm.R1, toChunk),
		asm.RSh.Imm(asm.R2, toChunk),
		asm.LoadMem(asm.R3, asm.R9, slotChunks, asm.DWord),
		asm.JGE.Reg(asm.R2, asm.R3, "beyond"),
		asm.JGT.Reg(asm.R1, asm.R2, "beyond"),
		asm.Mov.Imm(asm.R5, 0), // the level
	)
	for range len(l.slots[0].base) - 1 {
		p.add(
			asm.Mov.Reg(asm.R3, asm.R2),
			asm.Sub.Reg(asm.R3, asm.R1),
			asm.RSh.Imm(asm.R3, 3), // 0 where eight marks are enough
			asm.Mov.Reg(asm.R4, asm.R3),
			asm.Neg.Imm(asm.R4, 0),
			asm.Or.Reg(asm.R4, asm.R3),
			asm.RSh.Imm(asm.R4, 63), // 1 where they are not
			asm.Add.Reg(asm.R5, asm.R4),
			asm.LSh.Imm(asm.R4, 1), // fanBits
			asm.RSh.Reg(asm.R1, asm.R4),
			asm.RSh.Reg(asm.R2, asm.R4),
		)
	}
	p.add(
		asm.And.Imm(asm.R5, maxLevels-1),
		asm.LSh.Imm(asm.R5, 2),
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.Add.Reg(asm.R3, asm.R5),
		asm.LoadMem(asm.R7, asm.R3, slotBase, asm.Word),
		asm.Add.Reg(asm.R7, asm.R1), // the first mark
		asm.Mov.Reg(asm.R8, asm.R2),
		asm.Sub.Reg(asm.R8, asm.R1),           // from the first to the last
		asm.JGE.Imm(asm.R8, maxRun, "beyond"), // no request is so long
	)
	for i := range int32(maxRun) {
		position := []asm.Instruction{asm.Mov.Reg(asm.R1, asm.R7), asm.Add.Imm(asm.R1, i)}
		if !last {
			// Always eight, evenly from the first to the last: some twice, none left out.
			position = []asm.Instruction{
				asm.Mov.Reg(asm.R1, asm.R8),
				asm.Mul.Imm(asm.R1, i),
				asm.Div.Imm(asm.R1, maxRun-1),
				asm.Add.Reg(asm.R1, asm.R7),
			}
		}
		p.add(position...)
		p.add(
			asm.RSh.Imm(asm.R1, pageShift),
			asm.StoreMem(asm.RFP, stackPage, asm.R1, asm.Word),
		)
		p.lookup(maps.marks, stackPage)
		p.add(asm.JEq.Imm(asm.R0, 0, "beyond"))
		p.add(position...)
		p.storeByte()
		if last && i < maxRun-1 {
			p.add(asm.JLE.Imm(asm.R8, i, "exit"))
		}
	}
}

// pageShift divides by pageBytes.
const pageShift = 12

// storeByte stores 1 at position R1 of the marks, in the page at R0.
func (p *assembler) storeByte() {
	p.add(
		asm.And.Imm(asm.R1, pageBytes-1),
		asm.Add.Reg(asm.R0, asm.R1),
		asm.StoreImm(asm.R0, 0, 1, asm.Byte),
	)
}

// nameKey is a disk's name as the program looks it up.
func nameKey(name string) ([diskNameBytes]byte, error) {
	var key [diskNameBytes]byte
	if len(name) >= diskNameBytes {
		return key, fmt.Errorf("cannot look for disk %q: its name is too long", name)
	}
	copy(key[:], name)
	return key, nil
}
