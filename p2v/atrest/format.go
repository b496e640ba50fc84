package atrest

import (
	"errors"
	"io"
	"strings"

	"gpuvirt/gpu"
)

// formats are how images begin that are not raw.
var formats = []struct {
	at    int
	magic string
	name  string
}{
	{0, "QFI\xfb", "a qcow2 image"},
	{0, "QED\x00", "a QED image"},
	{0, "KDMV", "a VMDK image"},
	{0, "COWD", "a VMDK image"},
	{0, "# Disk DescriptorFile", "the description of a VMDK image"},
	{0, "vhdxfile", "a VHDX image"},
	{0, "conectix", "a VHD image"},
	{64, "\x7f\x10\xda\xbe", "a VDI image"},
	{0, "\x1f\x8b\x08", packed + "gzip"},
	{0, "\xfd7zXZ\x00", packed + "xz"},
	{0, "\x28\xb5\x2f\xfd", packed + "zstd"},
}

const packed = "compressed with "

// checkRaw refuses what is no raw image, and says how it becomes one.
func checkRaw(r io.ReaderAt, convert string) error {
	head := make([]byte, 512)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, f := range formats {
		if !strings.HasPrefix(string(head[min(f.at, n):n]), f.magic) {
			continue
		}
		if strings.HasPrefix(f.name, packed) {
			convert = "unpack it first"
		}
		return gpu.Errorf(gpu.CodeInvalid, "it is %s, and has to be raw", f.name).WithHint("%s", convert)
	}
	return nil
}
