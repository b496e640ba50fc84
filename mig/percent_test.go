package mig

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

func TestPercent(t *testing.T) {
	const dirt = 0xaaaaaaaaaaaaaaaa
	for _, c := range []struct {
		typ  nvml.ValueType
		bits uint64
		want int
	}{
		{nvml.VALUE_TYPE_UNSIGNED_INT, dirt&^0xffffffff | 37, 37},
		{nvml.VALUE_TYPE_SIGNED_INT, dirt&^0xffffffff | 100, 100},
		{nvml.VALUE_TYPE_UNSIGNED_INT, math.MaxUint32, -1},
		{nvml.VALUE_TYPE_UNSIGNED_INT, 101, -1},
		{nvml.VALUE_TYPE_UNSIGNED_LONG_LONG, 5, 5},
		{nvml.VALUE_TYPE_SIGNED_LONG_LONG, dirt, -1},
		{nvml.VALUE_TYPE_UNSIGNED_SHORT, dirt&^0xffff | 9, 9},
		{nvml.VALUE_TYPE_DOUBLE, math.Float64bits(12.6), 13},
		{nvml.VALUE_TYPE_DOUBLE, math.Float64bits(math.NaN()), -1},
		{nvml.VALUE_TYPE_COUNT, 1, -1},
		{99, 1, -1},
	} {
		var value [8]byte
		binary.NativeEndian.PutUint64(value[:], c.bits)
		if got := percent(c.typ, value); got != c.want {
			t.Errorf("type %d, %#x: %d, want %d", c.typ, c.bits, got, c.want)
		}
	}
}
