package move

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/internal/secret"
	"gpuvirt/p2v/report"
)

// Key opens an encrypted volume of the server for the conversion.
type Key struct {
	// Volume is the partition or the disk that it lies on, as the server names it ("nvme0n1p3"), or
	// the UUID of its LUKS header.
	Volume string `json:"volume"`
	// Credential is the name of a file with the passphrase, in the host's folder of credentials;
	// empty: it was sent, and is held in memory.
	Credential string `json:"credential,omitempty"`
	// Passphrase is what was sent. It is not kept with the move.
	Passphrase secret.Text `json:"-"`
}

const (
	maxKeys       = 64
	maxPassphrase = 512 // bytes, as cryptsetup has it
)

var (
	keyVolume = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	headerID  = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
)

// IsUUID reports whether a key names its volume by the UUID of its header.
func (k Key) IsUUID() bool { return headerID.MatchString(k.Volume) }

// CheckKeys refuses what makes no sense by itself. The error says which field is wrong, and holds
// nothing of a passphrase.
func CheckKeys(keys []Key) error {
	if len(keys) > maxKeys {
		return fmt.Errorf("keys are %d, and %d at most", len(keys), maxKeys)
	}
	for i, k := range keys {
		switch {
		case !keyVolume.MatchString(k.Volume):
			return fmt.Errorf("keys[%d].volume %q is no name of a partition or disk, nor a UUID", i, k.Volume)
		case slices.ContainsFunc(keys[:i], func(o Key) bool { return o.Volume == k.Volume }):
			return fmt.Errorf("keys[%d] names %q once more", i, k.Volume)
		case (k.Credential == "") == (k.Passphrase == ""):
			return fmt.Errorf("keys[%d] takes either credential or passphrase", i)
		case k.Credential != "" && !report.Credential.MatchString(k.Credential):
			return fmt.Errorf("keys[%d].credential %q is no name of a file", i, k.Credential)
		}
		if err := CheckPassphrase(k.Passphrase); k.Credential == "" && err != nil {
			return fmt.Errorf("keys[%d].passphrase %w", i, err)
		}
	}
	return nil
}

// CheckPassphrase refuses what is no line, which is all that libguestfs reads.
func CheckPassphrase(p secret.Text) error {
	if p == "" || len(p) > maxPassphrase || strings.ContainsAny(string(p), "\x00\r\n") {
		return fmt.Errorf("is no line of 1 to %d bytes: files of keys cannot be used, add a passphrase to the volume (cryptsetup luksAddKey)", maxPassphrase)
	}
	return nil
}

// Volumes are what keys open.
func Volumes(keys []Key) []string {
	out := make([]string, 0, len(keys))
	for _, k := range keys {
		out = append(out, k.Volume)
	}
	return out
}

// WithKeys are keys with others laid over them, by volume. There is an end to how many.
func WithKeys(keys, more []Key) ([]Key, error) {
	keys = slices.DeleteFunc(slices.Clone(keys), func(k Key) bool {
		return slices.ContainsFunc(more, func(o Key) bool { return o.Volume == k.Volume })
	})
	if keys = append(keys, more...); len(keys) > maxKeys {
		return nil, fmt.Errorf("keys would be %d, and %d at most", len(keys), maxKeys)
	}
	return keys, nil
}
