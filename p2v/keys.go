package p2v

import (
	"fmt"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/internal/secret"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// passphrases are what was sent for moves, by their names and volumes. They are held in memory
// only.
type passphrases map[string]map[string]secret.Text

// keep holds what was sent for a move.
func (m *Migrations) keep(name string, keys []move.Key) {
	m.keys.Lock()
	defer m.keys.Unlock()
	if m.secrets[name] == nil {
		m.secrets[name] = map[string]secret.Text{}
	}
	for _, k := range keys {
		m.secrets[name][k.Volume] = k.Passphrase
	}
}

// drop forgets what was sent for a move.
func (m *Migrations) drop(name string) {
	m.keys.Lock()
	defer m.keys.Unlock()
	delete(m.secrets, name)
}

// SetKeys gives keys of encrypted volumes, in place of those of the same volumes.
func (m *Migrations) SetKeys(name string, keys []move.Key) (move.Migration, error) {
	cannot := func(err error) (move.Migration, error) {
		return move.Migration{}, gpu.Errorf(gpu.CodeInvalid, "cannot change migration %q: %w", name, err)
	}
	if err := move.CheckKeys(keys); err != nil {
		return cannot(err)
	}
	v, err := m.Migration(name)
	if err != nil {
		return v, err
	}
	seen, err := m.inspected(v.Assessment)
	if err != nil {
		return v, err
	}
	for _, k := range keys {
		if _, err := volumeOf(k, *seen.Report, v.Disks); err != nil {
			return cannot(err)
		}
	}
	r, err := m.ask(name, move.ActChange, func(_ move.Migration, r *move.Record) error {
		all, err := move.WithKeys(r.Keys, keys)
		if err != nil {
			return gpu.Errorf(gpu.CodeInvalid, "cannot change migration %q: %w", name, err)
		}
		r.Keys = all
		m.tries.raise(name) // something may have waited for them
		m.keep(name, keys)
		return nil
	})
	if err != nil {
		return move.Migration{}, err
	}
	return m.view(r)
}

// locked are the volumes of a move whose passphrase was sent and is not held.
func (m *Migrations) locked(r move.Record) (out []string) {
	if r.Wanted.Convert == move.ConvertNone {
		return nil
	}
	m.keys.Lock()
	defer m.keys.Unlock()
	for _, k := range r.Keys {
		if k.Credential == "" && m.secrets[r.Name][k.Volume] == "" {
			out = append(out, k.Volume)
		}
	}
	return out
}

// unlock are the keys of a move as programs on its disks take them.
func (m *Migrations) unlock(r move.Record, seen report.Report) ([]convert.Key, error) {
	if v := (move.Migration{Record: r, Locked: m.locked(r)}); len(v.Locked) > 0 {
		return nil, gpu.Errorf(gpu.CodeConflict, "%s", v.Unlock())
	}
	var out []convert.Key
	for _, k := range r.Keys {
		at, err := volumeOf(k, seen, r.Disks)
		if err != nil {
			return nil, err
		}
		text, err := m.passphrase(r.Name, k)
		if err != nil {
			return nil, err
		}
		out = append(out, convert.Key{Volume: at, Passphrase: text})
	}
	return out, nil
}

func (m *Migrations) passphrase(name string, k move.Key) (secret.Text, error) {
	if k.Credential == "" {
		m.keys.Lock()
		defer m.keys.Unlock()
		return m.secrets[name][k.Volume], nil
	}
	cannot := func(err error) error {
		return gpu.Errorf(gpu.CodeConflict, "cannot read the passphrase of %s from the credential %q: %w", k.Volume, k.Credential, err)
	}
	content, err := m.cfg.Secret(k.Credential)
	if err != nil {
		return "", cannot(err)
	}
	text := secret.Text(strings.TrimRight(string(content), "\r\n"))
	if err := move.CheckPassphrase(text); err != nil {
		return "", cannot(fmt.Errorf("it %w", err))
	}
	return text, nil
}

// volumeOf is the volume of a key as libguestfs names it, with these disks in this order.
func volumeOf(k move.Key, seen report.Report, disks []move.Disk) (string, error) {
	if k.IsUUID() {
		return k.Volume, nil
	}
	for i, d := range disks {
		at := "/dev/" + convert.DiskName("sd", i)
		if d.Name == k.Volume {
			return at, nil
		}
		for _, s := range seen.Disks {
			j := slices.IndexFunc(s.Partitions, func(p report.Partition) bool { return p.Name == k.Volume })
			if s.Name == d.Name && j >= 0 {
				return fmt.Sprintf("%s%d", at, s.Partitions[j].Number), nil
			}
		}
	}
	return "", fmt.Errorf("the server has no partition or disk %q that is moved: name the one that the encrypted volume lies on, or the UUID of its header", k.Volume)
}

// opensNothing reports whether the volume of a key is known to hold something else than an encrypted
// volume: one may lie in a volume group or on a RAID, and what is not known may be one.
func opensNothing(k move.Key, seen report.Report) bool {
	if slices.ContainsFunc(seen.Volumes, func(v report.Volume) bool { return v.Kind == "crypt" && slices.Contains(v.On, k.Volume) }) {
		return false
	}
	may := []string{"", "crypto_LUKS", "LVM2_member", "linux_raid_member"}
	for _, d := range seen.Disks {
		if d.Name == k.Volume {
			return len(d.Partitions) > 0 || !slices.Contains(may, d.Content)
		}
		for _, p := range d.Partitions {
			if p.Name == k.Volume {
				return !slices.Contains(may, p.Content)
			}
		}
	}
	return false
}

// keysFit refuses keys of what is not moved, or not encrypted.
func keysFit(w move.Wish, seen report.Report, disks []move.Disk) error {
	for _, k := range w.Keys {
		if _, err := volumeOf(k, seen, disks); err != nil {
			return gpu.Errorf(gpu.CodeInvalid, "%s: %w", cannotMigrate(w), err)
		}
		if opensNothing(k, seen) {
			return gpu.Errorf(gpu.CodeInvalid, "%s: %s is not encrypted, as far as its inspection tells, and a key was given for it", cannotMigrate(w), k.Volume).
				WithHint("leave the key out; or name the partition or disk that the encrypted volume lies on, or the UUID of its header")
		}
	}
	return nil
}

// planned is what a plan has to know of a move beside what was asked of it.
func planned(w assess.Wish, v move.VMWish, keys []move.Key) assess.Wish {
	w.Unconverted, w.Keys = v.Convert == move.ConvertNone, move.Volumes(keys)
	return w
}
