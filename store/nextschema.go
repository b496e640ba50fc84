//go:build nextschema

package store

import "go.etcd.io/bbolt"

// migrations are those of a version to come, for the lab: it upgrades to one and goes back.
func migrations() []migration { return []migration{func(*bbolt.Tx) error { return nil }} }
