package report

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// MaxPresent bounds what Write writes, bytes.
const MaxPresent = 4 << 20

// Present is which disks a server has at this moment, and what its kernel calls them: that may be
// something else each time it starts.
type Present struct {
	Version int    `json:"version"`
	BootID  string `json:"boot_id"`    // of its kernel; empty: it is not known
	Up      uint64 `json:"up_seconds"` // since it was started; 0: it is not known
	Disks   []Here `json:"disks"`
}

// Here is a disk that is there.
type Here struct {
	Name      string `json:"name"` // of the kernel: "nvme0n1"
	ID        string `json:"id"`   // as Identity has it
	SizeBytes uint64 `json:"size_bytes"`
}

// Write writes it as a line.
func (p Present) Write(w io.Writer) error {
	data, err := json.Marshal(p)
	if err == nil && len(data) >= MaxPresent {
		err = fmt.Errorf("it would be larger than %d bytes", MaxPresent)
	}
	if err == nil {
		_, err = w.Write(append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("cannot tell which disks are there: %w", err)
	}
	return nil
}

// Check refuses what nobody writes who tells which disks are there.
func (p Present) Check() error {
	if p.Version != Version {
		return fmt.Errorf("its version is %d, and wanted is %d", p.Version, Version)
	}
	return check(reflect.ValueOf(p), "")
}

// Anonymous reports whether an identity is only the name and size of a disk that says nothing of itself.
func Anonymous(id string) bool { return strings.HasPrefix(id, "name:") }

// Worldwide reports whether an identity is a WWN: disks that have the same are one, reached by several ways.
func Worldwide(id string) bool { return strings.HasPrefix(id, "wwn:") }
